"""Engines, which make parts: in this process, or on Ray. Both make the same tables.

    map_parts     a MapStage over parts, on a pool of actors: streamed, bounded in flight, failed parts retried
    run_once      one TableStage, with the resources that it asks for

Plain Ray actors, not Ray Data: a file of a known name a part gives resume for free. Actors hold nothing but the
model, and a part is on disk before it is acknowledged, so whatever dies, only parts in flight are made again.
"""

import traceback
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable

from catalog.errors import DamagedError, PartError, UserError, first_line
from catalog.parts import PartFile
from catalog.wording import amount
from flows.build.plan import PlannedPart
from flows.build.worker import Job, PartMaker, Progress, Work, make_table, one_by_one
from tasks.stage import Resources

ATTEMPTS = 3
"""How often a part is tried that fails with an error of its stage."""

OnPart = Callable[[PlannedPart, PartFile], None]


class Engine(ABC):
    """Runs stages. Use it as a context manager."""

    name: str

    def __enter__(self) -> "Engine":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:  # noqa: B027  # nothing to release, unless a subclass holds something
        """Release its resources."""

    @abstractmethod
    def device(self, resources: Resources) -> str:
        """Return `cuda` or `cpu`: what an actor with these resources gets."""

    @abstractmethod
    def map_parts(self, work: Work, jobs: Iterable[Job], on_part: OnPart) -> None:
        """Make every part; call `on_part` for each that is done. Raises PartError after all others are done."""

    @abstractmethod
    def run_once(self, work: Work, part: PlannedPart, progress: Progress) -> PartFile:
        """Run a TableStage."""


class InlineEngine(Engine):
    """Runs stages in this process, one part after the other: for tests and small data."""

    name = "inline"

    def device(self, resources: Resources) -> str:
        if resources.gpus == 0:
            return "cpu"
        import torch

        return "cuda" if torch.cuda.is_available() else "cpu"

    def map_parts(self, work: Work, jobs: Iterable[Job], on_part: OnPart) -> None:
        maker = PartMaker(work)
        failures = Failures(work.stage.name)
        for job in jobs:
            for _ in range(ATTEMPTS):
                try:
                    on_part(job.part, maker.make(job))
                    break
                except (UserError, DamagedError):
                    raise
                except Exception as error:  # noqa: BLE001  # a stage may raise anything; the other parts go on
                    failures.add(job.part, error, traceback.format_exc())
        failures.raise_if_any()

    def run_once(self, work: Work, part: PlannedPart, progress: Progress) -> PartFile:
        return make_table(work, part, one_by_one, progress)


class Failures:
    """Counts the failures of parts, and records the last error of each."""

    def __init__(self, stage: str) -> None:
        self._stage = stage
        self._counts: dict[str, int] = {}
        self._last: dict[str, tuple[PlannedPart, str, str]] = {}

    def add(self, part: PlannedPart, error: BaseException, trace: str) -> bool:
        """Count a failure; return whether the part may be tried again."""
        count = self._counts[part.fingerprint] = self._counts.get(part.fingerprint, 0) + 1
        if count < ATTEMPTS:
            return True
        self._last[part.fingerprint] = (part, f"{type(error).__name__}: {first_line(error)}", trace)
        return False

    def raise_if_any(self) -> None:
        """Raise PartError that names the failed parts, with the worker's traceback."""
        if not self._last:
            return
        shown = [f"part {part.number}: {line}" for part, line, _ in list(self._last.values())[:3]]
        more = f" and {len(self._last) - 3} more" if len(self._last) > 3 else ""
        trace = next(iter(self._last.values()))[2]
        raise PartError(
            f"stage {self._stage!r}: {amount(len(self._last), 'part')} failed {ATTEMPTS} times "
            f"({'; '.join(shown)}{more}); the others are finished and kept: mend the cause and build again",
            trace,
        )
