"""An index returns the ids that were added, supports removal, and returns only allowed rows."""

from functools import cache
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest

from catalog.errors import UserError
from tasks.index.choose import Choice
from tasks.index.vector_index import VectorIndex, unit_blocks, unit_rows

ROWS, DIM = 2000, 32
CHOICES = [
    Choice("flat", "float32", ROWS, DIM),
    Choice("hnsw", "float32", ROWS, DIM),
    Choice("ivf", "float32", ROWS, DIM, 16),
    Choice("ivf", "float16", ROWS, DIM, 16),
    Choice("ivf", "8bit", ROWS, DIM, 16),
    Choice("ivfpq", "pq", ROWS, DIM, 16, 16),
    Choice("opq", "pq", ROWS, DIM, 16, 16),
]
IDS = (np.int64(7) << 24) + np.arange(ROWS, dtype=np.int64) * 3
VECTORS = unit_rows(np.random.default_rng(3).standard_normal((ROWS, DIM))).astype(np.float16)


@pytest.fixture(params=CHOICES, ids=lambda choice: choice.factory)
def choice(request: pytest.FixtureRequest) -> Choice:
    chosen: Choice = request.param
    return chosen


def trained(choice: Choice) -> VectorIndex:
    index = VectorIndex.train(choice, VECTORS, seed=1)
    for start in range(0, ROWS, 700):
        index.add(IDS[start : start + 700], unit_rows(VECTORS[start : start + 700]))
    return index


@cache
def written(choice: Choice) -> bytes:
    buffer = BytesIO()
    trained(choice).write(buffer)
    return buffer.getvalue()


def filled(choice: Choice) -> VectorIndex:
    """Return a separate copy of an index that was trained once."""
    return VectorIndex.read(None, written(choice), choice.kind)


def test_rows_are_found_under_their_ids(choice: Choice, tmp_path: Path) -> None:
    index = filled(choice)
    assert index.rows == ROWS
    with (tmp_path / "i").open("wb") as file:
        index.write(file)
    for again in (
        index,
        VectorIndex.read(str(tmp_path / "i"), None, choice.kind, mapped=True),
        VectorIndex.read(None, (tmp_path / "i").read_bytes(), choice.kind),
    ):
        scores, found = again.search(unit_rows(VECTORS[:50]), 5, again.most_effort)
        assert (found[:, 0] == IDS[:50]).mean() >= (0.9 if choice.coding == "pq" else 1)
        assert (np.diff(scores, axis=1) <= 0).all()
        if not choice.is_lossy:
            assert np.allclose(scores[:, 0], 1, atol=2e-3)


def test_only_allowed_rows_are_found(choice: Choice) -> None:
    index = filled(choice)
    allowed = IDS[::97]
    _, found = index.search(unit_rows(VECTORS[:20]), len(allowed) + 5, index.most_effort, allowed)
    assert all(set(row) == {*allowed, -1} for row in found)


def test_removed_rows_are_not_found(choice: Choice) -> None:
    index = filled(choice)
    if not index.can_remove:
        with pytest.raises(UserError, match="removed from an index of kind hnsw"):
            index.remove(IDS[:3])
        return
    assert index.remove(np.array([IDS[0], IDS[5], 12])) == 2
    assert index.remove_span(int(IDS[10]), int(IDS[19])) == 10
    assert index.rows == ROWS - 12
    _, found = index.search(unit_rows(VECTORS[:20]), 50, index.most_effort)
    assert not np.isin(found, [IDS[0], IDS[5], *IDS[10:20]]).any()


def test_rows_without_a_direction_are_skipped() -> None:
    bad = VECTORS[:7].copy()
    bad[0], bad[1, 3], bad[2, 0] = 0, np.nan, np.inf
    blocks = list(unit_blocks(IDS[:7], bad, block_rows=4))
    assert [ids.tolist() for ids, _ in blocks] == [IDS[3:4].tolist(), IDS[4:7].tolist()]
    assert np.array_equal(np.concatenate([rows for _, rows in blocks]), unit_rows(VECTORS[3:7]))
    assert blocks[0][1].dtype == np.float32
    assert list(unit_blocks(IDS[:0], VECTORS[:0])) == []


def test_training_is_the_same_twice() -> None:
    for chosen in (CHOICES[2], CHOICES[6]):
        one, two = (trained(chosen).search(unit_rows(VECTORS), 5, 2) for _ in range(2))
        assert np.array_equal(one[0], two[0])
        assert np.array_equal(one[1], two[1])


def test_a_damaged_file_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "i").write_bytes(b"IxXX nothing of the kind")
    with pytest.raises(UserError, match="cannot be read"):
        VectorIndex.read(str(tmp_path / "i"), None, "flat", mapped=True)
    with pytest.raises(UserError, match="cannot be read"):
        VectorIndex.read(None, b"IxXX", "ivf")
