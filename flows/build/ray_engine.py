"""The Ray engine: pools of actors on a local Ray that it starts, or on the cluster that RAY_ADDRESS names."""

import logging
import os
import time
import traceback
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any, Final, TypeVar

from catalog.errors import BuildError, DamagedError, PartError, QueryError, UserError, first_line
from catalog.parts import PartFile
from flows.build.engine import Engine, Failures, InlineEngine, OnPart
from flows.build.plan import PlannedPart
from flows.build.ray_access import check_reachable, check_token_in_force, on_loopback, private_folder, require_token
from flows.build.ray_mailbox import Mailbox
from flows.build.worker import Job, PartMaker, Progress, Work, make_table
from tasks.stage import Resources

T = TypeVar("T")
R = TypeVar("R")

IN_FLIGHT: Final = 2
"""Parts given to an actor at once: one that it makes, and one that is queued, so that the actor is never idle."""
_STARTS: Final = 3
_PROGRESS_S: Final = 0.5
LOST_LIMIT: Final = 20
"""A part may be what kills its worker each time."""
_OBJECT_STORE_BYTES: Final = 256 << 20


class RayUnavailableError(BuildError):
    """Ray did not start, several times."""


class RayEngine(Engine):
    """Stages on Ray actors."""

    name = "ray"

    def __init__(self, owns_ray: bool, lost_limit: int = LOST_LIMIT) -> None:
        """`lost_limit`: how often one part may lose its actor before the build fails."""
        self._owns_ray = owns_ray
        self._lost_limit = lost_limit
        self._pool: _Pool | None = None
        self._mailbox: Mailbox | None = None

    @classmethod
    def start(cls) -> "RayEngine":
        """Join RAY_ADDRESS, or start a local Ray that nobody else can reach. Raises RayUnavailableError."""
        address = os.environ.get("RAY_ADDRESS")
        with nullcontext() if address else on_loopback():
            import ray

            if ray.is_initialized():
                return cls(owns_ray=False)
            return cls._join(address) if address else cls._start_local()

    @classmethod
    def _join(cls, address: str) -> "RayEngine":
        """Join a running cluster. Raises UserError if it does not answer within seconds, or refuses our token."""
        import ray

        check_reachable(address)
        try:
            ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR, namespace="espalier")
        except Exception as error:
            raise UserError(
                f"cannot join the Ray cluster RAY_ADDRESS={address!r}: {first_line(error)} (is RAY_AUTH_TOKEN, or the "
                f"file RAY_AUTH_TOKEN_PATH, the cluster's token?)"
            ) from error
        return cls(owns_ray=True)

    @classmethod
    def _start_local(cls) -> "RayEngine":
        import ray

        require_token()
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
        os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # threads that wait must not burn the others' cores
        last: Exception | None = None
        for _ in range(_STARTS):
            try:
                # On busy machines the raylet sometimes fails to start its helper processes: try again.
                ray.init(
                    "local",  # else it joins whatever cluster it finds on this machine
                    include_dashboard=False,
                    log_to_driver=False,
                    logging_level=logging.ERROR,
                    namespace="espalier",
                    object_store_memory=_OBJECT_STORE_BYTES,
                    _node_ip_address="127.0.0.1",
                    _temp_dir=str(private_folder()),
                )
            except Exception as error:  # noqa: BLE001  # Ray raises bare Exception here
                last = error
                ray.shutdown()
            else:
                check_token_in_force()
                return cls(owns_ray=True)
        raise RayUnavailableError(first_line(last))

    def close(self) -> None:
        import ray

        self._drop_pool()
        if self._mailbox is not None:
            self._mailbox.close()
        if self._owns_ray:
            ray.shutdown()

    def device(self, resources: Resources) -> str:
        return "cuda" if _gpus(resources) > 0 else "cpu"

    def map_parts(self, work: Work, jobs: Iterable[Job], on_part: OnPart) -> None:
        waiting = deque(jobs)
        if not waiting:
            return
        options = _options(work.stage.resources)
        size = min(pool_size(work.stage.resources), len(waiting))
        if self._pool is None or not self._pool.serves(options, size):
            self._drop_pool()
            self._pool = _Pool(options, size, self._shared_mailbox())
        try:
            _Round(self._pool, work, self._lost_limit).run(waiting, on_part)
        except BaseException:
            self._drop_pool()  # its actors may still be busy
            raise

    def _shared_mailbox(self) -> Mailbox:
        if self._mailbox is None:
            self._mailbox = Mailbox()
        return self._mailbox

    def _drop_pool(self) -> None:
        if self._pool is not None:
            self._pool.close()
        self._pool = None

    def run_once(self, work: Work, part: PlannedPart, progress: Progress) -> PartFile:
        import ray

        self._drop_pool()  # it would keep the cores that this stage and its tasks need
        remote = ray.remote(_run_table).options(**_options(work.stage.resources), max_retries=0)
        for attempt in range(self._lost_limit):
            report = _ProgressReport(self._shared_mailbox(), f"progress/{part.fingerprint}/{attempt}")
            try:
                return _follow(remote.remote(work, part, report), report, progress)
            except _lost_errors():
                # It was killed, or its node was lost: it resumes from its checkpoints.
                time.sleep(min(2.0**attempt / 4, 5))
        raise BuildError(f"stage {work.stage.name!r} lost its worker {self._lost_limit} times")


def open_engine(executor: str, on_message: Callable[[str], Any] = print) -> Engine:
    """Return the engine of that name, `ray` or `inline`; if Ray does not start, show a message and work inline."""
    if executor == "inline":
        return InlineEngine()
    try:
        return RayEngine.start()
    except RayUnavailableError as error:
        on_message(f"Ray did not start ({error}); this process makes the parts, one after the other")
        return InlineEngine()


class _Pool:
    """A number of actors with the same resources. Stages that follow each other share it: starts cost seconds.

    An actor gets work once it has answered. An actor that dies is replaced, not restarted by Ray: if its resources were
    lost with its node, a restarted actor would wait for them forever, and so would its parts.
    """

    def __init__(self, options: dict[str, Any], size: int, mailbox: Mailbox) -> None:
        import ray

        self.mailbox = mailbox
        self._options = options
        self._size = size
        self._class: Any = ray.remote(_Actor).options(**options)
        self.ready: list[Any] = []
        self.starting: dict[Any, Any] = {}
        """The answer that is awaited -> the actor."""
        for _ in range(size):
            self._start()

    def _start(self) -> None:
        actor = self._class.remote(self.mailbox)
        self.starting[actor.answer.remote()] = actor

    def serves(self, options: dict[str, Any], size: int) -> bool:
        """Return whether a stage can use this pool: it has the same resources, and as many actors."""
        return options == self._options and size == self._size

    def answered(self, ref: Any) -> None:
        """Take an actor's first answer; if the actor died instead, start another."""
        import ray

        actor = self.starting.pop(ref)
        try:
            ray.get(ref)
        except _lost_errors():
            self._start()
        else:
            self.ready.append(actor)

    def lost(self, actor: Any) -> None:
        """Replace an actor that died or cannot be reached; once, however many of its parts report it."""
        import ray

        if actor in self.ready:
            self.ready.remove(actor)
            ray.kill(actor)
            self._start()

    def close(self) -> None:
        """Kill the actors."""
        import ray

        for actor in [*self.ready, *self.starting.values()]:
            ray.kill(actor)


class _Round:
    """One stage over its parts, with a bounded number in flight."""

    def __init__(self, pool: _Pool, work: Work, lost_limit: int) -> None:
        import ray

        self._name = work.stage.name
        self._lost_limit = lost_limit
        self._failures = Failures(self._name)
        self._lost: dict[str, int] = {}
        self._gone: set[Any] = set()
        """Lost actors whose loss was counted for the part that they were making."""
        self._pool = pool
        self._work = [ray.put(work)]  # in a list: as an argument of its own, Ray would unpack it at every call

    def run(self, waiting: deque[Job], on_part: OnPart) -> None:
        import ray

        flying: dict[Any, tuple[Any, Job]] = {}
        while waiting or flying:
            self._fill(waiting, flying)
            refs = [*flying, *self._pool.starting]
            done, rest = ray.wait(refs, num_returns=1, timeout=None)
            if rest:  # whatever else is ready: one call for many small parts
                done += ray.wait(rest, num_returns=len(rest), timeout=0)[0]
            for ref in done:
                if ref in self._pool.starting:
                    self._pool.answered(ref)
                    continue
                actor, job = flying[ref]
                oldest = next(other for other, (holder, _) in flying.items() if holder == actor)
                del flying[ref]
                if self._collect(ref, actor, job, on_part, running=ref == oldest):
                    waiting.append(job)
        self._failures.raise_if_any()

    def _fill(self, waiting: deque[Job], flying: dict[Any, tuple[Any, Job]]) -> None:
        """Give parts to the actors with the fewest, up to IN_FLIGHT each."""
        load = Counter(actor for actor, _ in flying.values())
        for held in range(IN_FLIGHT):
            for actor in self._pool.ready:
                if waiting and load[actor] == held:
                    job = waiting.popleft()
                    flying[actor.make.remote(self._work, job)] = (actor, job)
                    load[actor] += 1

    def _collect(self, ref: Any, actor: Any, job: Job, on_part: OnPart, running: bool) -> bool:
        """Take one result; return whether the part must be made again.

        `running`: whether the part is the oldest of its actor's, so the one that it was making, unless its actor was
        lost before. Only that part is counted, not those that were queued behind it.
        """
        import ray

        try:
            outcome = ray.get(ref)
        except _lost_errors() as error:
            self._pool.lost(actor)
            if passed := self._pool.mailbox.take(_limit_key(self._work, job)):
                raise QueryError(passed) from error
            counted = running and actor not in self._gone
            self._gone |= {actor} if running else set()
            lost = self._lost[job.part.fingerprint] = self._lost.get(job.part.fingerprint, 0) + counted
            if lost >= self._lost_limit:
                raise BuildError(
                    f"part {job.part.number} of {self._name!r} lost its worker {lost} times: {first_line(error)}"
                ) from error
            return True
        if isinstance(outcome, PartFile):
            on_part(job.part, outcome)
            return False
        fault, trace = outcome
        if isinstance(fault, UserError | DamagedError):
            raise fault
        return self._failures.add(job.part, fault, trace)


class _Actor:
    """Makes parts; holds nothing but the stage that it has opened."""

    def __init__(self, mailbox: Mailbox) -> None:
        from catalog.duck import on_stuck

        _quiet()
        self._mailbox = mailbox
        on_stuck(self._give_up)
        self._making = ""
        self._key: Any = None
        self._maker: PartMaker | None = None

    def _give_up(self, message: str) -> None:
        """End this process, as a statement passed a limit and cannot be interrupted; leave the message for the driver.

        In another thread: the one that makes the part does not come back.
        """
        try:
            self._mailbox.put(self._making, message, wait=True)
        finally:
            os._exit(1)

    def answer(self) -> None:
        """Return once the actor has started."""

    def make(self, work: list[Any], job: Job) -> PartFile | tuple[Exception, str]:
        """Return what was written, or the error with its traceback (as a value: Ray would wrap it)."""
        import ray

        self._making = _limit_key(work, job)
        try:
            if self._maker is None or self._key != work[0]:
                self._maker = None  # gives the last stage's model back before this one's is made
                self._maker, self._key = PartMaker(ray.get(work[0])), work[0]
            return self._maker.make(job)
        except Exception as error:  # noqa: BLE001  # a stage may raise anything
            return _portable(error), traceback.format_exc()


def _limit_key(work: list[Any], job: Job) -> str:
    """Return the key in the mailbox of the limit that one part of one round passed."""
    return f"limit/{work[0].hex()}/{job.part.fingerprint}"


def _portable(error: Exception) -> Exception:
    """Return an error that any process can unpickle."""
    import pickle

    try:
        pickle.loads(pickle.dumps(error))  # noqa: S301  # our own bytes, made in this very line
    except Exception:  # noqa: BLE001  # whatever its __reduce__ does
        return RuntimeError(f"{type(error).__name__}: {error}")
    return error


@dataclass(frozen=True)
class _ProgressReport:
    """Where a TableStage on another machine reports its progress."""

    mailbox: Mailbox
    key: str


def _run_table(work: Work, part: PlannedPart, report: _ProgressReport) -> PartFile | tuple[Exception, str]:
    """Run a TableStage, reporting its progress.

    In the task's main thread: only there does Ray lend its cores to the tasks that it waits for.
    """
    _quiet()
    reported_s = 0.0

    def progress(done: int, total: int, unit: str) -> None:
        nonlocal reported_s
        if time.monotonic() - reported_s > _PROGRESS_S or done >= total:
            reported_s = time.monotonic()
            report.mailbox.put(report.key, (done, total, unit))

    try:
        return make_table(work, part, _map_items, progress)
    except Exception as error:  # noqa: BLE001  # a stage may raise anything
        return _portable(error), traceback.format_exc()


def _follow(ref: Any, report: _ProgressReport, progress: Progress) -> PartFile:
    """Wait for a TableStage, showing its progress."""
    import ray

    ready: list[Any] = []
    while not ready:
        ready, _ = ray.wait([ref], timeout=_PROGRESS_S)
        if reported := report.mailbox.get(report.key):
            progress(*reported)
    report.mailbox.take(report.key)
    outcome = ray.get(ref)
    if isinstance(outcome, PartFile):
        return outcome
    error, trace = outcome
    if isinstance(error, UserError | BuildError):
        raise error
    raise PartError(f"{type(error).__name__}: {first_line(error)}", trace)


def _map_items(function: Callable[[T], R], items: Iterable[T]) -> Iterator[R]:
    """Apply a function to every item in Ray tasks, a bounded number at once; results in the items' order."""
    import ray

    remote: Any = ray.remote(_apply).options(num_cpus=1, max_retries=-1)
    shared = ray.put(function)
    limit = max(2, int(ray.cluster_resources().get("CPU", 1)) * 2)
    flying: deque[Any] = deque()
    for item in items:
        if len(flying) >= limit:
            yield ray.get(flying.popleft())
        flying.append(remote.remote(shared, item))
    while flying:
        yield ray.get(flying.popleft())


def _apply(function: Callable[[T], R], item: T) -> R:
    from flows.build.worker import limit_threads

    _quiet()
    limit_threads(1)
    return function(item)


def _lost_errors() -> tuple[type[Exception], ...]:
    """Return what Ray raises if a worker or its node is lost: the work was not done, and can be repeated."""
    from ray import exceptions

    return (
        exceptions.RayActorError,  # ActorDiedError, ActorUnavailableError
        exceptions.WorkerCrashedError,
        exceptions.LocalRayletDiedError,
        exceptions.NodeDiedError,
        exceptions.ObjectLostError,
    )


def _gpus(resources: Resources) -> float:
    import ray

    there = ray.cluster_resources().get("GPU", 0)
    if resources.gpus == "auto":
        return 1.0 if there >= 1 else 0.0
    if resources.gpus > there:
        raise UserError(
            f"a stage asks for {resources.gpus:g} GPUs an actor, the cluster has {there:g}: write `gpus: auto`"
        )
    return float(resources.gpus)


def _options(resources: Resources) -> dict[str, Any]:
    """Return Ray's options for one actor or task. More cores than any node has are asked for as all that it has."""
    import ray

    largest = max((n["Resources"].get("CPU", 0) for n in ray.nodes() if n["Alive"]), default=1.0)
    options: dict[str, Any] = {"num_cpus": min(resources.cpus, largest), "num_gpus": _gpus(resources)}
    if resources.memory_gb:
        options["memory"] = int(resources.memory_gb * (1 << 30))
    return options


def pool_size(resources: Resources) -> int:
    """Return how many actors fit, or as many as the stage asks for."""
    import ray

    if resources.actors:
        return resources.actors
    there = ray.cluster_resources()
    fit = there.get("CPU", 1) // resources.cpus
    gpus = _gpus(resources)
    return max(1, int(min(fit, there.get("GPU", 0) // gpus) if gpus else fit))


def _quiet() -> None:
    """Silence the libraries of a worker, which inherits no logging configuration."""
    logging.getLogger().setLevel(logging.WARNING)
