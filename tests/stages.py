"""Stages for tests of the engine: as small as the contracts allow, and some that misbehave."""

import hashlib
import os
import signal
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, ClassVar, Literal, cast

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from catalog.dataset import Catalog, Dataset
from catalog.decisions import decisions
from catalog.inputs import Inputs
from catalog.parts import PartFile
from catalog.schema import DECISIONS, SAMPLE_ID
from flows.build.engine import Engine
from flows.build.plan import Plan, PlannedPart, PlannedStage, make_plan
from flows.build.worker import jobs_of, work_of
from flows.recipe.recipe import Recipe
from tasks.sources import Parquet
from tasks.stage import Batches, Columns, MapStage, Run, Stage, Step, Tables, TableStage


def write_source(folder: Path, files: int = 2, rows: int = 5, first: int = 0) -> Path:
    """Write a LAION-style source: `files` Parquet files of `rows` rows each."""
    folder.mkdir(parents=True, exist_ok=True)
    for i in range(first, first + files):
        urls = [f"http://h/{i}/{j}.jpg" for j in range(rows)]
        pq.write_table(
            pa.table({"URL": urls, "TEXT": [f"caption {i} {j}" for j in range(rows)]}), folder / f"{i:04d}.parquet"
        )
    return folder


def recipe_of(
    folder: Path, *stages: Stage, rows_per_part: int = 5, seed: int = 0, versions: Mapping[str, str] | None = None
) -> Recipe:
    """Return a recipe over stages that the unions do not know."""
    source = Parquet(use="parquet", path=str(folder), rows_per_part=rows_per_part)
    return Recipe.model_construct(
        dataset="tiny",
        description="",
        catalog=None,
        seed=seed,
        prices=None,
        versions=dict(versions or {}),
        source=source,
        stages=cast(Any, tuple(stages)),
    )


def dataset_in(folder: Path) -> Dataset:
    """Return the dataset `tiny` in a catalog."""
    return Catalog(folder, create=True).dataset("tiny")


class Lengths(MapStage):
    """Writes the caption's length, times `times`."""

    use: str = "lengths"
    table: ClassVar[str] = "lengths"
    times: int = 1

    def inputs(self, available: Tables) -> Columns:
        return {"source": ("caption",)}

    def output(self, available: Tables) -> pa.Schema:
        return pa.schema([SAMPLE_ID, pa.field("length", pa.int64())])

    def open(self, device: str, sides: Mapping[str, pa.Table]) -> Step:
        def step(batches: Iterator[pa.Table]) -> Batches:
            for batch in batches:
                length = pc.multiply(pc.utf8_length(batch.column("caption")).cast(pa.int64()), self.times)
                yield pa.table([batch.column("sample_id"), length], names=["sample_id", "length"])

        return step


class Views(Lengths):
    """Writes `times` rows a sample, numbered, as views of an image are."""

    use: str = "views"
    table: ClassVar[str] = "views"
    rows_per_sample = "several"
    fault: bool = False

    def output(self, available: Tables) -> pa.Schema:
        return pa.schema([SAMPLE_ID, pa.field("view", pa.int64())])

    def open(self, device: str, sides: Mapping[str, pa.Table]) -> Step:
        def step(batches: Iterator[pa.Table]) -> Batches:
            for batch in batches:
                ids = [i for i in batch.column("sample_id").to_pylist() for _ in range(self.times)]
                ids = ids[self.times :] if self.fault else ids
                yield pa.table({"sample_id": ids, "view": [at % self.times for at in range(len(ids))]})

        return step


class Misbehaving(Lengths):
    """Does something wrong with part 1."""

    use: str = "misbehaving"
    fault: Literal["raise", "lose", "double", "swap", "die", "die_once"] = "raise"
    marker: str = ""

    def open(self, device: str, sides: Mapping[str, pa.Table]) -> Step:
        good = super().open(device, sides)

        def step(batches: Iterator[pa.Table]) -> Batches:
            for rows in good(batches):
                bad = rows.column("sample_id")[0].as_py() >> 24 == 1
                yield self._spoilt(rows) if bad else rows

        return step

    def _spoilt(self, rows: pa.Table) -> pa.Table:
        if self.fault == "raise":
            raise RuntimeError("a fault of the stage")
        if self.fault == "lose":
            return rows.slice(1)
        if self.fault == "double":
            return pa.concat_tables([rows, rows.slice(0, 1)])
        if self.fault == "swap":
            return rows.take(list(reversed(range(rows.num_rows))))
        first_time = not Path(self.marker).exists()
        Path(self.marker).touch()
        if self.fault == "die" or first_time:
            os.kill(os.getpid(), signal.SIGKILL)
        return rows


class Slow(Lengths):
    """Takes `pause_s` a part."""

    use: str = "slow"
    pause_s: float = 0.1

    def open(self, device: str, sides: Mapping[str, pa.Table]) -> Step:
        good = super().open(device, sides)

        def step(batches: Iterator[pa.Table]) -> Batches:
            time.sleep(self.pause_s)
            yield from good(batches)

        return step


class Reporting(TableStage):
    """Reports progress, is killed the first time where there is no `marker` yet, and writes no row."""

    use: str = "reporting"
    table: ClassVar[str] = "facts"
    rows_per_sample = "none"
    marker: str = ""

    def inputs(self, available: Tables) -> Columns:
        return {"source": ("url",)}

    def output(self, available: Tables) -> pa.Schema:
        return pa.schema([("fact", pa.string())])

    def run(self, inputs: Inputs, run: Run) -> Batches:
        run.progress(1, 4, "steps")
        if self.marker and not Path(self.marker).exists():
            Path(self.marker).touch()
            os.kill(os.getpid(), signal.SIGKILL)
        run.progress(4, 4, "steps")
        yield self.output({}).empty_table()


class DropOdd(TableStage):
    """Rejects every row whose length is odd; notes the sum, computed over parts."""

    use: str = "drop_odd"
    table: ClassVar[str] = "decisions"
    shares_table = True
    verdict = "keep"
    odd_is: int = 1
    """A field that changes nothing but the fingerprint."""

    def inputs(self, available: Tables) -> Columns:
        return {"lengths": ("length",)}

    def output(self, available: Tables) -> pa.Schema:
        return DECISIONS

    def run(self, inputs: Inputs, run: Run) -> Batches:
        run.note(total=run.reduce(Total(), {"lengths": ("length",)}), squares=list(run.map(_square, range(5))))
        rows = inputs.table({"lengths": ["length"]})
        run.progress(rows.num_rows, rows.num_rows)
        odd = pc.equal(pc.bit_wise_and(rows.column("length"), 1), 1).combine_chunks()
        count = rows.num_rows
        reason = pc.if_else(odd, "odd", None).cast(pa.string())
        yield decisions(rows.column("sample_id"), self.name, reason, pa.nulls(count, pa.string()))


class Total:
    """The sum of a column, as a reducer."""

    def __init__(self, column: str = "length") -> None:
        self.column = column

    def init(self) -> int:
        return 0

    def update(self, state: int, batch: pa.Table) -> int:
        return state + int(pc.sum(batch.column(self.column)).as_py())

    def merge(self, one: int, other: int) -> int:
        return one + other

    def compute(self, state: int) -> int:
        return state


def _square(number: int) -> int:
    return number * number


class ReadsVersions(TableStage):
    """Lists the samples of versions of other datasets: the digest of their stored bytes, and their caption."""

    use: str = "reads_versions"
    table: ClassVar[str] = "listed"
    rows_per_sample = "none"
    reads_versions = True
    of: tuple[str, ...] = ("real",)

    def inputs(self, available: Tables) -> Columns:
        columns = {f"{name}.images": ("image", "width") for name in self.of}
        return columns | {f"{name}.source": ("caption",) for name in self.of}

    def output(self, available: Tables) -> pa.Schema:
        return pa.schema(
            [("version", pa.string()), ("sample", pa.int64()), ("sha256", pa.string()), ("caption", pa.string())]
        )

    def run(self, inputs: Inputs, run: Run) -> Batches:
        for name in self.of:
            width = run.reduce(Total("width"), {f"{name}.images": ("width",)})
            counted = inputs.sql(f"select count(*) as n from {name}.images").column("n")[0].as_py()
            run.note(**{f"{name}_width": width, f"{name}_rows": counted})
            for rows in inputs.batches({f"{name}.images": ["image"], f"{name}.source": ["caption"]}, 2):
                digests = [hashlib.sha256(data).hexdigest() for data in rows.column("image").to_pylist()]
                columns = [[name] * rows.num_rows, rows.column("sample_id"), digests, rows.column("caption")]
                yield pa.table(columns, schema=self.output({}))


class OfVersion(Lengths):
    """Writes, for each row, how many captions of another dataset's version are as long as its own."""

    use: str = "of_version"
    table: ClassVar[str] = "alike"
    reads_versions = True

    def sides(self, available: Tables) -> tuple[str, ...]:
        return ("real.source",)

    def open(self, device: str, sides: Mapping[str, pa.Table]) -> Step:
        good = super().open(device, sides)
        known = pc.utf8_length(sides["real.source"].column("caption")).cast(pa.int64()).to_pylist()

        def step(batches: Iterator[pa.Table]) -> Batches:
            for rows in good(batches):
                alike = pa.array([known.count(length) for length in rows.column("length").to_pylist()], pa.int64())
                yield rows.set_column(1, "length", alike)

        return step


def plan_of(tmp_path: Path, *stages: Stage) -> Plan:
    write_source(tmp_path / "urls", files=4)
    return make_plan(recipe_of(tmp_path / "urls", *stages), dataset_in(tmp_path / "catalog"))


def make_parts(engine: Engine, plan: Plan, planned: PlannedStage) -> dict[int | None, PartFile]:
    made: dict[int | None, PartFile] = {}

    def on_part(part: PlannedPart, file: PartFile) -> None:
        made[part.number] = file

    work = work_of(planned, plan.dataset.storage, engine.device(planned.stage.resources), 0)
    if planned.parts[0].number is None:
        on_part(planned.parts[0], engine.run_once(work, planned.parts[0], lambda *_: None))
    else:
        engine.map_parts(work, jobs_of(planned), on_part)
    return made


def content(dataset: Dataset, version: Any = None) -> dict[str, list[dict[str, Any]]]:
    """Return every row of every table of a version, sorted: what must not depend on how it was made."""
    import duckdb

    version = version or dataset.version()
    found = {}
    for table in version.tables:
        files = [str(dataset.storage.local(f.path)) for f in dataset.files(version, table)]
        rows = (
            duckdb.default_connection()
            .sql(f"select * from read_parquet({files!r}, union_by_name=true) order by all")
            .to_arrow_table()
            if files
            else pa.table({})
        )
        found[table] = rows.to_pylist()
    return found
