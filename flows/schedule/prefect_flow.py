"""The Prefect side of a build: one flow, a task a stage, progress and table artifacts."""

import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import wraps
from typing import TYPE_CHECKING, Any, Final

from prefect import Flow, flow, tags, task
from prefect.artifacts import create_progress_artifact, create_table_artifact, update_progress_artifact
from prefect.cache_policies import NO_CACHE
from prefect.client.schemas.objects import State
from prefect.states import Failed

from catalog.errors import BalanceError, DamagedError, HeldError, PartError, UserError
from catalog.wording import amount
from flows.build.build import Outcome, build_here, run_stage
from flows.build.context import BuildContext
from flows.build.engine import Engine
from flows.build.plan import Plan, PlannedStage
from flows.build.progress import Bar, Display, Displays
from flows.build.spec import BuildSpec
from flows.schedule.dead_runs import own_tags, reap_dead_runs, tag_own_run

if TYPE_CHECKING:
    from catalog.parts import PartFile
    from catalog.version import Version
    from flows.build.plan import PlannedPart

RETRIES = 2
"""How often a stage is run again after a fault of the infrastructure. Its finished parts are not made again."""
HELD: Final = "Held"
"""The name of a run's state whose version is held; its type is FAILED."""
_UPDATE_S = 5.0


def build_flow(spec: BuildSpec, context: BuildContext) -> Outcome:
    """Run the flow for a local command, tagged with this process, so that a later build can find out that it died.

    The flow that runs is `build` over the spec and the context as they are: both are captured in a closure, so that
    the recipe is not resolved again, and the run records the parameters alone.
    """
    reap_dead_runs()

    @wraps(build.fn)
    def given(*_parameters: Any) -> Outcome | State[Outcome]:
        return _run(spec, context)

    local = Flow(given, name=build.name, flow_run_name=spec.checked.dataset, validate_parameters=False)
    with tags(*own_tags()), _end_not_logged():
        outcome = local(**spec.parameters())
    assert isinstance(outcome, Outcome)  # a state that failed is raised
    return outcome


_END_MESSAGES: Final = (
    "Encountered exception during execution",
    "Finished in state",
    "Crash detected!",
    "Task run failed with",
)
"""How Prefect's log messages on a run's end begin, some with a traceback."""


@contextmanager
def _end_not_logged() -> Iterator[None]:
    """Keep Prefect from logging how a run ended: the command prints one line, and --debug shows the traceback."""

    def is_news(record: logging.LogRecord) -> bool:
        return not str(record.msg).startswith(_END_MESSAGES)

    loggers = [logging.getLogger(name) for name in ("prefect.flow_runs", "prefect.task_runs")]
    for logger in loggers:
        logger.addFilter(is_news)
    try:
        yield
    finally:
        for logger in loggers:
            logger.removeFilter(is_news)


@flow(name="build", validate_parameters=False)
def build(
    recipe: str,
    name: str = "recipe",
    catalog: str | None = None,
    overrides: list[str] | None = None,
    executor: str = "ray",
    wait_s: float | None = 0.0,
    is_resolved: bool = False,
) -> Outcome | State[Outcome]:
    """Build a dataset from a recipe's text. What deployments run, too; theirs is resolved (`flows.schedule.deploy`).

    It ends as FAILED, called `Held`, where a guard holds the version.
    """
    tag_own_run()
    spec = BuildSpec(recipe, name, catalog, tuple(overrides or ()), executor, wait_s, is_resolved)
    return _run(spec, BuildContext())


def _run(spec: BuildSpec, context: BuildContext) -> Outcome | State[Outcome]:
    """Build with a Prefect task a stage, and progress as artifacts too."""
    shown = replace(context, display=Displays(context.display, _Artifacts()))
    try:
        return build_here(spec, shown, _as_task)
    except HeldError as held:  # a state of its own, with the reasons: nothing failed, and nothing is to be retried
        return Failed(name=HELD, message=str(held), data=held)


def _as_task(plan: Plan, planned: PlannedStage, engine: Engine, context: BuildContext) -> int:
    """Run a stage as a Prefect task of its name.

    Its arguments are captured in a closure, because Prefect traverses the arguments of tasks recursively.
    """
    name = planned.stage.name

    @task(
        name=name,
        task_run_name=name,
        retries=RETRIES,
        retry_delay_seconds=[2, 10],
        retry_condition_fn=_is_infrastructure,
        cache_policy=NO_CACHE,
        persist_result=False,
    )
    def stage() -> int:
        return run_stage(plan, planned, engine, context)

    return stage()


def _is_infrastructure(_task: Any, _run: Any, state: Any) -> bool:
    """Return whether a retry may help a failed stage: not if the user or the data are at fault."""
    try:
        state.result()
    except (UserError, DamagedError, PartError, BalanceError):
        return False
    except Exception:  # noqa: BLE001  # whatever else happened to the stage
        return True
    return False


class _Artifacts(Display):
    """Shows progress and results as Prefect artifacts, in its UI."""

    @contextmanager
    def stage(self, planned: PlannedStage) -> Iterator[Bar]:
        if not planned.missing:
            yield Bar()
            return
        artifact = create_progress_artifact(
            0.0, description=f"{planned.stage.name}: {amount(len(planned.missing), 'part')}"
        )
        bar = _ArtifactBar(artifact, len(planned.missing))
        yield bar
        bar.set(100.0)

    def published(self, version: "Version", report: str | None) -> None:
        rows = [
            {
                "stage": s["name"],
                "table": s["table"],
                "parts": s["parts"],
                "rows": s["rows"],
                "MB": round(s["bytes"] / 1e6, 2),
            }
            for s in version.stages
        ]
        where = f"; report: {report}" if report else ""
        create_table_artifact(rows, key=version.dataset.replace("_", "-"), description=f"{version.label}{where}")


class _ArtifactBar(Bar):
    def __init__(self, artifact: Any, parts: int) -> None:
        self._artifact = artifact
        self._parts = parts
        self._done = 0
        self._sent_s = time.monotonic()

    def part(self, part: "PlannedPart", file: "PartFile") -> None:
        self._done += 1
        self._update(100.0 * self._done / self._parts)

    def progress(self, done: int, total: int, unit: str) -> None:
        self._update(100.0 * done / max(total, 1))

    def _update(self, percent: float) -> None:
        if time.monotonic() - self._sent_s > _UPDATE_S:
            self.set(percent)

    def set(self, percent: float) -> None:
        """Send a percentage to the API."""
        self._sent_s = time.monotonic()
        update_progress_artifact(self._artifact, min(percent, 100.0))
