"""Make one part: read its input, run the stage, write the output; in this process or, by the same code, on Ray."""

import shutil
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Protocol, TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from catalog import work as work_files
from catalog.errors import BalanceError, StoredImageError, UserError
from catalog.inputs import Inputs
from catalog.parts import PartFile, PartWriter, describe_part, number_rows
from catalog.pieces import Piece, Pieces, read_parquet
from catalog.storage import Storage
from catalog.takedown.ledger import Ledger
from catalog.wording import amount
from flows.build.plan import PlannedPart, PlannedStage
from tasks.files.digest import Digested, check_unchanged
from tasks.sources import Chunk, Notes
from tasks.stage import Columns, MapStage, Reducer, Stage, Step, TableStage
from tasks.vectors.seeds import derived_seed

T = TypeVar("T")
R = TypeVar("R")
Progress = Callable[[int, int, str], None]

SOURCE_NOTES = "source"
"""Among the notes of a part of the source: what became of its values, a list of (count, what, example)."""
LOST = "lost:"
"""What a reason of a retry begins with that means no reason: rows whose shard is lost (`flows.build.mend`)."""


class MapFunction(Protocol):
    """Applies a picklable function to every item, on the cluster or in this process; results in the items' order."""

    def __call__(self, function: Callable[[T], R], items: Iterable[T]) -> Iterator[R]: ...


def one_by_one(function: Callable[[T], R], items: Iterable[T]) -> Iterator[R]:
    """Apply a function to every item in this process, one after the other: a `MapFunction`."""
    return map(function, items)


@dataclass(frozen=True)
class Work:
    """Everything about one stage that its workers share: sent once an actor, not once a part."""

    stage: Stage
    schema: pa.Schema
    columns: Columns
    tables: Mapping[str, Pieces]
    """Tables of which every part is read whole (sides, and what an earlier TableStage wrote); others without pieces."""
    judges: tuple[Pieces, ...]
    storage: Storage
    device: str
    seed: int
    files: Mapping[str, Digested] = field(default_factory=dict)
    """The local files that the stage's parameters name, as they were when they were planned."""
    before: tuple[str, ...] = ()
    """Names of the stages before it, in order."""
    kept: Mapping[str, Pieces] = field(default_factory=dict)
    """The samples of the versions of other datasets of which it reads tables, by the recipe's name."""

    @property
    def sides(self) -> tuple[str, ...]:
        """The side tables: those of which the stage reads every row, beside its input."""
        return tuple(name for name in self.tables if name not in self.columns)


@dataclass(frozen=True)
class Job:
    """One part to make: its fingerprint, and the pieces that are its own."""

    part: PlannedPart
    tables: Mapping[str, tuple[Piece, ...]]
    judges: tuple[tuple[Piece, ...], ...]


def work_of(planned: PlannedStage, storage: Storage, device: str, recipe_seed: int) -> Work:
    """Return what the workers of a stage share."""
    keep_all = isinstance(planned.stage, TableStage)
    return Work(
        planned.stage,
        planned.schema,
        planned.columns,
        {name: _shared(pieces, keep_all or name in planned.sides) for name, pieces in planned.reads.items()},
        tuple(_shared(judge, keep_all) for judge in planned.judges),
        storage,
        device,
        derived_seed(recipe_seed, planned.stage.name),
        planned.files,
        planned.before,
        planned.kept,
    )


def jobs_of(planned: PlannedStage) -> Iterator[Job]:
    """Yield the parts that do not exist yet."""
    own = {name: _by_number(pieces) for name, pieces in planned.reads.items()}
    judging = [_by_number(judge) for judge in planned.judges]
    for part in planned.missing:
        tables = {name: pieces.get(part.number, ()) for name, pieces in own.items() if name in planned.columns}
        yield Job(part, tables, tuple(judge.get(part.number, ()) for judge in judging))


def _shared(pieces: Pieces, keep_all: bool) -> Pieces:
    return Pieces(pieces.schema, tuple(p for p in pieces.pieces if keep_all or p.number is None))


def _by_number(pieces: Pieces) -> dict[int | None, tuple[Piece, ...]]:
    found: dict[int | None, list[Piece]] = {}
    for piece in pieces.pieces:
        if piece.number is not None:
            found.setdefault(piece.number, []).append(piece)
    return {number: tuple(mine) for number, mine in found.items()}


class PartMaker:
    """Makes parts of one MapStage. The stage is opened for the first part and is reused."""

    def __init__(self, work: Work) -> None:
        self._work = work
        self._step: Step | None = None
        self._taken = Ledger.read(work.storage)

    def make(self, job: Job) -> PartFile:
        """Make one part; return what was written.

        Raises BalanceError if rows were lost, doubled or reordered, and DamagedError if a stored image differs from
        what was written.
        """
        inputs = self._inputs(job)
        with _reading(self._work, job.part):
            try:
                return self._make(job, inputs)
            except StoredImageError as error:
                from tasks.images import decode_fault

                inputs.check_stored(error.sample_id, decode_fault, error.table)
                return self._make(job, inputs.trusting())  # its bytes are as written: this decoder differs

    def _make(self, job: Job, inputs: Inputs) -> PartFile:
        for path, reasons in job.part.earlier:
            if self._work.storage.exists(path):
                return self._retry(job, inputs, path, reasons)
        return self._write(job.part, self._batches(job, inputs))

    def _inputs(self, job: Job) -> Inputs:
        work = self._work
        own = {n: Pieces(t.schema, (*job.tables.get(n, ()), *t.pieces)) for n, t in work.tables.items()}
        pairs = zip(work.judges, job.judges, strict=True)
        return Inputs(own, [Pieces(t.schema, (*mine, *t.pieces)) for t, mine in pairs], work.storage, work.kept)

    def _batches(self, job: Job, inputs: Inputs) -> Iterator[pa.Table]:
        if job.part.chunk is not None:
            return iter([Chunk(**job.part.chunk).table()])
        return inputs.batches(self._work.columns, self._work.stage.resources.batch_rows)

    def _open(self) -> Step:
        if self._step is None:
            stage = self._work.stage
            assert isinstance(stage, MapStage)
            inputs = Inputs(self._work.tables, (), self._work.storage, self._work.kept)
            self._step = stage.open(self._work.device, {name: inputs.whole(name) for name in self._work.sides})
            limit_threads(stage.resources.cpus)
        return self._step

    def _write(self, part: PlannedPart, batches: Iterator[pa.Table]) -> PartFile:
        stage, step = self._work.stage, self._open()
        seen: list[np.ndarray] = []
        made: list[np.ndarray] = []
        found = Notes()
        writer = PartWriter(self._work.storage, stage.table, part.fingerprint, self._work.schema, part.number or 0)
        with writer:
            for piece in step(_watched(batches, seen)):
                rows = self._without_taken(piece)
                if part.chunk is not None:
                    found.add_all(piece.schema)
                    rows = number_rows(rows, part.number or 0, writer.rows)
                made.append(rows.column("sample_id").to_numpy())
                writer.write(rows)
            if part.chunk is None:
                several = stage.rows_per_sample == "several"
                check_balance(f"part {part.number} of {stage.name!r}", seen, [_once(made)] if several else made)
            if notes := found.all():
                writer.notes[SOURCE_NOTES] = notes
            _check_files(self._work, part)
        return writer.part()

    def _without_taken(self, piece: pa.Table) -> pa.Table:
        """Return what a step yielded, without the content of rows that were taken down."""
        return self._taken.hide(self._work.stage.table, piece)

    def _retry(self, job: Job, inputs: Inputs, path: str, reasons: Sequence[str]) -> PartFile:
        """Try the rows of some reasons, or of lost shards, again; the others are copied from an earlier attempt."""
        before = read_parquet(self._work.storage, path)
        lost = [reason.removeprefix(LOST) for reason in reasons if reason.startswith(LOST)]
        again = pc.fill_null(pc.is_in(before.column("reason"), pa.array(reasons)), False)
        again = pc.or_(again, pc.is_in(before.column("shard"), pa.array(lost, pa.string()), skip_nulls=True))
        wanted = before.filter(again).column("sample_id")
        batches = (
            b.filter(pc.is_in(b.column("sample_id"), wanted.combine_chunks())) for b in self._batches(job, inputs)
        )
        stage, step = self._work.stage, self._open()
        kept = before.filter(pc.invert(again))
        part = job.part
        writer = PartWriter(self._work.storage, stage.table, part.fingerprint, self._work.schema, part.number or 0)
        with writer:
            files = describe_part(self._work.storage, path).files
            writer.write_merged(kept, map(self._without_taken, step(b for b in batches if b.num_rows)), files)
            if writer.rows != before.num_rows:
                raise BalanceError(f"a retry of {stage.name!r} gave {amount(writer.rows, 'row')} for {before.num_rows}")
            _check_files(self._work, part)
        return writer.part()


def make_table(work: Work, part: PlannedPart, map_items: MapFunction, progress: Progress) -> PartFile:
    """Run a TableStage; return the part that it wrote."""
    stage = work.stage
    assert isinstance(stage, TableStage)
    inputs = Inputs(work.tables, work.judges, work.storage, work.kept)
    limit_threads(stage.resources.cpus)
    with _folders(work.storage, part.fingerprint) as (scratch, checkpoints), _reading(work, part):
        run = StageRun(work, inputs, map_items, progress, scratch, checkpoints)
        made: list[np.ndarray] = []
        with PartWriter(work.storage, stage.table, part.fingerprint, work.schema) as writer:
            for piece in stage.run(inputs, run):
                if stage.rows_per_sample == "one":
                    made.append(piece.column("sample_id").to_numpy())
                writer.write(piece)
            if stage.rows_per_sample == "one":
                check_balance(f"{stage.name!r}", [inputs.ids()], made)
            writer.notes |= run.notes
            _check_files(work, part)
        shutil.rmtree(checkpoints, ignore_errors=True)
    return writer.part()


def _check_files(work: Work, part: PlannedPart) -> None:
    """Raise UserError if a local file that a part is made from changed after the part was planned.

    Called before the part appears, so nothing that was read of another content is under the planned fingerprint.
    """
    check_unchanged(work.files)
    if part.origin is not None:
        part.origin.check_unchanged()


@contextmanager
def _reading(work: Work, part: PlannedPart) -> Iterator[None]:
    """Replace an error by one that names the file that changed while it was read, if one did."""
    try:
        yield
    except Exception as error:
        try:
            _check_files(work, part)
        except UserError as changed:
            raise changed from error
        raise


class StageRun:
    """What a TableStage may use of the process in which it runs: a `tasks.stage.Run`."""

    def __init__(
        self, work: Work, inputs: Inputs, map_items: MapFunction, progress: Progress, scratch: Path, checkpoints: Path
    ) -> None:
        self.seed = work.seed
        self.device = work.device
        self.stages = work.before
        self.scratch = scratch
        self.checkpoints = checkpoints
        self.notes: dict[str, Any] = {}
        self._inputs = inputs
        self._map = map_items
        self._progress = progress

    def progress(self, done: int, total: int, unit: str = "rows") -> None:
        self._progress(done, total, unit)

    def note(self, **facts: Any) -> None:
        self.notes |= facts

    def map(self, function: Callable[[T], R], items: Iterable[T]) -> Iterator[R]:
        return self._map(function, items)

    def reduce(self, reducer: Reducer[Any, R], columns: Columns) -> R:
        return reduce_parts(self._inputs, reducer, columns, self._map)


def reduce_parts(inputs: Inputs, reducer: Reducer[Any, R], columns: Columns, map_items: MapFunction) -> R:
    """Run a mergeable statistic over parts, and merge in part order, so that the result depends on no timing."""
    state = reducer.init()
    first = next(iter(columns))
    for other in map_items(partial(_reduce_part, reducer, columns), inputs.split(first)):
        state = reducer.merge(state, other)
    return reducer.compute(state)


def _reduce_part(reducer: Reducer[Any, Any], columns: Columns, inputs: Inputs) -> Any:
    state = reducer.init()
    for batch in inputs.batches(columns):
        state = reducer.update(state, batch)
    return state


def check_balance(what: str, seen: list[np.ndarray], made: list[np.ndarray]) -> None:
    """Raise BalanceError unless the rows that came out are the rows that went in, in order."""
    before = np.concatenate(seen) if seen else np.empty(0, np.int64)
    after = np.concatenate(made) if made else np.empty(0, np.int64)
    if not np.array_equal(before, after):
        lost, new = len(np.setdiff1d(before, after)), len(np.setdiff1d(after, before))
        raise BalanceError(
            f"{what}: {amount(len(before), 'row')} went in and {len(after)} came out: {lost} lost, {new} made up, "
            f"{len(after) - len(np.unique(after))} doubled, or out of order"
        )


def _once(made: list[np.ndarray]) -> np.ndarray:
    """Return ids with each run of equal ones once: int64 (n,)."""
    ids = np.concatenate([np.empty(0, np.int64), *made])
    return np.asarray(ids[np.diff(ids, prepend=-1) != 0])


def _watched(batches: Iterator[pa.Table], seen: list[np.ndarray]) -> Iterator[pa.Table]:
    for batch in batches:
        if "sample_id" in batch.column_names:
            seen.append(batch.column("sample_id").to_numpy())
        yield batch


def limit_threads(cpus: float) -> None:
    """Limit the numeric libraries to the threads that a stage asks for: sums are then split alike on any machine."""
    from threadpoolctl import threadpool_limits

    count = max(1, int(cpus))
    threadpool_limits(count)
    if "torch" in sys.modules:
        sys.modules["torch"].set_num_threads(count)


def clear_scratch(storage: Storage) -> None:
    """Remove the scratch files of killed builds, not their checkpoints. The caller must hold the dataset."""
    for folder in work_files.folder(storage).glob("scratch-*"):
        shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def _folders(storage: Storage, fingerprint: str) -> Iterator[tuple[Path, Path]]:
    """Provide the folders (scratch, checkpoints) of a part; the scratch folder is removed at the end."""
    base = work_files.make(storage)
    checkpoints = base / f"checkpoints-{fingerprint}"
    checkpoints.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="scratch-", dir=base) as scratch:
        yield Path(scratch), checkpoints
