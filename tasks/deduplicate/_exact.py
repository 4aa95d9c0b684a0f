"""Copies with the same file or the same pixels: equal digests of the bytes, or of the decoded picture.

Digests are compared by their first 128 bits: among 10 thousand million rows, one false pair is expected once in 10^19.
"""

from typing import Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from catalog.inputs import Inputs

BYTES: Final = "sha256"
PIXELS: Final = "pixels_sha256"
"""Columns of images: the digest of the file as received, and that of the decoded picture."""

_NIBBLE = np.full(256, 255, np.uint8)
_NIBBLE[np.frombuffer(b"0123456789abcdef", np.uint8)] = np.arange(16)
_NIBBLE[np.frombuffer(b"ABCDEF", np.uint8)] = np.arange(10, 16)


def digests(inputs: Inputs, ids: np.ndarray, column: str = BYTES) -> tuple[np.ndarray, np.ndarray]:
    """Return (the first 128 bits of each row's digest, uint64 (n, 2); which rows have one, bool (n,))."""
    words, known = np.zeros((len(ids), 2), np.uint64), np.zeros(len(ids), bool)
    for batch in inputs.batches({"images": (column,)}):
        at = np.searchsorted(ids, batch.column("sample_id").to_numpy())
        words[at], known[at] = parse(batch.column(column))
    return words, known


def parse(column: pa.ChunkedArray) -> tuple[np.ndarray, np.ndarray]:
    """Return (words uint64 (n, 2), valid bool (n,)) of hex digests. Valid digests have 64 hex digits."""
    words, valid = np.zeros((len(column), 2), np.uint64), np.zeros(len(column), bool)
    lengths = pc.fill_null(pc.binary_length(column), 0).to_numpy()
    rows = np.flatnonzero(lengths == 64)
    if len(rows):
        text = pc.cast(column.take(pa.array(rows)), pa.binary()).cast(pa.binary(64)).combine_chunks()
        letters = np.frombuffer(b"".join(_buffers(text)), np.uint8).reshape(-1, 64)
        nibbles = _NIBBLE[letters]
        octets = (nibbles[:, 0:32:2] << 4 | nibbles[:, 1:32:2]).astype(np.uint8)
        words[rows] = np.ascontiguousarray(octets).view(np.uint64)
        valid[rows] = (nibbles < 16).all(axis=1)
    return words, valid


def _buffers(array: pa.Array | pa.ChunkedArray) -> list[memoryview]:
    chunks = array.chunks if isinstance(array, pa.ChunkedArray) else [array]
    return [memoryview(c.buffers()[1])[c.offset * 64 : (c.offset + len(c)) * 64] for c in chunks if len(c)]


def representatives(words: np.ndarray, key: np.ndarray) -> np.ndarray:
    """Return, for each row, the first row by `key` (ties: by place) among those with the same words: int64 (n,).

    `words`: uint64 (n, 2); `key`: (n,). A row that is its own representative is kept.
    """
    if len(words) == 0:
        return np.empty(0, np.int64)
    order = np.lexsort((key, words[:, 1], words[:, 0]))
    new = np.ones(len(order), bool)
    new[1:] = (words[order[1:]] != words[order[:-1]]).any(axis=1)
    first = order[np.flatnonzero(new)]
    result = np.empty(len(order), np.int64)
    result[order] = first[np.cumsum(new) - 1]
    return result
