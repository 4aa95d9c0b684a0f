"""Reorder vectors on disk with sequential writes: first into buckets, then bucket by bucket.

Writing each row directly to its place in a memory map would touch every page several times in random order, which takes
minutes.
"""

from collections.abc import Iterable
from contextlib import ExitStack
from itertools import pairwise
from pathlib import Path
from typing import Final

import numpy as np

from tasks.vectors.mapped import release, usable

BUCKET_BYTES: Final = 1 << 28
MOST_BUCKETS: Final = 256
"""The maximum number of open files. Above 64 GB of vectors, buckets are larger."""

USABLE_ROWS: Final = 2048
"""Rows that are checked at once: as float32 they fit into the cache, and need no new pages."""

Placed = Iterable[tuple[np.ndarray, np.ndarray]]
"""Places int64 (m,), each of 0 .. rows - 1 at most once; vectors (m, d)."""


def spill(
    placed: Placed, path: Path, rows: int, dim: int, bucket_bytes: int = BUCKET_BYTES
) -> tuple[np.ndarray, np.ndarray]:
    """Write vectors to their places; return (float16 (rows, d), memory-mapped; which have a direction, bool (rows,)).

    Memory: two buckets of `bucket_bytes`. Temporarily the vectors are on disk twice.
    """
    out = np.lib.format.open_memmap(path, mode="w+", dtype=np.float16, shape=(max(rows, 1), dim))[:rows]
    there = np.zeros(rows, bool)
    size = max(bucket_bytes // (2 * dim), -(-rows // MOST_BUCKETS), 1)
    record = np.dtype([("place", np.int64), ("vector", np.float16, (dim,))])
    buckets = [path.with_suffix(f".{number}") for number in range(-(-rows // size))]
    with ExitStack() as stack:
        files = [stack.enter_context(bucket.open("wb")) for bucket in buckets]
        for places, vectors in placed:
            for begin in range(0, len(places), USABLE_ROWS):
                piece = slice(begin, begin + USABLE_ROWS)
                there[places[piece]] = usable(vectors[piece])
            order = np.argsort(places)
            records = np.empty(len(order), record)
            records["place"], records["vector"] = places[order], vectors[order]
            edges = np.searchsorted(records["place"], np.arange(len(files) + 1) * size)
            for file, (begin, end) in zip(files, pairwise(edges.tolist()), strict=True):
                file.write(records[begin:end].view(np.uint8).data)
    for number, bucket in enumerate(buckets):
        held = np.fromfile(bucket, record)
        bucket.unlink()
        block = np.zeros((min(size, rows - number * size), dim), np.float16)
        block[held["place"] - number * size] = held["vector"]
        out[number * size : number * size + len(block)] = block
        release(out)
    return out, there
