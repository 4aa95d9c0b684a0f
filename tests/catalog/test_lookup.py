"""Rows by id come whole and in order, and only row groups that can hold them are read."""

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from catalog import lookup
from catalog.inputs import among
from catalog.schema import SAMPLE_ID, vector
from catalog.storage import Storage

SCHEMA = pa.schema([SAMPLE_ID, vector("clip", 4, "vectors"), pa.field("caption", pa.string())])


def write(folder: Path, name: str, first: int, rows: int, group: int = 10, **more: pa.Array) -> str:
    ids = np.arange(first, first + rows)
    values = np.repeat(ids % 100, 4).astype(np.float16)
    missing = pa.array(ids % 7 == 3)
    vectors = pa.FixedSizeListArray.from_arrays(pa.array(values), 4, mask=missing)
    table = pa.table([pa.array(ids), vectors, pa.array([f"c{i}" for i in ids])], schema=SCHEMA)
    for column, content in more.items():
        table = table.append_column(column, content)
    pq.write_table(table, folder / name, row_group_size=group)
    return name


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The row groups that were read."""
    seen: list[int] = []
    read = pq.ParquetFile.read_row_group

    def counted(self: pq.ParquetFile, number: int, *args: Any, **options: Any) -> pa.Table:
        seen.append(number)
        return read(self, number, *args, **options)

    monkeypatch.setattr(pq.ParquetFile, "read_row_group", counted)
    return seen


def test_rows_by_id_read_their_row_groups_alone(tmp_path: Path, reads: list[int]) -> None:
    paths = [write(tmp_path, "b", 1000, 100), write(tmp_path, "a", 0, 100)]
    found = lookup.rows_of(Storage.open(tmp_path), paths, np.array([5, 55, 500, 1099]), ["caption"])
    assert found.to_pylist() == [{"sample_id": i, "caption": f"c{i}"} for i in (5, 55, 1099)]
    assert sorted(reads) == [0, 5, 9]


def test_a_part_that_lacks_a_column_gives_nulls(tmp_path: Path) -> None:
    paths = [write(tmp_path, "a", 0, 5), write(tmp_path, "b", 10, 5, extra=pa.array(range(5)))]
    found = lookup.rows_of(Storage.open(tmp_path), paths, np.array([1, 12]))
    assert found.column("extra").to_pylist() == [None, 2]
    assert found.schema.field("clip").metadata[b"role"] == b"vector"


def test_columns_that_are_not_asked_for_may_have_types_that_do_not_go_together(tmp_path: Path) -> None:
    paths = [write(tmp_path, "0", 0, 2, note=pa.array([1, 2])), write(tmp_path, "1", 10, 2, note=pa.array(["a", "b"]))]
    parts = lookup.Parts(Storage.open(tmp_path), paths)
    assert parts.rows(np.array([1, 10]), ["caption"])["caption"].to_pylist() == ["c1", "c10"]


def test_blocks_skip_rows_without_a_vector(tmp_path: Path) -> None:
    path = write(tmp_path, "a", 0, 100)
    blocks = list(lookup.blocks(Storage.open(tmp_path), path, "clip"))
    ids = np.concatenate([ids for ids, _ in blocks])
    assert ids.tolist() == [i for i in range(100) if i % 7 != 3]
    assert np.concatenate([v for _, v in blocks])[:, 0].tolist() == [float(i) for i in ids]
    assert blocks[0][1].dtype == np.float16
    some = list(lookup.blocks(Storage.open(tmp_path), path, "clip", np.array([2, 3, 4, 90])))
    assert np.concatenate([ids for ids, _ in some]).tolist() == [2, 4, 90]


def test_nothing_wanted_and_nothing_there(tmp_path: Path, reads: list[int]) -> None:
    storage = Storage.open(tmp_path)
    paths = [write(tmp_path, "a", 0, 10), write(tmp_path, "empty", 0, 0)]
    assert lookup.rows_of(storage, paths, np.empty(0, np.int64)).num_rows == 0
    ids, vectors = lookup.vectors_of(lookup.Parts(storage, paths), "clip", np.array([77]))
    assert (ids.shape, vectors.shape) == ((0,), (0, 4))
    assert reads == []
    assert lookup.spans(storage, paths) == {"a": (0, 9), "empty": (0, -1)}
    assert among(np.array([1, 2]), np.empty(0, np.int64)).tolist() == [False, False]


def test_a_second_look_up_opens_only_what_it_needs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    paths = [write(tmp_path, name, first, 100) for name, first in (("b", 1000), ("a", 0), ("c", 5000))]
    parts = lookup.Parts(Storage.open(tmp_path), paths)
    assert parts.rows(np.array([7, 5001]), ["caption"]).column("caption").to_pylist() == ["c7", "c5001"]
    opened: list[str] = []
    opening = lookup._open

    def counted(storage: Storage, path: str) -> Any:
        opened.append(path)
        return opening(storage, path)

    monkeypatch.setattr(lookup, "_open", counted)
    assert parts.rows(np.array([1001, 3000]), ["caption"]).column("caption").to_pylist() == ["c1001"]
    assert opened == ["b"]
    assert parts.rows(np.array([3000])).num_rows == 0
    assert opened == ["b"]


def test_parts_that_overlap_come_in_order(tmp_path: Path) -> None:
    one = pq.read_table(tmp_path / write(tmp_path, "all", 0, 100))
    pq.write_table(one.take(list(range(0, 100, 2))), tmp_path / "even")
    pq.write_table(one.take(list(range(1, 100, 2))), tmp_path / "odd")
    storage = Storage.open(tmp_path)
    found = lookup.rows_of(storage, ["odd", "even"], np.arange(10, 30), ["caption"])
    assert found.column("caption").to_pylist() == [f"c{i}" for i in range(10, 30)]
    assert lookup.ids_of(storage, ["odd", "even"]).tolist() == list(range(100))
    assert lookup.ids_of(storage, []).tolist() == []
