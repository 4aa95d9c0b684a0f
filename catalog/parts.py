"""Parts: deterministic, content-addressed Parquet files and their image bytes.

A part is named by its fingerprint, so its existence means that its work is done. The shard appears first, then the
part, each atomically. Only a take-down rewrites files in place (`catalog.takedown.erase`).
"""

import hashlib
import json
from collections.abc import Iterable, Mapping
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from typing import Any, Final, Self

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from catalog.errors import reading
from catalog.schema import PLACE, SAMPLE_BITS, SAMPLE_ID, role
from catalog.seal import KEY, SealingFile
from catalog.shards import ShardWriter, shard_path, stem
from catalog.storage import Storage

NOTES: Final = b"espalier.notes"
FILES: Final = b"espalier.files"
"""Footer key: JSON, path -> bytes and sha256 of the shards that the part's rows name, and of their sidecar files."""
_CANONICAL: Final = json.JSONEncoder(sort_keys=True, separators=(",", ":"), ensure_ascii=False)
"""One for all: `json.dumps` makes an encoder each time, which a plan of many parts would pay for."""
_ROW_GROUP_ROWS: Final = 65_536
_ROW_GROUP_BYTES: Final = 64 << 20


@dataclass(frozen=True)
class PartFile:
    """A finished part, with the facts that the table's log records."""

    path: str
    """Relative to the dataset: `<table>/<fingerprint>.parquet`."""
    rows: int
    bytes: int
    notes: Mapping[str, Any] = field(default_factory=dict, compare=False)
    """Notes of the stage: deterministic facts, never times."""
    sha256: str | None = field(default=None, compare=False)
    """Its seal (`catalog.seal`); None if it has none, or if the part was read from a Delta log, which omits it."""
    files: Mapping[str, Mapping[str, Any]] = field(default_factory=dict, compare=False)
    """Path -> bytes and sha256 of the shards that its rows name, and of their sidecar files."""
    span: tuple[int, int] | None = field(default=None, compare=False)
    """Lowest and highest sample_id of its rows; None if it has none, or if the log does not record it."""


def part_path(table: str, fingerprint: str) -> str:
    """Return the path of a part, relative to its dataset."""
    return f"{table}/{fingerprint}.parquet"


def fingerprint_of(*facts: Any) -> str:
    """Return the SHA-256 (32 hex digits of it) of facts as canonical JSON."""
    return fingerprint_of_canonical(*map(canonical, facts))


def canonical(fact: Any) -> str:
    """Return canonical JSON: keys sorted, no spaces."""
    return _CANONICAL.encode(fact)


def fingerprint_of_canonical(*facts: str) -> str:
    """Return `fingerprint_of` of facts whose canonical JSON is known: what many fingerprints share is written once."""
    return hashlib.sha256(f"[{','.join(facts)}]".encode()).hexdigest()[:32]


def written_schema(schema: pa.Schema) -> pa.Schema:
    """Return the schema of the table for a stage's schema: image bytes become their location, sidecars are dropped."""
    fields: list[pa.Field] = []
    for f in schema:
        if role(f) == "image":
            fields += PLACE
        elif role(f) != "sidecar":
            fields.append(f)
    return pa.schema(fields)


def describe_part(storage: Storage, path: str) -> PartFile:
    """Return the description of a finished part, from its footer."""
    local = storage.local(path)
    with reading(storage.uri, path), pq.ParquetFile(local or storage.filesystem().open_input_file(path)) as file:
        keys = file.metadata.metadata or {}
        size = local.stat().st_size if local else storage.filesystem().get_file_info(path).size
        notes, files = (json.loads(keys.get(key, b"{}")) for key in (NOTES, FILES))
        sha256 = keys[KEY].decode() if KEY in keys else None
        return PartFile(path, file.metadata.num_rows, size, notes, sha256, files, _span(file.metadata))


def _span(metadata: pq.FileMetaData) -> tuple[int, int] | None:
    """Return the lowest and the highest sample_id in a file, from the statistics in its footer."""
    groups = [metadata.row_group(number) for number in range(metadata.num_row_groups)]
    columns = [group.column(at) for group in groups if group.num_rows for at in range(group.num_columns)]
    found = [column.statistics for column in columns if column.path_in_schema == SAMPLE_ID.name]
    if not found or any(statistics is None or not statistics.has_min_max for statistics in found):
        return None
    return int(min(statistics.min for statistics in found)), int(max(statistics.max for statistics in found))


class PartWriter:
    """Writes one part incrementally; it appears under its final name when the writer closes without an error."""

    def __init__(self, storage: Storage, table: str, fingerprint: str, schema: pa.Schema, number: int = 0) -> None:
        self.path = part_path(table, fingerprint)
        self.notes: dict[str, Any] = {}
        self.files: dict[str, Mapping[str, Any]] = {}
        self.rows = 0
        self._span: tuple[int, int] | None = None
        self._storage = storage
        self._given = schema
        self._schema = written_schema(schema)
        self._images = [f.name for f in schema if role(f) == "image"]
        self._shard_path = shard_path(number, fingerprint)
        self._stack = ExitStack()
        self._shard: ShardWriter | None = None
        self._held: list[pa.Table] = []
        self._bytes = 0
        self._sha256 = ""

    def __enter__(self) -> Self:
        self._file = SealingFile(self._stack.enter_context(self._storage.writer(self.path)))
        self._parquet = pq.ParquetWriter(self._file, self._schema, **_encoding(self._schema))
        if self._images:
            self._shard = self._stack.enter_context(ShardWriter(self._storage, self._shard_path))
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: Any) -> None:
        if kind is not None:
            with suppress(Exception):  # otherwise its destructor writes to a file that was removed
                self._parquet.close()
            self._stack.__exit__(kind, error, trace)
            return
        with self._stack:
            if self._shard is not None:  # first the shard appears, then the part that names it and its digest
                self.files |= self._shard.finish()
            self._flush()
            self._parquet.add_key_value_metadata({NOTES: json.dumps(self.notes, sort_keys=True, default=str)})
            if self.files:
                self._parquet.add_key_value_metadata({FILES: json.dumps(self.files, sort_keys=True)})
            self._file.hold(self._parquet)
            self._parquet.close()
            self._sha256 = self._file.seal()
            self._bytes = self._file.tell()

    def write(self, piece: pa.Table) -> None:
        """Append rows. Raises ArrowInvalid if they do not have the declared schema."""
        self._append(self._stored(piece))

    def write_merged(
        self, kept: pa.Table, pieces: Iterable[pa.Table], files: Mapping[str, Mapping[str, Any]] | None = None
    ) -> None:
        """Write rows of an earlier attempt and new ones in `sample_id` order. Image bytes of old rows are not copied.

        `files` are those of the earlier attempt.
        """
        stems = {stem(shard) for shard in kept.column("shard").unique().drop_null().to_pylist()} if files else set()
        self.files |= {path: facts for path, facts in (files or {}).items() if stem(path) in stems}
        merged = pa.concat_tables([kept.cast(self._schema), *(self._stored(piece) for piece in pieces)])
        self._append(merged.sort_by("sample_id"))

    def end_group(self) -> None:
        """End the current row group."""
        self._flush()

    def part(self) -> PartFile:
        """Return the description of the part, after the writer was closed."""
        return PartFile(self.path, self.rows, self._bytes, self.notes, self._sha256, self.files, self._span)

    def _stored(self, piece: pa.Table) -> pa.Table:
        """Return rows in the schema of the table; their image bytes are written to the shard."""
        rows = piece.select(self._given.names).cast(self._given)
        if self._shard is None:
            return rows
        place = self._shard.add(rows, self._images[0])
        for column, values in zip(PLACE, place, strict=True):
            rows = rows.append_column(column, values)
        return rows.select(self._schema.names)

    def _append(self, rows: pa.Table) -> None:
        self.rows += rows.num_rows
        self._widen(rows)
        self._held.append(rows)
        if self._held_rows() >= _ROW_GROUP_ROWS or sum(t.nbytes for t in self._held) >= _ROW_GROUP_BYTES:
            self._flush()

    def _widen(self, rows: pa.Table) -> None:
        """Extend the span of sample_ids by those of some rows."""
        if SAMPLE_ID.name in rows.column_names and rows.num_rows:
            found = pc.min_max(rows.column(SAMPLE_ID.name)).as_py()
            low, high = self._span or (found["min"], found["max"])
            self._span = min(low, found["min"]), max(high, found["max"])

    def _held_rows(self) -> int:
        return sum(t.num_rows for t in self._held)

    def _flush(self) -> None:
        if self._held:
            rows = pa.concat_tables(self._held).cast(self._schema)
            self._parquet.write_table(rows, row_group_size=max(rows.num_rows, 1))
            self._held = []


def _encoding(schema: pa.Schema) -> dict[str, Any]:
    """Return Parquet settings: zstd, and no dictionary for vectors (it makes them 3 times slower and no smaller), but
    one for the keys of maps, which repeat.

    Not byte-stream-split, though it saves 8 %: DuckDB 2.0 refuses to read it for float16.
    """
    plain = [f.name for f in schema if not pa.types.is_nested(f.type)]
    keys = [f"{f.name}.key_value.key" for f in schema if pa.types.is_map(f.type)]
    return {"compression": "zstd", "use_dictionary": [*plain, *keys]}


def number_rows(rows: pa.Table, number: int, start: int) -> pa.Table:
    """Return rows of a source with their sample_ids, which consist of the part number and the row's position."""
    ids = pa.array(range((number << SAMPLE_BITS) + start, (number << SAMPLE_BITS) + start + rows.num_rows), pa.int64())
    return rows.add_column(0, SAMPLE_ID, ids)
