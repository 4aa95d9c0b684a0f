"""Some rows of a table, by `sample_id`, and one vector column of it, block by block.

Parts are sorted by `sample_id` and their footers say which ids each row group holds, so only row groups that can
hold a wanted row are read. Memory is one row group (at most 64 MB) and what is asked for.
"""

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import TYPE_CHECKING, Final

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from catalog.inputs import as_matrix

if TYPE_CHECKING:
    from catalog.storage import Storage

KEY: Final = "sample_id"
_EVERYWHERE: Final = (-(1 << 63), (1 << 63) - 1)
_NOWHERE: Final = (0, -1)
_READERS: Final = 16


def spans(storage: "Storage", paths: Sequence[str]) -> dict[str, tuple[int, int]]:
    """Return path -> (lowest, highest) sample_id of each part, from its footer; (0, -1) where it has no rows."""

    def span(path: str) -> tuple[int, int]:
        with _open(storage, path) as file:
            groups = [span for span in _group_spans(file) if span != _NOWHERE]
        return (min(low for low, _ in groups), max(high for _, high in groups)) if groups else _NOWHERE

    with ThreadPoolExecutor(_READERS) as pool:
        return dict(zip(paths, pool.map(span, paths), strict=True))


def schema_of(storage: "Storage", paths: Sequence[str]) -> pa.Schema:
    """Return the columns that the parts of a table hold, all of them: the files' own types, with our metadata."""
    schemas = []
    for path in paths:
        with _open(storage, path) as file:
            schemas.append(file.schema_arrow.remove_metadata())
    return pa.unify_schemas(schemas, promote_options="permissive")


def rows_of(
    storage: "Storage", paths: Sequence[str], sample_ids: np.ndarray, columns: Sequence[str] | None = None
) -> pa.Table:
    """Return the rows of some samples in `sample_id` order; ids that are not there are passed over.

    `sample_ids`: int64 (n,), ascending. `columns`: names, by default all; a part that lacks a column gives nulls.
    """
    schema = schema_of(storage, paths)
    if columns is not None:
        schema = pa.schema([schema.field(name) for name in dict.fromkeys((KEY, *columns))])

    def read(path: str) -> list[pa.Table]:
        return [_fitted(piece, schema) for piece in _selected(storage, path, schema.names, sample_ids)]

    with ThreadPoolExecutor(_READERS if not storage.is_local else 1) as pool:
        pieces = [piece for found in pool.map(read, paths) for piece in found]
    return pa.concat_tables(pieces).sort_by(KEY) if pieces else schema.empty_table()


def blocks(
    storage: "Storage", path: str, column: str, wanted: np.ndarray | None = None
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yield (sample_id int64 (n,), vectors float16 (n, d)) of one part in order; rows without a vector are skipped.

    With `wanted` (int64, ascending), only of those samples.
    """
    for rows in _selected(storage, path, (KEY, column), wanted):
        present = rows.filter(rows.column(column).is_valid())
        if present.num_rows:
            yield np.asarray(present.column(KEY).to_numpy(), np.int64), as_matrix(present.column(column))


def vectors_of(
    storage: "Storage", paths: Sequence[str], column: str, sample_ids: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Return (sample_id int64 (m,) ascending, vectors float16 (m, d)) of those of some samples that have one."""
    found = rows_of(storage, paths, np.unique(sample_ids), [column])
    present = found.filter(found.column(column).is_valid())
    return np.asarray(present.column(KEY).to_numpy(), np.int64), as_matrix(present.column(column))


def among(sample_ids: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    """Return which ids are wanted: bool (n,), for int64 (n,) and int64 (m,) ascending."""
    if not len(wanted):
        return np.zeros(len(sample_ids), bool)
    at = np.minimum(np.searchsorted(wanted, sample_ids), len(wanted) - 1)
    return np.asarray(wanted[at] == sample_ids)


def _selected(storage: "Storage", path: str, columns: Sequence[str], wanted: np.ndarray | None) -> Iterator[pa.Table]:
    """Yield a part's row groups that hold a wanted row, without the other rows."""
    with _open(storage, path) as file:
        names = [name for name in columns if name in file.schema_arrow.names]
        for number, (low, high) in enumerate(_group_spans(file)):
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
    source = local if local else storage.filesystem().open_input_file(path)
    with pq.ParquetFile(source, memory_map=local is not None) as file:
        yield file


def _group_spans(file: pq.ParquetFile) -> list[tuple[int, int]]:
    """Return (lowest, highest) sample_id of each row group; everywhere, where the file does not say."""
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
    """Return rows with exactly the columns of a schema; null where a part had none."""
    columns = [
        rows.column(f.name).cast(f.type) if f.name in rows.column_names else pa.nulls(rows.num_rows, f.type)
        for f in schema
    ]
    return pa.table(columns, schema=schema)
