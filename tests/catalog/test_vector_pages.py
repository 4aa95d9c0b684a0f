"""Vectors read page by page are those that Arrow reads; whatever is stored otherwise is left to Arrow."""

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from catalog import pieces
from catalog.errors import DamagedError
from catalog.parts import PartWriter
from catalog.pieces import read_parquet
from catalog.schema import SAMPLE_ID, vector
from catalog.storage import Storage
from catalog.vector_pages import read_vectors

DIM = 48
SCHEMA = pa.schema([SAMPLE_ID, vector("clip", DIM, "a vector"), pa.field("n", pa.int32()), vector("text", DIM, "")])


def table(rows: int, null: tuple[int, ...] = (), schema: pa.Schema = SCHEMA) -> pa.Table:
    """Return rows of random bits: every float16 there is, NaN and infinities too. `null`: rows without `text`."""
    rng = np.random.default_rng(rows)

    def vectors(gone: tuple[int, ...]) -> pa.Array:
        bits = rng.integers(0, 1 << 16, rows * DIM).astype(np.uint16)
        mask = pa.array(np.isin(np.arange(rows), gone))
        return pa.FixedSizeListArray.from_arrays(pa.array(bits.view(np.float16)), DIM, mask=mask)

    numbers = np.arange(rows)
    return pa.table([numbers, vectors(()), pa.array(numbers, pa.int32()), vectors(null)], schema=schema)


def bits(column: pa.ChunkedArray) -> tuple[list[bool], bytes]:
    """Return what compares equal only where every bit is, NaN too."""
    numbers = pa.concat_arrays([chunk.drop_null().flatten() for chunk in column.chunks]).to_numpy(zero_copy_only=False)
    return column.is_valid().to_pylist(), numbers.tobytes()


def written(folder: Path, rows: pa.Table, **settings: Any) -> Path:
    path = folder / "rows.parquet"
    pq.write_table(rows, path, **{"compression": "zstd", "use_dictionary": ["sample_id"]} | settings)
    return path


def pages(path: Path, name: str = "clip") -> pa.ChunkedArray | None:
    with pq.ParquetFile(path) as file:
        groups = [file.metadata.row_group(number) for number in range(file.num_row_groups)]
        found = [read_vectors(path, group, file.schema_arrow.field(name)) for group in groups]
    return None if None in found else pa.chunked_array(found)


@pytest.mark.parametrize("sizes", [(1,), (3000,), (70_000,), (40_000, 40_000, 7)])
def test_a_part_reads_as_arrow_reads_it(tmp_path: Path, sizes: tuple[int, ...]) -> None:
    storage = Storage.open(str(tmp_path), create=True)
    with PartWriter(storage, "embeddings", "part", SCHEMA) as writer:
        for size in sizes:
            writer.write(table(size))
    path = tmp_path / writer.path
    expected = pq.read_table(path)
    found = pages(path)
    assert found is not None
    assert bits(found) == bits(expected["clip"])
    for columns in (None, ["sample_id", "clip"], ["clip", "n"], ["text", "nowhere", "clip"], ["n"], ["clip"], []):
        ours = read_parquet(storage, writer.path, columns)
        with pq.ParquetFile(path) as file:
            theirs = file.read(columns)
        assert ours.schema.equals(theirs.schema, check_metadata=True)
        assert ours.num_rows == theirs.num_rows
        for name in ours.schema.names:
            if name in ("clip", "text"):
                assert bits(ours[name]) == bits(theirs[name])
            else:
                assert ours[name].equals(theirs[name])


@pytest.mark.parametrize("page", [100, 1 << 12, 1 << 24])
def test_pages_of_any_size(tmp_path: Path, page: int) -> None:
    rows = table(5000)
    found = pages(written(tmp_path, rows, data_page_size=page, row_group_size=1777))
    assert found is not None
    assert bits(found) == bits(rows["clip"])


def test_the_fast_way_is_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    taken: list[str] = []

    def watched(path: Path, group: pq.RowGroupMetaData, field: pa.Field) -> pa.Array | None:
        found = read_vectors(path, group, field)
        taken.extend([field.name] if found is not None else [])
        return found

    monkeypatch.setattr(pieces, "read_vectors", watched)
    written(tmp_path, table(100, null=(3, 4, 99)))
    found = read_parquet(Storage.open(str(tmp_path)), "rows.parquet")
    assert taken == ["clip"]  # `text` has nulls
    assert found["text"].is_null().to_numpy().nonzero()[0].tolist() == [3, 4, 99]


@pytest.mark.parametrize(
    "settings",
    [
        {"compression": "none"},
        {"compression": "snappy"},
        {"use_dictionary": True},
        {"data_page_version": "2.0"},
        {"use_byte_stream_split": ["clip.list.element"]},
        {"write_statistics": False},
    ],
    ids=lambda settings: next(iter(settings)),
)
def test_what_is_stored_otherwise_is_left_to_arrow(tmp_path: Path, settings: dict[str, Any]) -> None:
    rows = table(500)
    assert pages(written(tmp_path, rows, **settings)) is None
    found = read_parquet(Storage.open(str(tmp_path)), "rows.parquet")
    assert bits(found["clip"]) == bits(rows["clip"])


def test_null_numbers_in_a_vector_are_left_to_arrow(tmp_path: Path) -> None:
    values = pa.array([None, *np.ones(2 * DIM - 1, np.float16)], pa.float16())
    rows = pa.table({"sample_id": [0, 1], "clip": pa.FixedSizeListArray.from_arrays(values, DIM)})
    assert pages(written(tmp_path, rows)) is None


def test_no_rows(tmp_path: Path) -> None:
    written(tmp_path, table(0))
    found = read_parquet(Storage.open(str(tmp_path)), "rows.parquet")
    assert found.num_rows == 0
    assert found.schema.names == SCHEMA.names


def test_a_damaged_file_is_named(tmp_path: Path) -> None:
    path = written(tmp_path, table(2000))
    with pq.ParquetFile(path) as file:
        chunk = file.metadata.row_group(0).column(1)
    whole = path.read_bytes()
    rng = np.random.default_rng(0)
    refused = 0
    for _ in range(200):  # somewhere in the first header, and at the beginning of its page
        at = chunk.data_page_offset + int(rng.integers(0, 60))
        path.write_bytes(whole[:at] + rng.bytes(4) + whole[at + 4 :])
        refused += pages(path) is None  # and raises nothing
    assert refused > 50
    path.write_bytes(whole[: chunk.data_page_offset] + bytes(64) + whole[chunk.data_page_offset + 64 :])
    with pytest.raises(DamagedError, match=r"rows\.parquet is damaged: "):
        read_parquet(Storage.open(str(tmp_path)), "rows.parquet", ["clip"])
