"""Memory maps: what is unmapped is not lost, rows are gathered piece by piece, and unusable rows are found."""

from pathlib import Path

import numpy as np
import pytest

from tasks.vectors import mapped
from tests.tasks.vectors.resident import mapped_bytes


def test_usable_is_the_same_rule_for_halves() -> None:
    rng = np.random.default_rng(0)
    bits = rng.choice(
        np.array([0, 0x8000, 1, 0x8001, 0x3C00, 0xFBFF, 0x7C00, 0xFC00, 0x7E00, 0xFE01], np.uint16), 12_000
    )
    rows = bits.reshape(-1, 2).view(np.float16)
    wide = rows.astype(np.float64)
    expected = np.logical_and(np.isfinite(wide).all(1), wide.any(1))
    assert 0 < expected.sum() < len(rows)
    for given in (rows, np.asfortranarray(rows), rows[::2], rows[:0]):
        good = mapped.usable(given)
        assert good.tolist() == (expected[::2] if len(given) == len(rows) // 2 else expected[: len(given)]).tolist()
        with np.errstate(invalid="ignore"):
            assert good.tolist() == mapped.usable(given.astype(np.float32)).tolist()


def test_released_rows_are_still_there(tmp_path: Path) -> None:
    rows = np.lib.format.open_memmap(tmp_path / "rows.npy", mode="w+", dtype=np.float16, shape=(1000, 8))
    rows[:] = np.arange(8000).reshape(1000, 8)
    mapped.release(rows[10:20])
    assert (rows == np.arange(8000).reshape(1000, 8).astype(np.float16)).all()
    private = np.load(tmp_path / "rows.npy", mmap_mode="c")
    private[5] = 7
    mapped.release(private)
    mapped.release(private[2:9])
    assert (private[5] == 7).all()
    mapped.release(np.ones(3))


def test_rows_gathered_from_a_map_are_unmapped_piece_by_piece(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A page cache of large pages maps 2 MB around each row: all at once, a few thousand would map a whole file."""
    rows = np.lib.format.open_memmap(tmp_path / "rows.npy", mode="w+", dtype=np.float16, shape=(20_000, 256))
    rows[:] = np.arange(20_000)[:, None]
    mapped.release(rows)
    at = np.random.default_rng(0).permutation(20_000)[:1000]
    assert (mapped.gather(rows, at, piece_rows=16) == rows[at]).all()
    released, release = [], mapped.release
    monkeypatch.setattr(mapped, "release", lambda rows: (released.append(mapped_bytes(tmp_path)), release(rows)))
    mapped.gather(rows, at, piece_rows=16)
    assert mapped_bytes(tmp_path) == 0
    assert len(released) == -(-1000 // 16)
    assert mapped.gather(rows, at[:0]).shape == (0, 256)
