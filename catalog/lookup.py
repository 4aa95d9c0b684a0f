"""Look up rows of a table by `sample_id`, and read a vector column block by block.

Parts are sorted by `sample_id` and their footers hold the id range of each row group, so only row groups that may
contain a requested row are read. Memory: one row group (at most 64 MB) and the result.
"""

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import TYPE_CHECKING, Final, TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from catalog.errors import reading
from catalog.inputs import among, as_matrix

if TYPE_CHECKING:
    from catalog.storage import Storage

T = TypeVar("T")

KEY: Final = "sample_id"
_EVERYWHERE: Final = (-(1 << 63), (1 << 63) - 1)
_NOWHERE: Final = (0, -1)
_READERS: Final = 16


def spans(storage: "Storage", paths: Sequence[str]) -> dict[str, tuple[int, int]]:
    """Return path -> (lowest, highest) sample_id of each part, from its footer; (0, -1) for a part without rows."""

    def span(path: str) -> tuple[int, int]:
        with _open(storage, path) as file:
            return _span(_group_spans(file))

    return dict(zip(paths, _each(storage, span, paths), strict=True))


def schema_of(storage: "Storage", paths: Sequence[str]) -> pa.Schema:
    """Return the union of the columns of some parts: the types of the files, with our metadata."""

    def schema(path: str) -> pa.Schema:
        with _open(storage, path) as file:
            return _plain(file)

    return _unified(_distinct(_each(storage, schema, paths)))


class Parts:
    """Repeated look-ups of rows in the parts of one table.

    Caches the id range of each part (never its rows), so that only the first look-up opens all parts. The ranges remain
    valid when a take-down replaces a part in place, because it only removes rows.
    """

    def __init__(self, storage: "Storage", paths: Sequence[str]) -> None:
        self._storage = storage
        self._paths = list(paths)
        self._spans: dict[str, tuple[int, int]] = {}
        self._schemas: list[pa.Schema] = []

    def rows(self, sample_ids: np.ndarray, columns: Sequence[str] | None = None) -> pa.Table:
        """Return the rows of some samples in `sample_id` order; ids without a row are skipped.

        `sample_ids`: int64 (n,), ascending. `columns`: names, by default all; a part that lacks a column gives nulls.
        Types of other columns may be incompatible, because the parts may belong to several versions.
        """
        names = None if columns is None else list(dict.fromkeys((KEY, *columns)))

        def look(path: str) -> tuple[pa.Schema, tuple[int, int], list[pa.Table]]:
            with _open(self._storage, path) as file:
                schema, groups = _plain(file), _group_spans(file)
                there = schema.names if names is None else [name for name in names if name in schema.names]
                return schema, _span(groups), list(_selected(file, groups, there, sample_ids))

        paths = [path for path in self._paths if path not in self._spans or self._may_hold(path, sample_ids)]
        found = _each(self._storage, look, paths)
        self._schemas = _distinct([*self._schemas, *(schema for schema, _, _ in found)])
        self._spans |= {path: span for path, (_, span, _) in zip(paths, found, strict=True)}
        schema = _unified(self._schemas, names)
        pieces = [_fitted(piece, schema) for _, _, some in found for piece in some]
        return _in_order(pieces) if pieces else schema.empty_table()

    def _may_hold(self, path: str, sample_ids: np.ndarray) -> bool:
        low, high = self._spans[path]
        return bool(np.searchsorted(sample_ids, low) < np.searchsorted(sample_ids, high, side="right"))


def rows_of(
    storage: "Storage", paths: Sequence[str], sample_ids: np.ndarray, columns: Sequence[str] | None = None
) -> pa.Table:
    """Return the rows of some samples of a table: a wrapper of `Parts.rows` for a single look-up."""
    return Parts(storage, paths).rows(sample_ids, columns)


def ids_of(storage: "Storage", paths: Sequence[str]) -> np.ndarray:
    """Return the distinct sample_ids of some parts: int64 (n,), ascending."""

    def ids(path: str) -> np.ndarray:
        with _open(storage, path) as file:
            return np.asarray(file.read([KEY], use_threads=False).column(KEY).to_numpy(), np.int64)

    return np.unique(np.concatenate([np.empty(0, np.int64), *_each(storage, ids, paths)]))


def blocks(
    storage: "Storage", path: str, column: str, wanted: np.ndarray | None = None
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yield (sample_id int64 (n,), vectors float16 (n, d)) of one part in order; rows without a vector are skipped.

    With `wanted` (int64, ascending), only vectors of those samples.
    """
    with _open(storage, path) as file:
        for rows in _selected(file, _group_spans(file), (KEY, column), wanted):
            present = rows.filter(rows.column(column).is_valid())
            if present.num_rows:
                yield np.asarray(present.column(KEY).to_numpy(), np.int64), as_matrix(present.column(column))


def vectors_of(parts: Parts, column: str, sample_ids: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return (sample_id int64 (m,) ascending, vectors float16 (m, d)) of the samples that have a vector."""
    found = parts.rows(np.unique(sample_ids), [column])
    present = found.filter(found.column(column).is_valid())
    return np.asarray(present.column(KEY).to_numpy(), np.int64), as_matrix(present.column(column))


def _each(storage: "Storage", function: Callable[[str], T], paths: Sequence[str]) -> list[T]:
    """Apply a function to each part; concurrently on object stores, where waiting costs no CPU."""
    if storage.is_local:
        return [function(path) for path in paths]
    with ThreadPoolExecutor(_READERS) as pool:
        return list(pool.map(function, paths))


def _selected(
    file: pq.ParquetFile,
    groups: Sequence[tuple[int, int]],
    columns: Sequence[str],
    wanted: np.ndarray | None,
) -> Iterator[pa.Table]:
    """Yield the wanted rows of a part, one row group at a time."""
    names = list(columns)
    for number, (low, high) in enumerate(groups):
        if wanted is None:
            yield file.read_row_group(number, names, use_threads=False)
            continue
        mine = wanted[np.searchsorted(wanted, low) : np.searchsorted(wanted, high, side="right")]
        if not len(mine):
            continue
        rows = file.read_row_group(number, names, use_threads=False)
        keep = among(np.asarray(rows.column(KEY).to_numpy(), np.int64), mine)
        if keep.any():
            yield rows.take(pa.array(np.flatnonzero(keep)))


@contextmanager
def _open(storage: "Storage", path: str) -> Iterator[pq.ParquetFile]:
    local = storage.local(path)
    with reading(storage.uri, path):
        source = local if local else storage.filesystem().open_input_file(path)
    with reading(storage.uri, path), pq.ParquetFile(source, memory_map=local is not None) as file:
        yield file


def _plain(file: pq.ParquetFile) -> pa.Schema:
    return file.schema_arrow.remove_metadata()


def _distinct(schemas: Sequence[pa.Schema]) -> list[pa.Schema]:
    """Return the distinct schemas. Most are equal, and comparing is cheaper than unifying."""
    different: list[pa.Schema] = []
    for schema in schemas:
        if not any(schema.equals(known, check_metadata=True) for known in different):
            different.append(schema)
    return different


def _unified(schemas: Sequence[pa.Schema], names: Sequence[str] | None = None) -> pa.Schema:
    """Return the union of some schemas; with `names`, only these columns, in this order."""
    if names is not None:
        schemas = [pa.schema([schema.field(name) for name in names if name in schema.names]) for schema in schemas]
    found = pa.unify_schemas([pa.schema([]), *schemas], promote_options="permissive")
    return found if names is None else pa.schema([found.field(name) for name in names])


def _span(groups: Sequence[tuple[int, int]]) -> tuple[int, int]:
    """Return the (lowest, highest) sample_id of a part from the ranges of its row groups."""
    full = [span for span in groups if span != _NOWHERE]
    return (min(low for low, _ in full), max(high for _, high in full)) if full else _NOWHERE


def _group_spans(file: pq.ParquetFile) -> list[tuple[int, int]]:
    """Return the (lowest, highest) sample_id of each row group; the full range if the file does not record it."""
    found = []
    for number in range(file.metadata.num_row_groups):
        group = file.metadata.row_group(number)
        places = (group.column(i) for i in range(group.num_columns))
        statistics = next((c.statistics for c in places if c.path_in_schema == KEY), None)
        if group.num_rows == 0:
            found.append(_NOWHERE)
        elif statistics is None or not statistics.has_min_max:
            found.append(_EVERYWHERE)
        else:
            found.append((int(statistics.min), int(statistics.max)))
    return found


def _fitted(rows: pa.Table, schema: pa.Schema) -> pa.Table:
    """Return rows with exactly the columns of a schema; null in columns that a part lacks."""
    rows = rows.replace_schema_metadata(None)
    if rows.schema.equals(schema, check_metadata=True):
        return rows
    columns = [
        rows.column(f.name).cast(f.type) if f.name in rows.column_names else pa.nulls(rows.num_rows, f.type)
        for f in schema
    ]
    return pa.table(columns, schema=schema)


def _in_order(pieces: Sequence[pa.Table]) -> pa.Table:
    """Return pieces, each in `sample_id` order, as one table in that order.

    Sorting many chunks costs more than reading them, so pieces that do not overlap are only concatenated."""
    rows = pa.concat_tables(sorted(pieces, key=lambda piece: piece.column(KEY)[0].as_py())).combine_chunks()
    ids = rows.column(KEY).to_numpy()
    return rows if (ids[1:] >= ids[:-1]).all() else rows.sort_by(KEY)
