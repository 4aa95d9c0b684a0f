"""A table as a list of pieces: Parquet parts, or Arrow tables in memory, and reading them."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from catalog.errors import reading
from catalog.vector_pages import is_vector, read_vectors

if TYPE_CHECKING:
    from catalog.storage import Storage


@dataclass(frozen=True, slots=True)
class Piece:
    """One Parquet file of a table (or, in tests, rows in memory)."""

    path: str = ""
    number: int | None = None
    """The part of the source that it belongs to; None where it holds rows of all parts."""
    memory: pa.Table | None = field(default=None, compare=False)
    storage: "Storage | None" = field(default=None, compare=False)
    """Where the file is, if it belongs to another dataset than the one that is built."""

    def read(self, storage: "Storage | None", columns: Sequence[str], span: tuple[int, int] | None = None) -> pa.Table:
        """Return some columns; with `span`, at least the rows whose sample_id lies in [low, high].

        `storage` is that of the dataset that is built.
        """
        if self.memory is not None:
            return self.memory.select(list(columns))
        storage = self.storage or storage
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
        storage = self.storage or storage
        assert storage is not None
        filesystem = None if storage.is_local else storage.filesystem()
        with reading(storage.uri, self.path):
            return list(pq.read_schema(storage.local(self.path) or self.path, filesystem=filesystem).names)

    def batches(self, storage: "Storage | None", columns: Sequence[str], rows: int) -> Iterator[pa.Table]:
        """Yield some columns, at most `rows` at a time; a plain file is decoded no further than is requested."""
        storage = self.storage or storage
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
    """Yield columns of a plain file in the requested order, a row group at a time; one empty table where it
    has no rows. Columns that the file lacks are skipped.
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

    def of_part(self, number: int | None) -> "Pieces":
        """Return the pieces that may have rows of a part of the source; all of them for None."""
        mine = (piece for piece in self.pieces if None in (number, piece.number) or piece.number == number)
        return Pieces(self.schema, tuple(mine))
