"""Reading the input of a stage: several tables, joined by `sample_id`, without the rejected rows.

Rejected rows are found once, as a sorted array of ids, and omitted from everything that `batches`, `table` and
`vectors` return. Memory is bounded by a part (`batches`, `vectors`) or by the rows that are requested (`table`, `sql`).

Tables of the dataset that is built have plain names. Those of a version of another dataset have the name that the
recipe gives it as a prefix (`real.images`): they have the rows that this version published, and are joined only to one
another, because a `sample_id` is unique only within its dataset.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from catalog.duck import identifier, literal, open_database
from catalog.errors import NotFoundError, StoredImageError, damage_in_sql, damaged, nearest
from catalog.pieces import Piece, Pieces
from catalog.rejection import rejects
from catalog.schema import PLACE_NAMES, SAMPLE_BITS, role
from catalog.vector_pages import is_vector

if TYPE_CHECKING:
    from catalog.shards import ShardReader
    from catalog.storage import Storage

STORED: Final = b"espalier.stored"
"""Key of the metadata of rows whose `image` was read from unchecked shards; its value is the table of the rows. See
`stored_error`."""
IMAGE: Final = "image"
"""The virtual column of `images` that holds the encoded bytes."""


class Inputs:
    """The tables that one stage reads. Made by the engine from parts, and by tests from Arrow tables.

    `judges` are the tables that reject rows: images (`status`) and decisions (`keep`), and the source where
    rows of it were taken down (`url`). They judge the rows of the dataset that is built. `kept` are the tables
    `samples` of versions of other datasets, by name: of their tables, only the rows of those samples are read.
    Raises NotFoundError if a requested table or column does not exist.
    """

    def __init__(
        self,
        tables: Mapping[str, Pieces],
        judges: Sequence[Pieces] = (),
        storage: "Storage | None" = None,
        kept: Mapping[str, Pieces] | None = None,
    ) -> None:
        self._tables = dict(tables)
        self._judges = tuple(judges)
        self._storage = storage
        self._kept = dict(kept or {})
        self._trusted = False
        self._readers: dict[str, ShardReader] = {}

    @classmethod
    def of(cls, alive_only: bool = True, **tables: pa.Table) -> "Inputs":
        """Return inputs over tables in memory. An `images` table may carry the bytes in a column `image`."""
        pieces = {name: Pieces.of(table) for name, table in tables.items()}
        judging = [pieces[name] for name in ("images", "decisions") if name in pieces]
        judges = [p for p in judging if {"status", "keep"} & set(p.schema.names)] if alive_only else []
        return cls(pieces, judges)

    def trusting(self) -> "Inputs":
        """Return the same inputs, of which a stored picture that cannot be decoded is no damage: it was checked."""
        same = Inputs(self._tables, self._judges, self._storage, self._kept)
        same._trusted = True
        return same

    def check_stored(self, sample_id: int, decode_fault: Callable[[bytes], str | None], table: str = "images") -> None:
        """Raise DamagedError if the shard that holds a sample's picture is not what was written.

        Call it where a stored picture of `table` cannot be decoded. Reads the shard once. `decode_fault` returns why an
        image cannot be decoded, None where it can: it is used where no digest of the shard was recorded.
        """
        storage = self._storage_of(table) if table in self else None
        if storage is None or self._trusted:
            return
        from catalog.shard_check import check_shards

        paths = [p.path for p in self._pieces(table).pieces if p.memory is None]
        if damage := check_shards(storage, paths, sample_id, decode_fault):
            raise damaged(storage.uri, damage.path, damage.detail)

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
        """Return inputs over one piece of `table` each, with what belongs to it of its dataset's others. Picklable."""
        dataset = dataset_of(table)
        others = {n: t for n, t in self._tables.items() if n != table and dataset_of(n) == dataset}
        judges = () if dataset else self._judges
        kept = {dataset: self._kept[dataset]} if dataset else {}
        found = []
        for piece in self._pieces(table).pieces:
            mine = {table: Pieces(self._pieces(table).schema, (piece,))}
            mine |= {name: pieces.of_part(piece.number) for name, pieces in others.items()}
            judging = [judge.of_part(piece.number) for judge in judges]
            samples = {name: pieces.of_part(piece.number) for name, pieces in kept.items()}
            found.append(Inputs(mine, judging, self._storage, samples))
        return found

    def ids(self) -> np.ndarray:
        """Return the sample_ids of the alive rows of the first table: int64 (n,), ascending.

        A table of the dataset that is built comes before those of other datasets.
        """
        of_samples = [n for n, p in self._tables.items() if "sample_id" in p.schema.names and n != "decisions"]
        first = next(iter(sorted(of_samples, key=lambda name: dataset_of(name) != "")), None)
        if first is None:
            return np.empty(0, np.int64)
        parts = [_ids(p.read(self._storage, ["sample_id"])) for p in self._pieces(first).pieces]
        ids = np.concatenate([np.empty(0, np.int64), *parts])
        return np.asarray(ids[self._is_alive(ids, dataset_of(first))])

    def batches(self, columns: Mapping[str, Sequence[str]], rows: int = 65536) -> Iterator[pa.Table]:
        """Yield alive rows in `sample_id` order: sample_id and the named columns of each table, joined.

        At most `rows` at once. The first table determines the rows; where another table lacks a row, its columns are
        null. Columns keep their names; `{"images": ["image"]}` reads the encoded bytes from the shards.
        Raises ValueError where the tables are of several datasets.
        """
        first, *others = columns
        dataset = dataset_of(first)
        if other := next((name for name in others if dataset_of(name) != dataset), None):
            raise ValueError(f"{first!r} and {other!r} are of different datasets: their rows cannot be joined")
        names = self._names(first, columns[first])
        for piece in self._pieces(first).pieces:
            # Alone, a table is read as it is used; what is joined to it is looked for once a piece.
            whole = bool(others or self._annotations(first, names))
            read = [self._rows(first, piece, names)] if whole else piece.batches(self._storage, names, rows)
            for base in (self._alive_of(rows_read, dataset) for rows_read in read):
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
        """Return one table with all of its rows, also the rejected ones (for side tables: centroids, models).

        Of a version of another dataset, only the rows of samples that it published are returned.
        """
        pieces, dataset = self._pieces(table), dataset_of(table)
        read = [self._rows(table, piece, pieces.schema.names) for piece in pieces.pieces]
        if dataset and "sample_id" in pieces.schema.names:
            read = [self._alive_of(rows, dataset) for rows in read]
        return pa.concat_tables(read) if read else pieces.schema.empty_table()

    def vectors(self, table: str, column: str, rows: int = 65536) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Yield (sample_id int64 (n,), vectors float16 (n, d)) of alive rows in order; rows without one are skipped."""
        for batch in self.batches({table: [column]}, rows):
            there = batch.column(column)
            present = batch.filter(there.is_valid()) if there.null_count else batch  # a filter copies all
            if present.num_rows:
                yield _ids(present), as_matrix(present.column(column))

    def images(self, sample_ids: Sequence[int], table: str = "images") -> dict[int, bytes]:
        """Return the encoded bytes of some images, one range read each (for pictures in a report)."""
        wanted = np.unique(np.asarray(sample_ids, np.int64))
        found: dict[int, bytes] = {}
        for piece in self._pieces(table).pieces:
            mine = wanted if piece.number is None else wanted[wanted >> SAMPLE_BITS == piece.number]
            if not len(mine):
                continue
            rows = self._read(table, piece, [IMAGE], (int(mine[0]), int(mine[-1])))
            rows = rows.filter(pc.is_in(rows.column("sample_id"), pa.array(mine)))
            rows = self._with_images(rows, {table: [IMAGE]})
            pairs = zip(rows.column("sample_id").to_pylist(), rows.column(IMAGE).to_pylist(), strict=True)
            found |= {i: data for i, data in pairs if data is not None}
        return found

    def sql(self, query: str, **views: pa.Table) -> pa.Table:
        """Run a query. Views: one a table (all rows), those given, and `alive` (one column, sample_id).

        Tables of other datasets are in a schema each (`real.images`), with the rows that their version published.
        """
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
        """Create the view of a table."""
        dataset = dataset_of(name)
        if dataset:
            connection.execute(f"create schema if not exists {identifier(dataset)}")
        paths, storage = [p.path for p in pieces.pieces if p.memory is None], self._storage_of(name)
        if not paths or storage is None:
            rows = connection.from_arrow(_widened(self.whole(name)))
            rows.create(identifier(*name.split(".")))
            return
        if not storage.is_local and not connection.filesystem_is_registered(storage.fsspec().protocol):
            connection.register_filesystem(storage.fsspec())
        files = ", ".join(literal(f"{storage.uri}/{path}") for path in paths)
        annotations = self._annotations(name, pieces.schema.names)
        source = f"read_parquet([{files}]{', union_by_name = true' if annotations else ''})"
        try:
            there = connection.sql(f"select * from {source} limit 0").columns if annotations else []
            if lacking := [pieces.schema.field(n) for n in annotations if n not in there]:
                nulls = pa.table([pa.nulls(1, f.type) for f in lacking], schema=pa.schema(lacking))
                connection.register(f"_lacking_{name}", nulls)
                source += f", {identifier(f'_lacking_{name}')}"
            if dataset and "sample_id" in pieces.schema.names:
                connection.register(f"_kept_{dataset}", pa.table({"sample_id": self._published[dataset]}))
                source += f" where sample_id in (from {identifier(f'_kept_{dataset}')})"
            connection.execute(f"create view {identifier(*name.split('.'))} as select * from {source}")
        except Exception as error:  # it reads a footer
            raise damage_in_sql(error) or error from error

    def _pieces(self, table: str) -> Pieces:
        if table not in self._tables:
            raise NotFoundError(f"no table {table!r} among the inputs{nearest(table, self._tables)}")
        return self._tables[table]

    def _storage_of(self, table: str) -> "Storage | None":
        """Return the storage of the dataset that a table belongs to; None for tables in memory."""
        return next((p.storage for p in self._pieces(table).pieces if p.storage is not None), self._storage)

    @cached_property
    def _published(self) -> Mapping[str, np.ndarray]:
        """Version of another dataset -> the ids of the samples that it published: int64, ascending."""
        read = {n: [_ids(p.read(None, ["sample_id"])) for p in t.pieces] for n, t in self._kept.items()}
        return {name: np.sort(np.concatenate([np.empty(0, np.int64), *ids])) for name, ids in read.items()}

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

    def _is_alive(self, ids: np.ndarray, dataset: str) -> np.ndarray:
        """Return which rows of a dataset are alive: bool (n,)."""
        return among(ids, self._published[dataset]) if dataset else ~among(ids, self._dead)

    def _alive_of(self, rows: pa.Table, dataset: str) -> pa.Table:
        alive = self._is_alive(_ids(rows), dataset)
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
            if (np.diff(other_ids) <= 0).any():
                raise ValueError(f"{table!r} has several rows a sample: it cannot be joined by `sample_id`")
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
        """Replace the place by the bytes, where the image was requested."""
        table = next((n for n, names in columns.items() if table_of(n) == "images" and IMAGE in names), None)
        if table is None or IMAGE in rows.column_names:
            return rows
        data = pa.array(self._reader(table).read(rows), pa.large_binary())
        keep = [c for c in rows.column_names if c not in PLACE_NAMES or c in columns[table]]
        found = rows.select(keep).append_column(IMAGE, data)
        return found if self._trusted else found.replace_schema_metadata({STORED: table.encode()})

    def _reader(self, table: str) -> "ShardReader":
        """Return the reader of the shards that the rows of a table name."""
        from catalog.shards import ShardReader

        if table not in self._readers:
            storage = self._storage_of(table)
            assert storage is not None
            self._readers[table] = ShardReader(storage)
        return self._readers[table]

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
        table = rows.schema.metadata[STORED].decode()
        return StoredImageError(rows.column("sample_id")[row].as_py(), reason, table)
    return None


def dataset_of(table: str) -> str:
    """Return the name that a recipe gives to the version that a table is of; empty for the dataset that is built."""
    return table.rpartition(".")[0]


def table_of(table: str) -> str:
    """Return the name of a table in its own dataset."""
    return table.rpartition(".")[2]


def among(sample_ids: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    """Return which ids (int64 (n,)) are in `wanted` (int64 (m,), ascending): bool (n,)."""
    if not len(wanted):
        return np.zeros(len(sample_ids), bool)
    at = np.minimum(np.searchsorted(wanted, sample_ids), len(wanted) - 1)
    return np.asarray(wanted[at] == sample_ids)


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
