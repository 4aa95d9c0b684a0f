"""`espalier plan --probe N`: build N rows for real, in a catalog that is thrown away, and foretell the whole.

Four builds of rows from all over the source, no row twice: a small one that pays for imports and downloads of models
and is not counted, then a quarter of the rows, all of them, and a quarter again. Two sizes tell what grows from what
does not, and two builds of one size how much times vary (`flows.forecast.forecast`). Stages whose settings need many
rows get
settings to match: k of `cluster`, `keep_rows`.

What a sample cannot show: rejections that need company. Duplicates are fewer in it than in the whole. What a dataset
has built already is not counted: it is the whole that is foretold.
"""

import shutil
import time
import uuid
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from typing import Any, Final

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from catalog.dataset import Catalog, Dataset
from catalog.errors import UserError
from catalog.parts import PartFile
from catalog.shards import FOLDER, shard_path
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
from flows.forecast.forecast import (
    Batch,
    Measured,
    Probed,
    Told,
    Whole,
    as_measured,
    busy_slots,
    foretell,
)
from flows.recipe.recipe import Recipe
from tasks.sources import Chunk, Source, Survey
from tasks.stage import Resources, Size, Stage, TableStage

LEAST_ROWS: Final = 16
WARM_UP: Final = 16
"""The first build has one row for so many of the probe."""
SMALL: Final = 4
"""The second and the fourth have one for so many."""
_BATCHES: Final = 4
"""Parts of each build, at least: fewer tell nothing about their spread."""
_MOST_BATCHES: Final = 16
_BUILDS: Final = {"warm_up": WARM_UP, "before": SMALL, "large": 1, "after": SMALL}


@dataclass(frozen=True)
class Probe:
    """What was foretold, and from how much."""

    told: Told
    rows: int
    """Rows of the source that the largest build had."""
    source_rows: int
    notes: tuple[str, ...]
    """What should be known beside: rows that failed, and what a sample cannot show of this recipe."""

    @property
    def is_whole(self) -> bool:
        """Whether the probe was the whole source, so that nothing is foretold."""
        return self.rows == self.source_rows


def probe(spec: BuildSpec, rows: int, show: Display) -> Probe:
    """Build some rows of a recipe's source, and foretell what all of them take. Leaves nothing behind.

    Raises UserError for fewer than LEAST_ROWS rows, and where a stage cannot work on so few.
    """
    if rows < LEAST_ROWS:
        raise UserError(f"--probe {rows}: too few to tell anything from; give at least {LEAST_ROWS}")
    recipe = spec.checked
    dataset = spec.dataset(create=None)
    plan = make_plan(recipe, dataset)
    chunks = [Chunk(**dict(part.chunk or {})) for part in plan.stages[0].parts]
    source_rows = sum(chunk.rows for chunk in chunks)
    with _thrown_away(dataset) as catalog, open_engine(spec.executor, show.message) as engine:
        runner = _Runner(plan, catalog, engine, show, source_rows)
        wholes = _wholes(plan, engine, source_rows)
        batches = batches_of(rows, slots(engine, Resources()))
        if source_rows <= batches * sum(sizes_of(rows, batches)):
            show.message(f"the source has {amount(source_rows, 'row')}, hardly more than the probe: it runs whole")
            made = runner.run("whole", chunks, source_rows)
            told = as_measured([(made[w.stage.name], w) for w in wholes], recipe.prices)
            return Probe(told, source_rows, source_rows, runner.failed)
        before, large, after = runner.samples(chunks, rows, batches)
    built = next(iter(large.values())).size.rows
    probed = [Probed(before[w.stage.name], large[w.stage.name], after[w.stage.name], w) for w in wholes]
    return Probe(foretell(probed, recipe.prices), built, source_rows, (*runner.failed, *_cannot_show(recipe)))


def _cannot_show(recipe: Recipe) -> Iterator[str]:
    for stage in recipe.stages:
        yield from (f"{stage.name}: {caveat}" for caveat in stage.sampling_caveats())


class _Runner:
    """Builds samples of a recipe's source."""

    def __init__(self, plan: Plan, catalog: Catalog, engine: Engine, show: Display, source_rows: int) -> None:
        self._recipe = plan.recipe
        self._identify = Identities(plan.dataset)
        self._schema = plan.stages[0].schema
        self._catalog = catalog
        self._engine = engine
        self._show = show
        self._source_rows = source_rows
        self.failed: tuple[str, ...] = ()
        """Of the largest build: how many rows failed, and why."""

    def samples(self, chunks: Sequence[Chunk], rows: int, batches: int) -> list[dict[str, Measured]]:
        """Return what each stage took for a quarter of `rows`, for `rows`, and for another quarter."""
        pieces = sampled(self._recipe.source, chunks, sizes_of(rows, batches), batches, self._identify)
        made: list[dict[str, Measured]] = []
        for at, (name, part) in enumerate(zip(_BUILDS, pieces, strict=True)):
            count = sum(chunk.rows for chunk in part)
            about = f"{at} of {len(_BUILDS) - 1}" if at else "warming up, not counted"
            self._show.message(f"probe, {about}: {count:,} of {amount(self._source_rows, 'row')}")
            made.append(self.run(name, part, count))
        return made[1:]

    def run(self, name: str, chunks: Sequence[Chunk], rows: int) -> dict[str, Measured]:
        """Build these chunks as a dataset of that name; return what each stage took."""
        stages: tuple[Stage, ...] = self._recipe.stages
        if name != "whole":
            stages = tuple(s.reduced(rows, self._source_rows) for s in stages)
        recipe = self._recipe.model_copy(update={"dataset": name, "stages": stages})
        dataset = self._catalog.dataset(name)
        plan = _plan_of(recipe, dataset, chunks, self._schema)
        clock = _Clock()
        context = BuildContext(Displays(clock, self._show), name)
        try:
            # On the Ray that is there, but with actors of its own: starting them is part of a build.
            with open_engine(self._engine.name, self._show.message) as engine:
                for planned in plan.stages:
                    run_stage(plan, planned, engine, context)
        except UserError as error:
            if name == "whole":
                raise
            raise UserError(
                f"in the probe's build of {amount(rows, 'row')}: {error}; give --probe more rows"
            ) from error
        shards = _shard_bytes(dataset)
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
    ) -> Measured:
        rows = {part.number: part.rows or 0 for part in plan.stages[0].parts}
        batches = tuple(
            Batch(
                size.rows if part.number is None else rows[part.number],
                file.rows,
                file.bytes + shards.get(shard_path(part.number or 0, part.fingerprint).removesuffix(".tar"), 0),
                at_s,
                received.get(file.path, 0),
            )
            for at_s, part, file in clock.parts[planned.stage.name]
        )
        seconds = clock.seconds[planned.stage.name]
        return Measured(planned.stage, size, seconds, _slots(self._engine, planned.stage), batches)


def batches_of(rows: int, count: int) -> int:
    """Return how many parts each build has: to fill `count` slots twice, if no small build has an empty one then."""
    return min(_MOST_BATCHES, rows // SMALL, max(_BATCHES, 2 * count))


def sizes_of(rows: int, batches: int) -> list[int]:
    """Return the rows of a part of each build."""
    return [max(1, rows // share // batches) for share in _BUILDS.values()]


def sampled(
    source: Source, chunks: Sequence[Chunk], sizes: Sequence[int], batches: int, identify: Callable[[str], str]
) -> list[list[Chunk]]:
    """Return, for each size, `batches` stretches of that many rows, spread evenly over the source.

    No row is in two of them, unless chunks of the source cannot be cut (`Source.divisible`). Neighbouring rows are
    alike, so all stretches lie as far apart as they can.
    """
    if not source.divisible:
        return [_whole_chunks(source, size, batches, identify) for size in sizes]
    total = sum(chunk.rows for chunk in chunks)
    found: list[list[Chunk]] = [[] for _ in sizes]
    gap = max(0, total // batches - sum(sizes)) // len(sizes)
    for i in range(batches):
        at = i * total // batches
        for pieces, size in zip(found, sizes, strict=True):
            pieces += _cut(chunks, at, size)
            at += size + gap
    return found


def _cut(chunks: Sequence[Chunk], start: int, rows: int) -> Iterator[Chunk]:
    """Yield the rows `start` .. `start + rows` of all chunks, in pieces that end where chunks end."""
    first = 0
    for chunk in chunks:
        begin, end = max(start, first), min(start + rows, first + chunk.rows)
        if begin < end:
            yield replace(chunk, start=chunk.start + begin - first, rows=end - begin)
        first += chunk.rows


def _whole_chunks(source: Source, size: int, batches: int, identify: Callable[[str], str]) -> list[Chunk]:
    pieces = source.model_copy(update={"rows_per_part": size}).chunks(identify)
    count = min(batches, len(pieces))
    return [pieces[i * len(pieces) // count] for i in range(count)]


def slots(engine: Engine, resources: Resources) -> int:
    """Return how many parts of a stage with these resources are made at once."""
    if engine.name == "inline":
        return 1
    from flows.build.ray_engine import pool_size

    return pool_size(resources)


def _slots(engine: Engine, stage: Stage) -> int:
    return 1 if isinstance(stage, TableStage) else slots(engine, stage.resources)


def _wholes(plan: Plan, engine: Engine, source_rows: int) -> list[Whole]:
    size = Size.of(source_rows, plan.recipe.stages)
    rows = [part.rows or 0 for part in plan.stages[0].parts]
    found = []
    for planned in plan.stages:
        stage = planned.stage
        gpus = stage.resources.gpus
        each = float(engine.device(stage.resources) == "cuda") if gpus == "auto" else float(gpus)
        count = _slots(engine, stage)
        busy = 1.0 if isinstance(stage, TableStage) else busy_slots(rows, count)
        found.append(Whole(stage, size, len(planned.parts), count, busy, each))
    return found


def _plan_of(recipe: Recipe, dataset: Dataset, chunks: Sequence[Chunk], schema: pa.Schema) -> Plan:
    """Return the plan of a recipe over these chunks of its source alone."""
    source = recipe.source
    # A plan asks the source for its chunks: a source of the same fields that knows only these, and stays here.
    kind: Any = type(
        "Sampled",
        (type(source),),
        {"survey": lambda self, identify: Survey(list(chunks), schema, ()), "__module__": __name__},
    )
    plan = make_plan(recipe.model_copy(update={"source": kind(**dict(source))}), dataset)
    first = replace(plan.stages[0], stage=source)
    return replace(plan, recipe=recipe, stages=(first, *plan.stages[1:]))


class _Clock(Display):
    """Notes when stages and their parts are done."""

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


def _shard_bytes(dataset: Dataset) -> dict[str, int]:
    """Return the bytes of each shard and of what lies beside it, by its path without an ending."""
    found: dict[str, int] = {}
    for path, size in dataset.storage.list(FOLDER).items():
        folder, _, name = path.rpartition("/")
        stem = f"{folder}/{name.partition('.')[0].removesuffix('_stats')}"
        found[stem] = found.get(stem, 0) + size
    return found


def _fetched(dataset: Dataset, clock: _Clock) -> tuple[dict[str, int], Counter[str]]:
    """Return the bytes received by part, and how many rows failed for which reasons, of the stages that fail rows."""
    made = (part for name, parts in clock.parts.items() if clock.stages[name].fails_rows for part in parts)
    paths = [file.path for _, _, file in made]
    received, reasons = {}, Counter[str]()
    for path in paths:
        with dataset.storage.filesystem().open_input_file(path) as file, pq.ParquetFile(file) as part:
            rows = part.read(["received_bytes", "reason"])  # columns that the file lacks are left out
        if "received_bytes" in rows.column_names:
            received[path] = pc.sum(rows.column("received_bytes")).as_py() or 0
        reasons.update(reason for reason in rows.column("reason").to_pylist() if reason is not None)
    return received, reasons


def _failed(reasons: Counter[str], rows: int) -> tuple[str, ...]:
    if not reasons:
        return ()
    named = ", ".join(f"{reason} {count:,}" for reason, count in reasons.most_common(5))
    return (f"{reasons.total():,} of {amount(rows, 'row')} failed: {named}{', ...' if len(reasons) > 5 else ''}",)


@contextmanager
def _thrown_away(dataset: Dataset) -> Iterator[Catalog]:
    """Give a catalog inside the dataset's own, which all workers can reach; remove it, however the block ends."""
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
            with suppress(OSError):  # somebody else has begun to use one of them
                for folder in new:
                    folder.rmdir()
