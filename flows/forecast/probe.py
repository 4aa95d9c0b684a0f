"""`espalier plan --probe N`: build N rows in a temporary catalog, and forecast the build of the whole source.

A probe makes four builds of rows from all over the source, no row twice: a small one that pays for imports and
downloads of models and is not counted, then one of a quarter of the rows, one of all of them, and one of another
quarter. Two sizes separate what grows from what does not, and two builds of one size show how much times vary
(`flows.forecast.time_model`). Stages whose settings need many rows are reduced (`Stage.reduced`): k of a clustering,
rows to keep, training steps.

What a sample of rows cannot show of a stage is listed in the notes (`Stage.sampling_caveats`). Parts that the dataset
has already are not taken into account: the forecast is of a build of the whole source, from nothing.
"""

import shutil
import time
import uuid
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Final

import pyarrow.compute as pc
import pyarrow.parquet as pq

from catalog.dataset import Catalog, Dataset
from catalog.errors import UserError
from catalog.parts import PartFile
from catalog.shards import shard_path
from catalog.sizes import shard_bytes, stem_of
from catalog.storage import Storage
from catalog.wording import amount
from flows.build.build import run_stage
from flows.build.context import BuildContext
from flows.build.engine import Engine
from flows.build.plan import Plan, PlannedPart, PlannedStage, make_plan
from flows.build.progress import Bar, Display, Displays
from flows.build.ray_engine import open_engine
from flows.build.source_digests import Identities
from flows.build.spec import BuildSpec
from flows.forecast.forecast import Forecast, as_measured, forecast
from flows.forecast.measurements import MeasuredPart, MeasuredStage, ProbedStage, TargetStage, busy_slots
from flows.forecast.sampling import BUILDS, part_count, part_rows, sample_chunks
from flows.recipe.recipe import Recipe
from tasks.sources import Chunk, Survey
from tasks.stage import Resources, Size, Stage, TableStage

LEAST_ROWS: Final = 16


@dataclass(frozen=True)
class Probe:
    """A forecast, and how many rows it was made from."""

    forecast: Forecast
    rows: int
    """Rows of the source in the largest build."""
    source_rows: int
    notes: tuple[str, ...]
    """The rows that failed, and what a sample cannot show of this recipe."""

    @property
    def is_whole(self) -> bool:
        """Whether the probe built the whole source, so that nothing is extrapolated."""
        return self.rows == self.source_rows


def probe(spec: BuildSpec, rows: int, show: Display) -> Probe:
    """Build some rows of a recipe's source, and forecast the build of all of them. Leaves nothing behind.

    Raises UserError for fewer than LEAST_ROWS rows, and where a stage cannot work on so few.
    """
    if rows < LEAST_ROWS:
        raise UserError(f"--probe {rows}: too few rows for a forecast; give at least {LEAST_ROWS}")
    recipe = spec.checked
    dataset = spec.dataset(create=None)
    plan = make_plan(recipe, dataset)
    chunks = [Chunk(**dict(part.chunk or {})) for part in plan.stages[0].parts]
    source_rows = sum(chunk.rows for chunk in chunks)
    with _temporary_catalog(dataset) as catalog, open_engine(spec.executor, show.message) as engine:
        runner = _Runner(plan, catalog, engine, show, source_rows)
        targets = _targets(plan, engine, source_rows)
        parts = part_count(rows, slots(engine, Resources()))
        if source_rows <= parts * sum(part_rows(rows, parts)):
            show.message(f"the source has {amount(source_rows, 'row')}, hardly more than the probe: all are built")
            built = runner.run("whole", chunks, source_rows)
            found = as_measured([(built[t.stage.name], t) for t in targets], recipe.prices)
            return Probe(found, source_rows, source_rows, runner.failed)
        before, large, after = runner.samples(chunks, rows, parts)
    most = next(iter(large.values())).size.rows
    probed = [ProbedStage(before[t.stage.name], large[t.stage.name], after[t.stage.name], t) for t in targets]
    return Probe(forecast(probed, recipe.prices), most, source_rows, (*runner.failed, *_caveats(recipe)))


def _caveats(recipe: Recipe) -> Iterator[str]:
    for stage in recipe.stages:
        yield from (f"{stage.name}: {caveat}" for caveat in stage.sampling_caveats())


class _Runner:
    """Builds samples of the rows of a recipe's source."""

    def __init__(self, plan: Plan, catalog: Catalog, engine: Engine, show: Display, source_rows: int) -> None:
        self._recipe = plan.recipe
        self._versions = plan.versions
        self._identify = Identities(plan.dataset)
        self._schema = plan.stages[0].schema
        self._catalog = catalog
        self._engine = engine
        self._show = show
        self._source_rows = source_rows
        self.failed: tuple[str, ...] = ()
        """How many rows of the largest build failed, and why."""

    def samples(self, chunks: Sequence[Chunk], rows: int, parts: int) -> list[dict[str, MeasuredStage]]:
        """Return what was measured of each stage with a quarter of `rows`, with `rows`, and with another quarter."""
        samples = sample_chunks(self._recipe.source, chunks, part_rows(rows, parts), parts, self._identify)
        made: list[dict[str, MeasuredStage]] = []
        for at, (name, part) in enumerate(zip(BUILDS, samples, strict=True)):
            count = sum(chunk.rows for chunk in part)
            about = f"{at} of {len(BUILDS) - 1}" if at else "warming up, not counted"
            self._show.message(f"probe, {about}: {count:,} of {amount(self._source_rows, 'row')}")
            made.append(self.run(name, part, count))
        return made[1:]

    def run(self, name: str, chunks: Sequence[Chunk], rows: int) -> dict[str, MeasuredStage]:
        """Build these chunks as a dataset of that name; return what was measured of each stage."""
        stages: tuple[Stage, ...] = self._recipe.stages
        if name != "whole":
            stages = tuple(s.reduced(rows, self._source_rows) for s in stages)
        recipe = self._recipe.model_copy(update={"dataset": name, "stages": stages})
        dataset = self._catalog.dataset(name)
        plan = make_plan(recipe, dataset, survey=Survey(list(chunks), self._schema, ()), versions=self._versions)
        clock = _Clock()
        context = BuildContext(Displays(clock, self._show), name)
        try:
            # On the Ray that runs already, but with new actors, because starting them is part of a build.
            with open_engine(self._engine.name, self._show.message) as engine:
                for planned in plan.stages:
                    run_stage(plan, planned, engine, context)
        except UserError as error:
            if name == "whole":
                raise
            raise UserError(
                f"in the probe's build of {amount(rows, 'row')}: {error}; give --probe more rows"
            ) from error
        shards = shard_bytes(dataset)
        size = Size.of(rows, recipe.stages)
        received, reasons = _fetched(dataset, clock)
        if name not in ("before", "after"):
            self.failed = _failed(reasons, rows)
        return {p.stage.name: self._measured(p, clock, shards, received, size, plan) for p in plan.stages}

    def _measured(
        self,
        planned: PlannedStage,
        clock: "_Clock",
        shards: Mapping[str, int],
        received: Mapping[str, int],
        size: Size,
        plan: Plan,
    ) -> MeasuredStage:
        rows = {part.number: part.rows or 0 for part in plan.stages[0].parts}
        parts = tuple(
            MeasuredPart(
                size.rows if part.number is None else rows[part.number],
                file.rows,
                file.bytes + shards.get(stem_of(shard_path(part.number or 0, part.fingerprint)), 0),
                at_s,
                received.get(file.path, 0),
            )
            for at_s, part, file in clock.parts[planned.stage.name]
        )
        seconds = clock.seconds[planned.stage.name]
        return MeasuredStage(planned.stage, size, seconds, _slots(self._engine, planned.stage), parts)


def slots(engine: Engine, resources: Resources) -> int:
    """Return how many parts of a stage with these resources are made concurrently."""
    if engine.name == "inline":
        return 1
    from flows.build.ray_engine import pool_size

    return pool_size(resources)


def _slots(engine: Engine, stage: Stage) -> int:
    return 1 if isinstance(stage, TableStage) else slots(engine, stage.resources)


def _targets(plan: Plan, engine: Engine, source_rows: int) -> list[TargetStage]:
    """Return the stages as they are in the build that is forecast."""
    size = Size.of(source_rows, plan.recipe.stages)
    rows = [part.rows or 0 for part in plan.stages[0].parts]
    found = []
    for planned in plan.stages:
        stage = planned.stage
        gpus = stage.resources.gpus
        each = float(engine.device(stage.resources) == "cuda") if gpus == "auto" else float(gpus)
        count = _slots(engine, stage)
        busy = 1.0 if isinstance(stage, TableStage) else busy_slots(rows, count)
        found.append(TargetStage(stage, size, len(planned.parts), count, busy, each))
    return found


class _Clock(Display):
    """Records when stages and their parts end."""

    def __init__(self) -> None:
        self.stages: dict[str, Stage] = {}
        self.seconds: dict[str, float] = {}
        self.parts: dict[str, list[tuple[float, PlannedPart, PartFile]]] = {}

    @contextmanager
    def stage(self, planned: PlannedStage) -> Iterator[Bar]:
        began_s = time.monotonic()
        self.stages[planned.stage.name] = planned.stage
        parts = self.parts[planned.stage.name] = []
        yield _ClockBar(began_s, parts)
        self.seconds[planned.stage.name] = time.monotonic() - began_s


class _ClockBar(Bar):
    def __init__(self, began_s: float, parts: list[tuple[float, PlannedPart, PartFile]]) -> None:
        self._began_s = began_s
        self._parts = parts

    def part(self, part: PlannedPart, file: PartFile) -> None:
        self._parts.append((time.monotonic() - self._began_s, part, file))


def _fetched(dataset: Dataset, clock: _Clock) -> tuple[dict[str, int], Counter[str]]:
    """Return the bytes that each part received, and how many rows failed for each reason."""
    made = (part for name, parts in clock.parts.items() if clock.stages[name].fails_rows for part in parts)
    paths = [file.path for _, _, file in made]
    received, reasons = {}, Counter[str]()
    for path in paths:
        with dataset.storage.filesystem().open_input_file(path) as file, pq.ParquetFile(file) as part:
            rows = part.read(["received_bytes", "reason"])  # columns that the file lacks are skipped
        if "received_bytes" in rows.column_names:
            received[path] = pc.sum(rows.column("received_bytes")).as_py() or 0
        reasons.update(reason for reason in rows.column("reason").to_pylist() if reason is not None)
    return received, reasons


def _failed(reasons: Counter[str], rows: int) -> tuple[str, ...]:
    """Return one line that counts the rows that failed, with the commonest reasons; none where no row failed."""
    if not reasons:
        return ()
    named = ", ".join(f"{reason} {count:,}" for reason, count in reasons.most_common(5))
    return (f"{reasons.total():,} of {amount(rows, 'row')} failed: {named}{', ...' if len(reasons) > 5 else ''}",)


@contextmanager
def _temporary_catalog(dataset: Dataset) -> Iterator[Catalog]:
    """Yield a catalog inside the dataset's own, which all workers can reach; remove it, however the block ends."""
    name = f"_probe-{uuid.uuid4().hex[:12]}"
    base = Storage(dataset.storage.root)
    local = base.local(name)
    new = [folder for folder in local.parents if not folder.exists()] if local else []
    catalog = Catalog(f"{base.uri}/{name}", create=True)
    try:
        yield catalog
    finally:
        if local is None:
            base.delete(f"{name}/{path}" for path in catalog.storage.list())
        else:
            shutil.rmtree(local, ignore_errors=True)
            with suppress(OSError):  # another process has begun to use one of them
                for folder in new:
                    folder.rmdir()
