"""Copies that look the same: perceptual hashes that differ in a few bits."""

from itertools import combinations, pairwise
from typing import Final

import numpy as np
import pyarrow as pa
from pydantic import Field

from catalog.inputs import Inputs
from tasks.stage import Config

LEAST_BITS: Final = 4
"""Hashes with fewer set, or fewer clear, bits are of flat images, and collide with each other."""
BITS: Final = 64


class Perceptual(Config):
    """How copies by looks are found: 64-bit hashes within a Hamming radius, all pairs, none missed.

    Rows in the order of `keep`; a row goes where a row that stays is within the radius.
    """

    radius: int = Field(3, ge=0, le=6, description="most bits of 64 that two copies differ in")


def hashes(inputs: Inputs, ids: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return (phash int64 (n,), which rows have one that says something, bool (n,))."""
    found, known = np.zeros(len(ids), np.int64), np.zeros(len(ids), bool)
    for batch in inputs.batches({"images": ("phash",)}):
        at = np.searchsorted(ids, batch.column("sample_id").to_numpy())
        column = batch.column("phash")
        found[at] = pa.compute.fill_null(column, 0).to_numpy()
        known[at] = column.is_valid().to_numpy()
    bits = np.bitwise_count(found.view(np.uint64))
    return found, known & (bits >= LEAST_BITS) & (bits <= BITS - LEAST_BITS)


def find(hash_: np.ndarray, key: np.ndarray, radius: int) -> tuple[np.ndarray, np.ndarray]:
    """Return (rows that go, int64 (m,); the row that stands for each, int64 (m,)).

    `hash_`: int64 (n,); `key`: (n,), smallest comes first, ties by place.
    """
    order = np.argsort(key, kind="stable")
    values, first, same = np.unique(hash_[order], return_index=True, return_inverse=True)
    ranks = np.argsort(np.argsort(first))  # distinct hashes, numbered in the order of their first rows
    by_rank = np.empty(len(values), np.int64)
    by_rank[ranks] = values
    stands = _greedy(len(values), pairs(by_rank, radius))
    standing_first = np.sort(first)[stands][ranks][same]
    rows, representative = order, order[standing_first]
    out = rows != representative
    return rows[out], representative[out]


def pairs(values: np.ndarray, radius: int) -> np.ndarray:
    """Return all pairs (later, earlier) of distinct hashes int64 (n,) within `radius` bits: int64 (m, 2).

    A pair within r bits leaves at least two of r + 2 bands of bits alike, so it meets in one of the joins on two bands.
    """
    import duckdb

    if radius == 0:
        return np.empty((0, 2), np.int64)
    table = pa.table({"n": np.arange(len(values)), "h": values.view(np.uint64)})
    joins = [
        f"select a.n as late, b.n as early from hashes a join hashes b on (a.h & {mask}) = (b.h & {mask}) "
        f"where a.n > b.n and bit_count(xor(a.h, b.h)) <= {radius}"
        for mask in _masks(radius + 2)
    ]
    with duckdb.connect(config={"autoinstall_known_extensions": "false"}) as connection:
        connection.register("hashes", table)
        found = connection.sql(" union ".join(joins) + " order by late, early").to_arrow_table()
    return np.stack([found.column(name).to_numpy() for name in ("late", "early")], axis=1)


def _masks(bands: int) -> list[str]:
    edges = np.linspace(0, BITS, bands + 1).astype(int).tolist()
    band = [(1 << high) - (1 << low) for low, high in pairwise(edges)]
    return [f"{one | other}::ubigint" for one, other in combinations(band, 2)]


def _greedy(count: int, near: np.ndarray) -> np.ndarray:
    """Return what stands for each of `count` ordered things, itself where it stays: int64 (count,).

    `near`: (later, earlier) pairs. Settled in rounds: whatever has no unsettled earlier neighbour stays.
    """
    stands = np.full(count, -1, np.int64)
    open_ = np.ones(count, bool)
    while open_.any():
        near = near[open_[near[:, 0]] & open_[near[:, 1]]]
        ready = open_.copy()
        ready[near[:, 0]] = False
        stands[ready] = np.flatnonzero(ready)
        taken = near[ready[near[:, 1]]]
        earliest = np.full(count, count, np.int64)
        np.minimum.at(earliest, taken[:, 0], taken[:, 1])
        late = earliest < count
        stands[late] = earliest[late]
        open_ &= ~ready & ~late
    return stands
