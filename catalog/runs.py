"""The table `runs`: what each build ran, how long it took, and how it ended."""

import secrets
from collections.abc import Mapping, Sequence
from typing import Any, Final

import pyarrow as pa
import pyarrow.parquet as pq

from catalog import delta
from catalog.errors import NotFoundError, nearest, reading
from catalog.parts import describe_part
from catalog.schema import field
from catalog.seal import sealed_parquet
from catalog.storage import Storage

RUNS: Final = pa.schema(
    [
        field("run_id", pa.string(), "one build"),
        field("started_at", pa.timestamp("us", "UTC"), "when the stage began"),
        field("stage", pa.string(), "its name in the recipe"),
        field("use", pa.string(), "what it uses"),
        field("seconds", pa.float64(), "wall clock"),
        field("rows", pa.int64(), "rows of its table"),
        field("parts_made", pa.int64(), "parts that were computed"),
        field("parts_cached", pa.int64(), "parts that were there already"),
        field("bytes", pa.int64(), "size of its parts"),
        field("status", pa.string(), "completed, failed or crashed"),
        field("error", pa.string(), "one line; null where it completed"),
        field("host", pa.string(), "where the driver ran"),
        field("pid", pa.int64(), "of the driver"),
        field("fingerprint", pa.string(), "of all parts of the stage, as the stages of a version have it"),
        field("work", pa.float64(), "work of the parts that were computed, by the stage's own law"),
    ]
)


def append(storage: Storage, rows: Sequence[Mapping[str, Any]]) -> None:
    """Append rows to the runs of a dataset; a missing column is null. Many processes can append at once."""
    delta.widen(storage, "runs", RUNS)
    known = set(RUNS.names)
    if unknown := sorted({name for row in rows for name in row} - known):
        raise ValueError(f"runs have no column {unknown[0]!r}{nearest(unknown[0], known)}")
    path = f"runs/{secrets.token_hex(16)}.parquet"
    storage.put(path, sealed_parquet(pa.Table.from_pylist([dict(row) for row in rows], schema=RUNS)))
    delta.add(storage, "runs", RUNS, describe_part(storage, path))


def read(storage: Storage) -> pa.Table:
    """Return the runs of a dataset, oldest first."""
    try:
        paths = [part.path for part in delta.files(storage, "runs")]
    except NotFoundError:
        return RUNS.empty_table()
    with reading(storage.uri, "runs"):
        rows = pq.read_table(paths, schema=RUNS, filesystem=storage.filesystem())
    return rows.sort_by([("started_at", "ascending"), ("run_id", "ascending")])
