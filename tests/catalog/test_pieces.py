"""A table is a list of pieces, each of a part of the source or of all of them, in this dataset or in another."""

from pathlib import Path

import pyarrow as pa
import pytest

from catalog.errors import DamagedError
from catalog.parts import PartWriter, part_path
from catalog.pieces import Piece, Pieces, read_parquet
from catalog.schema import SAMPLE_ID
from catalog.storage import Storage

SCHEMA = pa.schema([SAMPLE_ID, pa.field("length", pa.int64())])


def written(folder: Path, ids: list[int]) -> tuple[Storage, Piece]:
    """Write a part with some rows; return its storage, and the piece, which has none of its own."""
    storage = Storage.open(folder, create=True)
    with PartWriter(storage, "lengths", "a", SCHEMA) as writer:
        writer.write(pa.table({"sample_id": ids, "length": [i * 10 for i in ids]}, schema=SCHEMA))
    return storage, Piece(part_path("lengths", "a"))


def test_columns_in_the_order_of_the_request(tmp_path: Path) -> None:
    storage, piece = written(tmp_path, [1, 2])
    assert piece.columns(storage) == ["sample_id", "length"]
    assert piece.read(storage, ["length", "sample_id"]).to_pydict() == {"length": [10, 20], "sample_id": [1, 2]}
    assert piece.read(storage, ["sample_id"], (2, 9)).to_pydict() == {"sample_id": [2]}
    assert [b.num_rows for b in piece.batches(storage, ["length"], 1)] == [1, 1]


def test_a_piece_of_another_dataset_is_read_from_there(tmp_path: Path) -> None:
    mine, _ = written(tmp_path / "mine", [1])
    other, _ = written(tmp_path / "other", [7, 8])
    piece = Piece(part_path("lengths", "a"), storage=other)
    assert piece.read(mine, ["length"]).to_pydict() == {"length": [70, 80]}
    assert piece.read(None, ["length"], (8, 8)).to_pydict() == {"length": [80]}
    assert piece.columns(mine) == ["sample_id", "length"]
    assert [b.to_pydict() for b in piece.batches(mine, ["length"], 9)] == [{"length": [70, 80]}]


def test_pieces_of_a_part() -> None:
    pieces = Pieces(SCHEMA, (Piece("a", 0), Piece("b", 1), Piece("all")))
    assert [p.path for p in pieces.of_part(1).pieces] == ["b", "all"]
    assert [p.path for p in pieces.of_part(7).pieces] == ["all"]
    assert pieces.of_part(None) == pieces


def test_a_damaged_file_is_named(tmp_path: Path) -> None:
    storage, piece = written(tmp_path, [1])
    (tmp_path / piece.path).write_bytes(b"no Parquet")
    with pytest.raises(DamagedError, match=r"lengths/a\.parquet"):
        read_parquet(storage, piece.path)
