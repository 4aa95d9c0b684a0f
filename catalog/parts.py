"""Parts: deterministic, content-addressed Parquet files, and the bytes beside them.

A part is named by its fingerprint, so that it exists means that its work is done. Nothing is ever written in place:
the shard appears first, then the part, each whole or not at all.
"""

import hashlib
import json
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any, Final, Self

import pyarrow as pa
import pyarrow.parquet as pq

from catalog.schema import SAMPLE_ID, field as schema_field, role
from catalog.shards import ShardWriter, shard_path
from catalog.storage import Storage

NOTES: Final = b"espalier.notes"
_ROW_GROUP_ROWS: Final = 65_536
_ROW_GROUP_BYTES: Final = 64 << 20
_PLACE: Final = [
    schema_field("shard", pa.string(), "the tar that holds the bytes, relative to the dataset"),
    schema_field("offset", pa.int64(), "where in the tar the bytes begin"),
    schema_field("size", pa.int64(), "how many bytes are stored"),
]


@dataclass(frozen=True)
class PartFile:
    """A finished part, as the table's log needs it."""

    path: str
    """Relative to the dataset: `<table>/<fingerprint>.parquet`."""
    rows: int
    bytes: int
    notes: Mapping[str, Any] = field(default_factory=dict, compare=False)
    """What the stage noted: deterministic facts, never times."""


def part_path(table: str, fingerprint: str) -> str:
    """Return where a part lies, relative to its dataset."""
    return f"{table}/{fingerprint}.parquet"


def fingerprint_of(*facts: Any) -> str:
    """Return the SHA-256 (32 hex digits of it) of facts as canonical JSON."""
    canonical = json.dumps(facts, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return hashlib.sha256(canonical.encode()).hexdigest()[:32]


def written_schema(schema: pa.Schema) -> pa.Schema:
    """Return the schema of the table for a stage's schema: image bytes become their place, sidecars go."""
    fields: list[pa.Field] = []
    for f in schema:
        if role(f) == "image":
            fields += _PLACE
        elif role(f) != "sidecar":
            fields.append(f)
    return pa.schema(fields)


def describe_part(storage: Storage, path: str) -> PartFile:
    """Return what a finished part holds, from its footer."""
    local = storage.local(path)
    source = pq.ParquetFile(local) if local else pq.ParquetFile(storage.filesystem().open_input_file(path))
    with source as file:
        notes = json.loads((file.metadata.metadata or {}).get(NOTES, b"{}"))
        size = local.stat().st_size if local else storage.filesystem().get_file_info(path).size
        return PartFile(path, file.metadata.num_rows, size, notes)


class PartWriter:
    """Writes one part, piece by piece; it appears under its final name when the writer closes without an error."""

    def __init__(self, storage: Storage, table: str, fingerprint: str, schema: pa.Schema, number: int = 0) -> None:
        self.path = part_path(table, fingerprint)
        self.notes: dict[str, Any] = {}
        self.rows = 0
        self._storage = storage
        self._given = schema
        self._schema = written_schema(schema)
        self._images = [f.name for f in schema if role(f) == "image"]
        self._sidecars = [f.name for f in schema if role(f) == "sidecar"]
        self._shard_path = shard_path(number, fingerprint)
        self._stack = ExitStack()
        self._shard: ShardWriter | None = None
        self._held: list[pa.Table] = []

    def __enter__(self) -> Self:
        # Closed in the reverse order: first the shard appears, then the part that names it.
        self._file = self._stack.enter_context(self._storage.writer(self.path))
        self._parquet = pq.ParquetWriter(self._file, self._schema, **_encoding(self._schema))
        if self._images:
            self._shard = self._stack.enter_context(ShardWriter(self._storage, self._shard_path))
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: Any) -> None:
        if kind is None:
            try:
                self._flush()
                self._parquet.add_key_value_metadata({NOTES: json.dumps(self.notes, sort_keys=True, default=str)})
                self._parquet.close()
            except BaseException as failure:
                self._stack.__exit__(type(failure), failure, failure.__traceback__)
                raise
        self._stack.__exit__(kind, error, trace)

    def write(self, piece: pa.Table) -> None:
        """Append rows. Raises ArrowInvalid where they do not fit the declared schema."""
        rows = piece.select(self._given.names).cast(self._given)
        if self._shard is not None:
            place = self._shard.add(rows, self._images[0], self._sidecars)
            rows = rows.drop_columns(self._images + self._sidecars)
            for f, column in zip(_PLACE, place, strict=True):
                rows = rows.append_column(f, column)
            rows = rows.select(self._schema.names)
        elif self._sidecars:
            rows = rows.drop_columns(self._sidecars)
        self.rows += rows.num_rows
        self._held.append(rows)
        if sum(t.num_rows for t in self._held) >= _ROW_GROUP_ROWS or sum(t.nbytes for t in self._held) >= _ROW_GROUP_BYTES:
            self._flush()

    def part(self, size: int) -> PartFile:
        """Return what was written."""
        return PartFile(self.path, self.rows, size, self.notes)

    def _flush(self) -> None:
        if self._held:
            rows = pa.concat_tables(self._held).cast(self._schema)
            self._parquet.write_table(rows, row_group_size=max(rows.num_rows, 1))
            self._held = []


def _encoding(schema: pa.Schema) -> dict[str, Any]:
    """Return Parquet settings: zstd, and no dictionary for vectors (it makes them 3 times slower and no smaller).

    Not byte-stream-split, though it saves 8 %: DuckDB 2.0 refuses to read it for float16.
    """
    return {"compression": "zstd", "use_dictionary": [f.name for f in schema if not pa.types.is_nested(f.type)]}


def number_rows(rows: pa.Table, number: int, start: int) -> pa.Table:
    """Return rows of a source with the sample_ids that follow from the part's number and the row's place."""
    from catalog.schema import SAMPLE_BITS

    ids = pa.array(range((number << SAMPLE_BITS) + start, (number << SAMPLE_BITS) + start + rows.num_rows), pa.int64())
    return rows.add_column(0, SAMPLE_ID, ids)
