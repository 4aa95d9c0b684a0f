"""Reading the input of a stage: several tables, joined by `sample_id`, without the rows that are out.

A table is a list of pieces (Parquet parts, or an Arrow table in memory). Rejected rows are found once, as a sorted
array of ids, and left out of everything that `batches`, `table` and `vectors` give. Memory is bounded by a
part (`batches`, `vectors`) or by what is asked for (`table`, `sql`).
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from catalog.duck import identifier, literal, open_database
from catalog.errors import NotFoundError, StoredImageError, damage_in_sql, damaged, nearest, reading
from catalog.rejection import rejects
from catalog.schema import PLACE_NAMES, SAMPLE_BITS, role
from catalog.vector_pages import is_vector, read_vectors

if TYPE_CHECKING:
    from catalog.storage import Storage

STORED: Final = b"espalier.stored"
"""Key of the metadata of rows whose `image` was read from shards that nobody has checked: see `stored_error`."""
IMAGE: Final = "image"
"""The virtual column of `images` that holds the encoded bytes."""


@dataclass(frozen=True)
class Piece:
    """One Parquet file of a table (or, in tests, rows in memory)."""

    path: str = ""
    number: int | None = None
    """The part of the source that it belongs to; None where it holds rows of all parts."""
    memory: pa.Table | None = field(default=None, compare=False)

    def read(self, storage: "Storage | None", columns: Sequence[str], span: tuple[int, int] | None = None) -> pa.Table:
        """Return some columns; with `span`, at least the rows whose sample_id lies in [low, high]."""
        if self.memory is not None:
            return self.memory.select(list(columns))
        assert storage is not None
        if span is None or self.number is not None:
            return read_parquet(storage, self.path, columns)
        filters = (pc.field("sample_id") >= span[0]) & (pc.field("sample_id") <= span[1])
        with reading(storage.uri, self.path):
            return pq.read_table(self.path, columns=list(columns), filesystem=storage.filesystem(), filters=filters)

    def columns(self, storage: "Storage | None") -> list[str]:
        """Return the names of its columns."""
        if self.memory is not None:
            return list(self.memory.column_names)
        assert storage is not None
        filesystem = None if storage.is_local else storage.filesystem()
        with reading(storage.uri, self.path):
            return list(pq.read_schema(storage.local(self.path) or self.path, filesystem=filesystem).names)

    def batches(self, storage: "Storage | None", columns: Sequence[str], rows: int) -> Iterator[pa.Table]:
        """Yield some columns, at most `rows` at a time; a plain file is decoded no further than was asked for."""
        local = None if self.memory is not None or storage is None else storage.local(self.path)
        if local is None or storage is None:
            whole = self.read(storage, columns)
            yield from (whole.slice(start, rows) for start in range(0, whole.num_rows, rows))
            return
        for group in _groups(storage, self.path, local, columns):
            yield from (group.slice(start, rows) for start in range(0, group.num_rows, rows))


def read_parquet(storage: "Storage", path: str, columns: Sequence[str] | None = None) -> pa.Table:
    """Return one Parquet file. A plain file is read without a filesystem layer: 4 times cheaper for small parts."""
    local = storage.local(path)
    if local is not None:
        groups = list(_groups(storage, path, local, columns))
        return groups[0] if len(groups) == 1 else pa.concat_tables(groups)
    with reading(storage.uri, path):
        return pq.read_table(path, columns=None if columns is None else list(columns), filesystem=storage.filesystem())


def _groups(storage: "Storage", path: str, local: Path, columns: Sequence[str] | None) -> Iterator[pa.Table]:
    """Yield what `_row_groups` does. Raises DamagedError; what the caller does with a group is not caught."""
    groups = _row_groups(local, columns)
    while True:
        with reading(storage.uri, path):
            group = next(groups, None)
        if group is None:
            return
        yield group


def _row_groups(path: Path, columns: Sequence[str] | None) -> Iterator[pa.Table]:
    """Yield columns of a plain file in the order that was asked for, a row group at a time; one empty table where it
    has no rows. Names that it lacks are passed over.
    """
    with pq.ParquetFile(path, memory_map=True) as file:
        there = file.schema_arrow
        fields = [there.field(name) for name in (there.names if columns is None else columns) if name in there.names]
        schema = pa.schema(fields)
        if not any(is_vector(f.type) for f in fields):  # in one call: footers cost more than rows in small parts
            yield file.read(schema.names, use_threads=False)
            return
        if not file.num_row_groups:
            yield schema.empty_table()
        for number in range(file.num_row_groups):
            group = file.metadata.row_group(number)
            vectors = {f.name: read_vectors(path, group, f) for f in fields if is_vector(f.type)}
            rest = file.read_row_group(number, [n for n in schema.names if vectors.get(n) is None], use_threads=False)
            found = [rest.column(name) if vectors.get(name) is None else vectors[name] for name in schema.names]
            yield pa.table(found, schema=schema.with_metadata(rest.schema.metadata))


@dataclass(frozen=True)
class Pieces:
    """One table: its schema, and its pieces in part order."""

    schema: pa.Schema
    pieces: tuple[Piece, ...]

    @classmethod
    def of(cls, table: pa.Table) -> "Pieces":
        """Return a table in memory as pieces."""
        return cls(table.schema, (Piece(memory=table),))


class Inputs:
    """The tables that one stage reads. Made by the engine from parts, and by tests from Arrow tables.

    `judges` are the tables that say which rows are out: images (`status`) and decisions (`keep`), and the source where
    rows of it were taken down (`url`).
    Raises NotFoundError where a table or column is asked for that is not there.
    """

    def __init__(
        self, tables: Mapping[str, Pieces], judges: Sequence[Pieces] = (), storage: "Storage | None" = None
    ) -> None:
        self._tables = dict(tables)
        self._judges = tuple(judges)
        self._storage = storage
        self._trusted = False

    @classmethod
    def of(cls, alive_only: bool = True, **tables: pa.Table) -> "Inputs":
        """Return inputs over tables in memory. An `images` table may carry the bytes in a column `image`."""
        pieces = {name: Pieces.of(table) for name, table in tables.items()}
        judging = [pieces[name] for name in ("images", "decisions") if name in pieces]
        judges = [p for p in judging if {"status", "keep"} & set(p.schema.names)] if alive_only else []
        return cls(pieces, judges)

    def trusting(self) -> "Inputs":
        """Return the same inputs, of which a stored picture that cannot be decoded is no damage: it was checked."""
        same = Inputs(self._tables, self._judges, self._storage)
        same._trusted = True
        return same

    def check_stored(self, sample_id: int, decode_fault: Callable[[bytes], str | None]) -> None:
        """Raise DamagedError if the shard that holds a sample's picture is not what was written.

        Call it where a stored picture cannot be decoded. Reads the shard once. `decode_fault` returns why an image
        cannot be decoded, None where it can: it is used where no digest of the shard was recorded.
        """
        if self._storage is None or "images" not in self or self._trusted:
            return
        from catalog.shard_check import check_shards

        paths = [p.path for p in self._pieces("images").pieces if p.memory is None]
        if damage := check_shards(self._storage, paths, sample_id, decode_fault):
            raise damaged(self._storage.uri, damage.path, damage.detail)

    def __contains__(self, table: str) -> bool:
        return table in self._tables

    def tables(self) -> tuple[str, ...]:
        """Return the names of the tables."""
        return tuple(self._tables)

    def schema(self, table: str) -> pa.Schema:
        """Return the schema of one table."""
        return self._pieces(table).schema

    def rows(self) -> int:
        """Return how many rows are alive."""
        return len(self.ids())

    def split(self, table: str) -> "list[Inputs]":
        """Return inputs over one piece of `table` each, with what belongs to it of the other tables. Picklable."""

        def part_of(pieces: Pieces, number: int | None) -> Pieces:
            return Pieces(
                pieces.schema, tuple(p for p in pieces.pieces if None in (number, p.number) or p.number == number)
            )

        found = []
        for piece in self._pieces(table).pieces:
            others = {n: part_of(t, piece.number) for n, t in self._tables.items() if n != table}
            mine = {table: Pieces(self._pieces(table).schema, (piece,)), **others}
            found.append(Inputs(mine, [part_of(j, piece.number) for j in self._judges], self._storage))
        return found

    def ids(self) -> np.ndarray:
        """Return the sample_ids of the alive rows of the first table: int64 (n,), ascending."""
        first = next((n for n, p in self._tables.items() if "sample_id" in p.schema.names and n != "decisions"), None)
        if first is None:
            return np.empty(0, np.int64)
        parts = [_ids(p.read(self._storage, ["sample_id"])) for p in self._pieces(first).pieces]
        return self._alive(np.concatenate(parts)) if parts else np.empty(0, np.int64)

    def batches(self, columns: Mapping[str, Sequence[str]], rows: int = 65536) -> Iterator[pa.Table]:
        """Yield alive rows in `sample_id` order: sample_id and the named columns of each table, joined.

        At most `rows` at once. The first table says which rows there are; where another lacks a row, its columns are
        null. Columns keep their names; `{"images": ["image"]}` reads the encoded bytes from the shards.
        """
        first, *others = columns
        names = self._names(first, columns[first])
        for piece in self._pieces(first).pieces:
            # Alone, a table is read as it is used; what is joined to it is looked for once a piece.
            whole = bool(others or self._annotations(first, names))
            read = [self._rows(first, piece, names)] if whole else piece.batches(self._storage, names, rows)
            for base in map(self._alive_of, read):
                if base.num_rows == 0:
                    continue
                ids = _ids(base)
                for name in others:
                    base = self._join(base, ids, name, columns[name], piece.number)
                for start in range(0, base.num_rows, rows):
                    yield self._with_images(base.slice(start, rows), columns)

    def table(self, columns: Mapping[str, Sequence[str]]) -> pa.Table:
        """Return all alive rows, joined, in memory, in `sample_id` order."""
        batches = list(self.batches(columns))
        return pa.concat_tables(batches) if batches else self._empty(columns)

    def whole(self, table: str) -> pa.Table:
        """Return one table as it is, rejected rows and all (for sides: centroids, models)."""
        pieces = self._pieces(table)
        read = [self._rows(table, piece, pieces.schema.names) for piece in pieces.pieces]
        return pa.concat_tables(read) if read else pieces.schema.empty_table()

    def vectors(self, table: str, column: str, rows: int = 65536) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Yield (sample_id int64 (n,), vectors float16 (n, d)) of alive rows in order; rows without one are skipped."""
        for batch in self.batches({table: [column]}, rows):
            there = batch.column(column)
            present = batch.filter(there.is_valid()) if there.null_count else batch  # a filter copies all
            if present.num_rows:
                yield _ids(present), as_matrix(present.column(column))

    def images(self, sample_ids: Sequence[int]) -> dict[int, bytes]:
        """Return the encoded bytes of some images, one range read each (for pictures in a report)."""
        wanted = np.unique(np.asarray(sample_ids, np.int64))
        found: dict[int, bytes] = {}
        for piece in self._pieces("images").pieces:
            mine = wanted if piece.number is None else wanted[wanted >> SAMPLE_BITS == piece.number]
            if not len(mine):
                continue
            rows = self._read("images", piece, [IMAGE], (int(mine[0]), int(mine[-1])))
            rows = rows.filter(pc.is_in(rows.column("sample_id"), pa.array(mine)))
            rows = self._with_images(rows, {"images": [IMAGE]})
            pairs = zip(rows.column("sample_id").to_pylist(), rows.column(IMAGE).to_pylist(), strict=True)
            found |= {i: data for i, data in pairs if data is not None}
        return found

    def sql(self, query: str, **views: pa.Table) -> pa.Table:
        """Run a query. Views: one a table (all rows), those given, and `alive` (one column, sample_id)."""
        with open_database(outside=True) as connection:
            for name, pieces in self._tables.items():
                self._register(connection, name, pieces)
            if "alive" in query:
                connection.register("alive", pa.table({"sample_id": self.ids()}))
            for name, table in views.items():
                connection.register(name, table)
            try:
                return connection.sql(query).to_arrow_table()
            except Exception as error:
                raise damage_in_sql(error) or error from error

    def _register(self, connection: Any, name: str, pieces: Pieces) -> None:
        paths = [p.path for p in pieces.pieces if p.memory is None]
        if not paths or self._storage is None:
            connection.register(name, _widened(self.whole(name)))
            return
        if not self._storage.is_local and not connection.filesystem_is_registered(self._storage.fsspec().protocol):
            connection.register_filesystem(self._storage.fsspec())
        files = ", ".join(literal(f"{self._storage.uri}/{path}") for path in paths)
        annotations = self._annotations(name, pieces.schema.names)
        source = f"read_parquet([{files}]{', union_by_name = true' if annotations else ''})"
        try:
            there = connection.sql(f"select * from {source} limit 0").columns if annotations else []
            if lacking := [pieces.schema.field(n) for n in annotations if n not in there]:
                nulls = pa.table([pa.nulls(1, f.type) for f in lacking], schema=pa.schema(lacking))
                connection.register(f"_lacking_{name}", nulls)
                source += f", {identifier(f'_lacking_{name}')}"
            connection.execute(f"create view {identifier(name)} as select * from {source}")
        except Exception as error:  # it reads a footer
            raise damage_in_sql(error) or error from error

    def _pieces(self, table: str) -> Pieces:
        if table not in self._tables:
            raise NotFoundError(f"no table {table!r} among the inputs{nearest(table, self._tables)}")
        return self._tables[table]

    @cached_property
    def _dead(self) -> np.ndarray:
        """The ids of rows that failed or were rejected: int64, ascending."""
        dead = [np.empty(0, np.int64)]
        for judge in self._judges:
            column = next(name for name in ("keep", "status", "url") if name in judge.schema.names)
            for piece in judge.pieces:
                rows = piece.read(self._storage, ["sample_id", column])
                dead.append(_ids(rows.filter(rejects(rows.column(column), column))))
        return np.unique(np.concatenate(dead))

    def _is_alive(self, ids: np.ndarray) -> np.ndarray:
        if not len(self._dead):
            return np.ones(len(ids), bool)
        at = np.minimum(np.searchsorted(self._dead, ids), len(self._dead) - 1)
        return np.asarray(self._dead[at] != ids)

    def _alive(self, ids: np.ndarray) -> np.ndarray:
        return np.asarray(ids[self._is_alive(ids)])

    def _alive_of(self, rows: pa.Table) -> pa.Table:
        alive = self._is_alive(_ids(rows))
        return rows if alive.all() else rows.filter(pa.array(alive))

    def _read(self, table: str, piece: Piece, columns: Sequence[str], span: tuple[int, int] | None) -> pa.Table:
        return self._rows(table, piece, self._names(table, columns), span)

    def _rows(self, table: str, piece: Piece, names: Sequence[str], span: tuple[int, int] | None = None) -> pa.Table:
        """Return columns of a piece; null for the annotations that it lacks."""
        annotations = self._annotations(table, names)
        lacking = set(annotations).difference(piece.columns(self._storage)) if annotations else set()
        rows = piece.read(self._storage, [name for name in names if name not in lacking], span)
        for at, name in enumerate(names):
            if name in lacking:
                field_ = self._pieces(table).schema.field(name)
                rows = rows.add_column(at, field_, pa.nulls(rows.num_rows, field_.type))
        return rows

    def _annotations(self, table: str, names: Sequence[str]) -> list[str]:
        """Return which columns of a table some of its pieces may lack."""
        schema = self._pieces(table).schema
        return [name for name in names if role(schema.field(name)) == "annotation"]

    def _names(self, table: str, columns: Sequence[str]) -> list[str]:
        """Return the columns to read, sample_id first; the virtual image column as the place where the bytes lie."""
        pieces = self._pieces(table)
        names = ["sample_id"]
        for column in columns:
            real = PLACE_NAMES if column == IMAGE and IMAGE not in pieces.schema.names else (column,)
            names += [c for c in real if c not in names]
        for column in names:
            if column not in pieces.schema.names:
                raise NotFoundError(f"table {table!r} has no column {column!r}{nearest(column, pieces.schema.names)}")
        return names

    def _join(
        self, base: pa.Table, ids: np.ndarray, table: str, columns: Sequence[str], number: int | None
    ) -> pa.Table:
        """Append another table's columns to `base`, row by row; null where it has no such row."""
        span = (int(ids[0]), int(ids[-1]))
        pieces = self._pieces(table).pieces
        mine = [p for p in pieces if number is None or p.number is None or p.number == number]
        read = [self._read(table, p, columns, span) for p in mine]
        if not read:
            return self._append_nulls(base, table, columns)
        other = pa.concat_tables(read)
        other_ids = _ids(other)
        if not np.array_equal(other_ids, ids):
            at = np.minimum(np.searchsorted(other_ids, ids), max(len(other_ids) - 1, 0))
            there = other_ids[at] == ids if len(other_ids) else np.zeros(len(ids), bool)
            other = other.take(pa.array(at, mask=~there))
        for name in other.column_names:
            if name != "sample_id":
                base = base.append_column(other.schema.field(name), other.column(name))
        return base

    def _append_nulls(self, base: pa.Table, table: str, columns: Sequence[str]) -> pa.Table:
        schema = self._pieces(table).schema
        for column in columns:
            for name in PLACE_NAMES if column == IMAGE and IMAGE not in schema.names else (column,):
                base = base.append_column(schema.field(name), pa.nulls(base.num_rows, schema.field(name).type))
        return base

    def _with_images(self, rows: pa.Table, columns: Mapping[str, Sequence[str]]) -> pa.Table:
        """Replace the place by the bytes, where the image was asked for."""
        if IMAGE not in columns.get("images", ()) or IMAGE in rows.column_names:
            return rows
        data = pa.array(self._shards.read(rows), pa.large_binary())
        keep = [c for c in rows.column_names if c not in PLACE_NAMES or c in columns["images"]]
        found = rows.select(keep).append_column(IMAGE, data)
        return found if self._trusted else found.replace_schema_metadata({STORED: b"1"})

    @cached_property
    def _shards(self) -> Any:
        from catalog.shards import ShardReader

        assert self._storage is not None
        return ShardReader(self._storage)

    def _empty(self, columns: Mapping[str, Sequence[str]]) -> pa.Table:
        fields = [pa.field("sample_id", pa.int64())]
        for table, names in columns.items():
            schema = self._pieces(table).schema
            virtual = pa.field(IMAGE, pa.large_binary())
            fields += [virtual if n == IMAGE and n not in schema.names else schema.field(n) for n in names]
        return pa.schema(fields).empty_table()


def stored_error(rows: pa.Table, row: int, reason: str) -> StoredImageError | None:
    """Return the error for a row whose image cannot be decoded, if it was read from a shard that nobody has checked;
    None where it has none, or it is known that the decoder is at fault. It was decoded once when it was stored."""
    if STORED in (rows.schema.metadata or {}) and rows.column(IMAGE)[row].is_valid:
        return StoredImageError(rows.column("sample_id")[row].as_py(), reason)
    return None


def _widened(table: pa.Table) -> pa.Table:
    """Return a table that DuckDB can read from memory: it takes float16 from Parquet, but not from Arrow."""
    fields = [
        pa.field(f.name, pa.list_(pa.float32(), f.type.list_size)) if is_vector(f.type) else f for f in table.schema
    ]
    return table.cast(pa.schema(fields))


def _ids(table: pa.Table) -> np.ndarray:
    return np.asarray(table.column("sample_id").to_numpy(), np.int64)


def as_matrix(column: pa.ChunkedArray) -> np.ndarray:
    """Return a column of fixed-size lists without nulls as a matrix (n, d) of the list's type."""
    array = column.combine_chunks() if column.num_chunks != 1 else column.chunk(0)
    if isinstance(array, pa.ChunkedArray):
        array = pa.concat_arrays(array.chunks) if array.num_chunks else pa.array([], column.type)
    return np.asarray(array.flatten().to_numpy(zero_copy_only=False).reshape(-1, column.type.list_size))
