"""`espalier plan --probe N`: build N rows for real, in a catalog that is thrown away, and foretell the whole.

Three builds of rows from all over the source, no row twice: a small one that pays for imports and downloads of models
and is not counted, then a quarter of the rows, then all of them. Two sizes tell what grows from what does not
(`flows.estimate.forecast`). Stages whose settings need many rows get settings to match: k of `cluster`, `keep_rows`.

What a sample cannot show: rejections that need company. Duplicates are fewer in it than in the whole.
"""

import shutil
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from typing import Any, Final

from catalog.dataset import Catalog, Dataset
from catalog.errors import UserError
from catalog.parts import PartFile
from catalog.shards import FOLDER, shard_path
from catalog.storage import Storage
from flows.build import Order, display, run_stage
from flows.cluster import open_engine
from flows.display import Bar, Display, Displays
from flows.engine import Engine
from flows.estimate import Batch, Forecast, Measured, Size, Whole, as_measured, forecast
from flows.identity import Identities
from flows.plan import Plan, PlannedPart, PlannedStage, make_plan
from flows.recipe import Recipe
from tasks.sources import Chunk, Folder, Source
from tasks.stage import Resources, Stage, TableStage

LEAST_ROWS: Final = 16
WARM_UP: Final = 16
"""The first build has one row for so many of the probe."""
SMALL: Final = 4
"""The second has one for so many."""
_BATCHES: Final = 4
"""Parts of each build, at least: fewer tell nothing about their spread."""
_MOST_BATCHES: Final = 16
_ROWS_PER_CLUSTER: Final = 16
_CLUSTERS: Final = 500
"""Where a recipe does not say: `cluster`'s own default."""


@dataclass(frozen=True)
class Probe:
    """What was foretold, and from how much."""

    forecasts: tuple[Forecast, ...]
    rows: int
    """Rows of the source that were built to foretell from."""
    source_rows: int

    @property
    def is_whole(self) -> bool:
        """Whether the probe was the whole source, so that nothing is foretold."""
        return self.rows == self.source_rows


def probe(order: Order, rows: int, show: Display) -> Probe:
    """Build some rows of an order's source, and foretell what all of them take. Leaves nothing behind.

    Raises UserError for fewer than LEAST_ROWS rows, and where a stage cannot work on so few.
    """
    if rows < LEAST_ROWS:
        raise UserError(f"--probe {rows}: too few to tell anything from; give at least {LEAST_ROWS}")
    recipe = order.load()
    dataset = order.open(recipe, create=None)
    plan = make_plan(recipe, dataset)
    chunks = [Chunk(**dict(part.chunk or {})) for part in plan.stages[0].parts]
    source_rows = sum(chunk.rows for chunk in chunks)
    with _thrown_away(dataset) as catalog, open_engine(order.executor, show.message) as engine:
        runner = _Runner(plan, catalog, engine, show, source_rows)
        wholes = _wholes(plan, engine, source_rows)
        if source_rows <= rows + rows // SMALL + rows // WARM_UP:
            show.message(f"the source has {source_rows:,} rows, hardly more than the probe: it runs whole")
            made = runner.run("whole", chunks, source_rows)
            told = [as_measured(made[w.stage.name], w, recipe.prices) for w in wholes]
            return Probe(tuple(told), source_rows, source_rows)
        small, large = runner.both(chunks, rows)
    told = [forecast(small[w.stage.name], large[w.stage.name], w, recipe.prices) for w in wholes]
    return Probe(tuple(told), rows, source_rows)


class _Runner:
    """Builds samples of a recipe's source."""

    def __init__(self, plan: Plan, catalog: Catalog, engine: Engine, show: Display, source_rows: int) -> None:
        self._recipe = plan.recipe
        self._identify = Identities(plan.dataset)
        self._catalog = catalog
        self._engine = engine
        self._show = show
        self._source_rows = source_rows

    def both(self, chunks: Sequence[Chunk], rows: int) -> tuple[dict[str, Measured], dict[str, Measured]]:
        """Return what each stage took for a quarter of `rows`, and for `rows`."""
        batches = min(_MOST_BATCHES, max(_BATCHES, 2 * slots(self._engine, Resources())))
        sizes = [max(1, n // batches) for n in (rows // WARM_UP, rows // SMALL, rows)]
        pieces = sampled(self._recipe.source, chunks, sizes, batches, self._identify)
        made: list[dict[str, Measured]] = []
        for name, part in zip(("warm_up", "small", "large"), pieces, strict=True):
            count = sum(chunk.rows for chunk in part)
            about = "warming up, not counted" if name == "warm_up" else f"{len(made)} of 2"
            self._show.message(f"probe, {about}: {count:,} of {self._source_rows:,} rows")
            made.append(self.run(name, part, count))
        return made[1], made[2]

    def run(self, name: str, chunks: Sequence[Chunk], rows: int) -> dict[str, Measured]:
        """Build these chunks as a dataset of that name; return what each stage took."""
        stages: tuple[Stage, ...] = self._recipe.stages
        if name != "whole":
            stages = tuple(smaller(s, rows, self._source_rows, name == "warm_up") for s in stages)
        recipe = self._recipe.model_copy(update={"dataset": name, "stages": stages})
        dataset = self._catalog.dataset(name)
        plan = _plan_of(recipe, dataset, chunks)
        clock = _Clock()
        token = display.set(Displays(clock, self._show))
        try:
            # On the Ray that is there, but with actors of its own: starting them is part of a build.
            with open_engine(self._engine.name, self._show.message) as engine:
                for planned in plan.stages:
                    run_stage(plan, planned, engine, name)
        except UserError as error:
            if name == "whole":
                raise
            raise UserError(f"in a probe of {rows} rows: {error}; give --probe more rows") from error
        finally:
            display.reset(token)
        shards = _shard_bytes(dataset)
        size = Size(rows, clusters_of(recipe.stages))
        return {p.stage.name: self._measured(p, clock, shards, size, plan) for p in plan.stages}

    def _measured(
        self, planned: PlannedStage, clock: "_Clock", shards: Mapping[str, int], size: Size, plan: Plan
    ) -> Measured:
        rows = {part.number: part.rows or 0 for part in plan.stages[0].parts}
        batches = tuple(
            Batch(
                size.rows if part.number is None else rows[part.number],
                file.rows,
                file.bytes + shards.get(shard_path(part.number or 0, part.fingerprint).removesuffix(".tar"), 0),
                at_s,
            )
            for at_s, part, file in clock.parts[planned.stage.name]
        )
        seconds = clock.seconds[planned.stage.name]
        return Measured(planned.stage, size, seconds, _slots(self._engine, planned.stage), batches)


def sampled(
    source: Source, chunks: Sequence[Chunk], sizes: Sequence[int], batches: int, identify: Callable[[str], str]
) -> list[list[Chunk]]:
    """Return, for each size, `batches` stretches of that many rows, spread evenly over the source.

    No row is in two of them, but in a folder: its chunks are lists of files, which cannot be cut.
    """
    if isinstance(source, Folder):
        return [_of_folder(source, size, batches, identify) for size in sizes]
    total = sum(chunk.rows for chunk in chunks)
    found: list[list[Chunk]] = [[] for _ in sizes]
    for i in range(batches):
        at = i * total // batches
        for pieces, size in zip(found, sizes, strict=True):
            pieces += _cut(chunks, at, size)
            at += size
    return found


def _cut(chunks: Sequence[Chunk], start: int, rows: int) -> Iterator[Chunk]:
    """Yield the rows `start` .. `start + rows` of all chunks, in pieces that end where chunks end."""
    first = 0
    for chunk in chunks:
        begin, end = max(start, first), min(start + rows, first + chunk.rows)
        if begin < end:
            yield replace(chunk, start=chunk.start + begin - first, rows=end - begin)
        first += chunk.rows


def _of_folder(source: Folder, size: int, batches: int, identify: Callable[[str], str]) -> list[Chunk]:
    pieces = source.model_copy(update={"rows_per_part": size}).chunks(identify)
    count = min(batches, len(pieces))
    return [pieces[i * len(pieces) // count] for i in range(count)]


def smaller(stage: Stage, rows: int, source_rows: int, warm_up: bool) -> Stage:
    """Return a stage of a recipe that can work on `rows` rows: no more clusters or kept rows than they allow."""
    change: dict[str, Any] = {}
    levels = getattr(stage, "levels", None)
    if stage.use == "cluster" and levels:
        share = min(1.0, rows / _ROWS_PER_CLUSTER / levels[0])
        change["levels"] = tuple(max(len(levels) - i, round(k * share)) for i, k in enumerate(levels))
    elif stage.use == "cluster":
        k = getattr(stage, "k", None) or _CLUSTERS
        if isinstance(k, int):
            change["k"] = min(k, max(2, rows // _ROWS_PER_CLUSTER))
    if getattr(stage, "keep_rows", None):
        change["keep_rows"] = max(1, round(stage.keep_rows * rows / source_rows))  # type: ignore[attr-defined]
    if warm_up and isinstance(getattr(stage, "steps", None), int):
        change["steps"] = 1
    return stage.model_copy(update=change)


def clusters_of(stages: Sequence[Stage]) -> int:
    """Return how many clusters a recipe's `cluster` makes; 1 where it has none."""
    for stage in stages:
        if stage.use == "cluster":
            levels = getattr(stage, "levels", None)
            k = levels[0] if levels else getattr(stage, "k", None)
            return k if isinstance(k, int) else _CLUSTERS
    return 1


def slots(engine: Engine, resources: Resources) -> int:
    """Return how many parts of a stage with these resources are made at once."""
    if engine.name == "inline":
        return 1
    from flows.cluster import pool_size

    return pool_size(resources)


def _slots(engine: Engine, stage: Stage) -> int:
    return 1 if isinstance(stage, TableStage) else slots(engine, stage.resources)


def _wholes(plan: Plan, engine: Engine, source_rows: int) -> list[Whole]:
    size = Size(source_rows, clusters_of(plan.recipe.stages))
    found = []
    for planned in plan.stages:
        stage = planned.stage
        gpus = stage.resources.gpus
        each = float(engine.device(stage.resources) == "cuda") if gpus == "auto" else float(gpus)
        found.append(Whole(stage, size, len(planned.parts), _slots(engine, stage), each))
    return found


def _plan_of(recipe: Recipe, dataset: Dataset, chunks: Sequence[Chunk]) -> Plan:
    """Return the plan of a recipe over these chunks of its source alone."""
    source = recipe.source
    # A plan asks the source for its chunks: a source of the same fields that knows only these, and stays here.
    kind: Any = type(
        "Sampled", (type(source),), {"chunks": lambda self, identify: list(chunks), "__module__": __name__}
    )
    plan = make_plan(recipe.model_copy(update={"source": kind(**dict(source))}), dataset)
    first = replace(plan.stages[0], stage=source)
    return replace(plan, recipe=recipe, stages=(first, *plan.stages[1:]))


class _Clock(Display):
    """Notes when stages and their parts are done."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self.parts: dict[str, list[tuple[float, PlannedPart, PartFile]]] = {}

    @contextmanager
    def stage(self, planned: PlannedStage) -> Iterator[Bar]:
        began_s = time.monotonic()
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


@contextmanager
def _thrown_away(dataset: Dataset) -> Iterator[Catalog]:
    """Give a catalog inside the dataset's own, which all workers can reach; remove it, however the block ends."""
    name = f"_probe-{uuid.uuid4().hex[:12]}"
    base = Storage(dataset.storage.root)
    local = base.local(name)
    is_new = local is not None and not local.parent.exists()
    catalog = Catalog(f"{base.uri}/{name}", create=True)
    try:
        yield catalog
    finally:
        if local is None:
            base.delete(f"{name}/{path}" for path in catalog.storage.list())
        else:
            shutil.rmtree(local, ignore_errors=True)
            if is_new:
                with suppress(OSError):  # somebody else has begun to use it
                    local.parent.rmdir()
