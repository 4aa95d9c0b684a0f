"""Rows of a memory map: unmapping what was read, gathering some rows, and finding the rows that have a direction.

Mapped pages are unmapped after each block (`release`), so that the memory of a process does not grow with the rows: a
file that fits remains in the page cache, which the kernel reclaims when it needs the memory.
"""

import mmap
from typing import Final

import numpy as np

PIECE_ROWS: Final = 256
"""Rows at arbitrary places of a memory map that are moved at once. Where the page cache uses large pages, the kernel
maps 2 MB around each row, and a few thousand rows would make the whole of a large file resident."""
_BLOCK_ROWS: Final = 1024


def release(rows: np.ndarray) -> None:
    """Unmap the pages of a memory map that were touched: they remain in the kernel's page cache, not in this process.

    No data is lost: what was written is in the page cache too. Does nothing to rows in memory, or to private
    (copy-on-write) maps, whose changes are stored nowhere else.
    """
    base: object = rows
    while isinstance(base, np.ndarray) and getattr(base, "mode", "") != "c":
        base = base.base
    if isinstance(base, mmap.mmap):
        base.madvise(mmap.MADV_DONTNEED)


def gather(rows: np.ndarray, at: np.ndarray, piece_rows: int = PIECE_ROWS) -> np.ndarray:
    """Return the rows `at`, int64 (m,), of a map (n, d): (m, d). The map is released after each `piece_rows` rows."""
    found = np.empty((len(at), *rows.shape[1:]), rows.dtype)
    for begin in range(0, len(at), piece_rows):
        piece = slice(begin, begin + piece_rows)
        found[piece] = rows[at[piece]]
        release(rows)
    return found


def usable(vectors: np.ndarray) -> np.ndarray:
    """Return which rows of (n, d) have a direction: bool (n,), false for zero, NaN and infinite ones."""
    if vectors.dtype == np.float16:
        return _usable_halves(np.ascontiguousarray(vectors))
    rows = vectors.astype(np.float32)
    squared = np.einsum("ij,ij->i", rows, rows)
    good: np.ndarray = np.isfinite(squared) & (squared > 0)
    return good


def _usable_halves(vectors: np.ndarray) -> np.ndarray:
    """Return the same for float16 from its bits, in a tenth of the time: no square overflows float32 or vanishes in it.

    Without the sign, the bits are ordered as the magnitudes: 0 is zero, and from 0x7C00 on they are infinite or NaN.
    """
    most = np.empty(len(vectors), np.uint16)
    for start in range(0, len(vectors), _BLOCK_ROWS):
        magnitudes = vectors[start : start + _BLOCK_ROWS].view(np.uint16) & np.uint16(0x7FFF)
        magnitudes.max(axis=1, out=most[start : start + _BLOCK_ROWS], initial=0)
    good: np.ndarray = (most > 0) & (most < 0x7C00)
    return good
