"""Whether what a plan made is whole: every stage that judges saw exactly the rows that the stages before it keep, and
the published rows are exactly those that all of them keep.

Looked at part by part: memory is the ids of a few parts, and some row groups of each table that holds all parts.
"""

from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from typing import Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from catalog.dataset import Dataset
from catalog.errors import BalanceError
from catalog.parts import part_path
from catalog.pieces import read_parquet
from catalog.rejection import REJECTING, rejects
from catalog.schema import SAMPLE_BITS
from catalog.storage import Storage
from catalog.takedown.ledger import Ledger
from catalog.version import TableState
from catalog.wording import amount
from flows.build.plan import Plan, PlannedStage
from tasks.publish import Samples
from tasks.streams.ordered_map import ordered_map

_READERS: Final = 4
_KEEP: Final = {table: REJECTING[table] for table in ("images", "decisions")}
"""Tables that judge every row -> the column that rejects."""


def check_balance(plan: Plan, rows: Mapping[int, int], known: frozenset[str] = frozenset()) -> int:
    """Compare the rows of every judging stage, and the published rows, with those that the stages before it keep.

    `rows`: part number -> rows of the source. A part number is skipped where all that is read for it is in
    `known`, the paths of a version that was in balance. Returns how many rows were compared. Raises BalanceError with
    the first stage, and the part of it, whose rows are not those that it should have seen.
    """
    judges = [_Judge(s, _column(s)) for s in plan.stages if s.stage.table in _KEEP or isinstance(s.stage, Samples)]
    whole = [path for judge in judges for path in judge.whole]
    todo = sorted(n for n in rows if not known.issuperset([*whole, *(j.own[n] for j in judges if n in j.own)]))
    storage = plan.dataset.storage
    source = _source_of_taken(plan)

    def read(number: int) -> tuple[np.ndarray, list[pa.Table | None]]:
        alive = _ids(number, rows[number])
        if number in source:
            alive = alive[~np.isin(alive, _taken(storage, source[number]))]
        return alive, [read_parquet(storage, j.own[number], j.columns) if number in j.own else None for j in judges]

    with ExitStack() as stack:
        cursors = [stack.enter_context(_Cursor(storage, j)) if j.whole else None for j in judges]
        for number, (alive, tables) in zip(todo, ordered_map(read, todo, _READERS, 2 * _READERS), strict=True):
            for judge, cursor, table in zip(judges, cursors, tables, strict=True):
                if cursor is not None:
                    table = cursor.rows(number)
                assert table is not None
                seen, kept = judge.split(table)
                expected = alive if judge.alive_only else _ids(number, rows[number])
                if not np.array_equal(seen, expected):
                    raise BalanceError(judge.broken(number, seen, expected))
                alive = kept if judge.alive_only else alive[np.isin(alive, kept)]
        for judge, cursor in zip(judges, cursors, strict=True):
            if cursor is not None and len(todo) == len(rows) and (more := cursor.total - cursor.taken):
                raise BalanceError(
                    f"stage {judge.name!r}: {judge.whole[0]} has {amount(more, 'row')} of no part of the source"
                )
    return sum(rows[number] for number in todo)


def check_saved(dataset: Dataset, sample_ids: np.ndarray, tables: Mapping[str, TableState]) -> None:
    """Compare the rows of tables that were copied for some samples, int64 (n,) ascending, with what a build promises:
    the source, every judging stage and the published rows have each of them once, and none rejects one.

    Raises BalanceError with the first table, or stage, whose rows are not these.
    """
    for table in ("source", *_KEEP, "samples"):
        state = tables.get(table, TableState(pa.schema([]), []))
        column = _KEEP.get(table)
        names = [name for name in state.schema.names if name in ("sample_id", "stage", column)]
        pieces = [read_parquet(dataset.storage, part.path, names) for part in state.parts]
        for name, rows in _by_stage(table, pa.concat_tables(pieces)) if pieces else ():
            for ids in _split(rows, column if column in names else None):
                if not np.array_equal(ids, sample_ids):
                    raise BalanceError(f"{name}: {_difference(ids, sample_ids)}; nothing was saved")


def _by_stage(table: str, rows: pa.Table) -> Iterator[tuple[str, pa.Table]]:
    """Yield the rows of each stage that wrote a table, and how to name it."""
    if "stage" not in rows.column_names:
        yield f"table {table!r}", rows
        return
    for stage in pc.unique(rows.column("stage")).to_pylist():
        yield f"stage {stage!r}", rows.filter(pc.equal(rows.column("stage"), stage))


def _split(rows: pa.Table, column: str | None) -> tuple[np.ndarray, np.ndarray]:
    """Return the sample_ids of all rows, and of those that are kept. `column`: of _KEEP, which says it."""
    ids = np.asarray(rows.column("sample_id").to_numpy(), np.int64)
    if column is None:
        return ids, ids
    return ids, ids[~np.asarray(rejects(rows.column(column), column))]


def _difference(seen: np.ndarray, alive: np.ndarray) -> str:
    extra, missing = np.setdiff1d(seen, alive), np.setdiff1d(alive, seen)
    facts = [
        f"{len(ids):,} {what} (sample {ids[0]} is one)"
        for ids, what in ((extra, "that the stages before it reject"), (missing, "are missing"))
        if len(ids)
    ]
    return " and ".join(facts) or "they are not in order, or duplicated"


def _ids(number: int, rows: int) -> np.ndarray:
    first = number << SAMPLE_BITS
    return np.arange(first, first + rows, dtype=np.int64)


def _column(planned: PlannedStage) -> str | None:
    column = _KEEP.get(planned.stage.table)
    return column if column in planned.schema.names else None


class _Judge:
    """A stage that has one row for every row that it saw, and the files that it wrote."""

    def __init__(self, planned: PlannedStage, column: str | None) -> None:
        self.name = planned.stage.name
        self.alive_only = planned.stage.alive_only
        self.columns = ["sample_id"] if column is None else ["sample_id", column]
        table = planned.stage.table
        self.own = {p.number: part_path(table, p.fingerprint) for p in planned.parts if p.number is not None}
        self.whole = [part_path(table, p.fingerprint) for p in planned.parts if p.number is None]
        self._column = column

    def split(self, rows: pa.Table) -> tuple[np.ndarray, np.ndarray]:
        """Return the sample_ids of all rows, and of those that are kept."""
        return _split(rows, self._column)

    def broken(self, number: int, seen: np.ndarray, alive: np.ndarray) -> str:
        """Return the message on rows that are not the expected ones."""
        path = self.own.get(number) or self.whole[0]
        difference = _difference(seen, alive)
        return (
            f"stage {self.name!r} did not see the rows that the stages before it keep: of part {number}, {difference}; "
            f"nothing was published. Move {path} away and build again: it is made again"
        )


class _Cursor:
    """Reads a table that holds all parts, in the order of the parts, some row groups at a time."""

    def __init__(self, storage: Storage, judge: _Judge) -> None:
        self._columns = judge.columns
        (path,) = judge.whole
        self._file = pq.ParquetFile(storage.local(path) or storage.filesystem().open_input_file(path))
        metadata = self._file.metadata
        groups = (metadata.row_group(at) for at in range(metadata.num_row_groups))
        self._last = np.array([g.column(0).statistics.max if g.num_rows else -1 for g in groups], np.int64)
        self._held: dict[int, pa.Table] = {}
        self.total, self.taken = metadata.num_rows, 0

    def __enter__(self) -> "_Cursor":
        return self

    def __exit__(self, *_: Any) -> None:
        self._file.close()

    def rows(self, number: int) -> pa.Table:
        """Return the rows of a part. Part numbers must ascend from call to call."""
        low, high = number << SAMPLE_BITS, ((number + 1) << SAMPLE_BITS) - 1
        begin = int(np.searchsorted(self._last, low))
        end = min(int(np.searchsorted(self._last, high)) + 1, len(self._last))
        wanted = range(begin, end)
        self._held = {
            at: self._held.get(at) or self._file.read_row_group(at, self._columns, use_threads=False) for at in wanted
        }
        found = pa.concat_tables(self._held.values()) if self._held else self._file.schema_arrow.empty_table()
        ids = found.column("sample_id").to_numpy()
        first, past = np.searchsorted(ids, low), np.searchsorted(ids, high, side="right")
        self.taken += int(past - first)
        return found.slice(first, past - first)


def _source_of_taken(plan: Plan) -> dict[int, str]:
    """Return part number -> part of the source, where rows were taken down: no stage but the download sees them."""
    source = plan.stages[0]
    if Ledger.read(plan.dataset.storage).is_empty:
        return {}
    return {p.number: part_path("source", p.fingerprint) for p in source.parts if p.number is not None}


def _taken(storage: Storage, path: str) -> np.ndarray:
    rows = read_parquet(storage, path, ["sample_id", "url"])
    if "url" not in rows.column_names:
        return np.empty(0, np.int64)
    return np.asarray(rows.filter(rejects(rows.column("url"), "url")).column("sample_id").to_numpy(), np.int64)
