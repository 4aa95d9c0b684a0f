"""Perceptual copies: hashes that differ in a few bits."""

import math
from collections.abc import Iterator
from itertools import combinations, pairwise
from pathlib import Path
from typing import Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from pydantic import Field

from catalog.duck import open_database
from catalog.inputs import Inputs
from tasks.deduplicate._base import Preference
from tasks.stage import Config

LEAST_BITS: Final = 4
"""Hashes with fewer set, or fewer clear, bits are of flat images, and collide with each other."""
BITS: Final = 64
MOST_RADIUS: Final = 6
MEMORY_MB: Final = 2000
"""DuckDB's memory limit for the join; beyond it, it spills to disk."""


class Perceptual(Config):
    """Settings of perceptual copies: 64-bit hashes within a Hamming radius; no pair is missed."""

    radius: int = Field(3, ge=0, le=MOST_RADIUS, description="maximum number of differing bits of 64")


def hashes(inputs: Inputs, ids: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return (phash int64 (n,), which rows have a meaningful one, bool (n,))."""
    found, known = np.zeros(len(ids), np.int64), np.zeros(len(ids), bool)
    for batch in inputs.batches({"images": ("phash",)}):
        at = np.searchsorted(ids, batch.column("sample_id").to_numpy())
        column = batch.column("phash")
        found[at] = pc.fill_null(column, 0).to_numpy()
        known[at] = column.is_valid().to_numpy()
    return found, known & is_meaningful(found)


def is_meaningful(values: np.ndarray) -> np.ndarray:
    """Return which hashes, int64 (n,), are not those of flat images: bool (n,)."""
    bits = np.bitwise_count(values.view(np.uint64))
    result: np.ndarray = (bits >= LEAST_BITS) & (bits <= BITS - LEAST_BITS)
    return result


def distance(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """Return how many bits two arrays of hashes, int64 (n,), differ in: uint8 (n,)."""
    return np.asarray(np.bitwise_count((one ^ other).view(np.uint64)))


class Looks:
    """Ties by looks among n rows: rows with one hash, and hashes near each other. Memory: 32 bytes a row, 16 a pair."""

    def __init__(self, hash_: np.ndarray, known: np.ndarray, radius: int, scratch: Path | None = None) -> None:
        """`hash_`: int64 (n,); `known`: bool (n,), the rows to compare."""
        self.hash = hash_
        self._value = np.full(len(hash_), -1, np.int64)
        values, self._value[known] = np.unique(hash_[known], return_inverse=True)
        self._count = len(values)
        self._near = pairs(values, radius, scratch)

    def first(self, order: Preference, of: np.ndarray, among: np.ndarray) -> np.ndarray:
        """Return, for each row in `of`, the first row of `among` that is tied to it and comes before it; -1 for none.

        `of`: int64 (m,), `among`: int64 (k,), rows of `order`. Returns int64 (m,).
        """
        none = len(order.row)
        best = np.full(self._count + 1, none, np.int64)  # the last value is that of rows without a hash
        np.minimum.at(best, self._value[among], order.rank[among])
        best[-1] = none
        reach = best.copy()
        for one, other in ((0, 1), (1, 0)):
            np.minimum.at(reach, self._near[:, one], best[self._near[:, other]])
        found = reach[self._value[of]]
        there = found < order.rank[of]
        result = np.full(len(of), -1, np.int64)
        result[there] = order.row[found[there]]
        return result

    def links(self, order: Preference) -> np.ndarray:
        """Return pairs of rows that link all tied rows of `order`: int64 (m, 2)."""
        mine = order.row[self._value[order.row] >= 0]
        values, at = np.unique(self._value[mine], return_index=True)
        first = np.full(self._count, -1, np.int64)
        first[values] = mine[at]
        near = first[self._near]
        return np.concatenate([np.stack([mine, first[self._value[mine]]], axis=1), near[(near >= 0).all(axis=1)]])


def pairs(values: np.ndarray, radius: int, scratch: Path | None = None) -> np.ndarray:
    """Return all pairs (later, earlier) of distinct hashes int64 (n,) within `radius` bits: int64 (m, 2).

    A pair within r bits leaves at least s of r + s bands of bits alike, so it meets in one of the joins on s bands.
    """
    if radius == 0:
        return np.empty((0, 2), np.int64)
    return _joined(values, values, radius, scratch, "a.n > b.n and")


def between(values: np.ndarray, others: np.ndarray, radius: int, scratch: Path | None = None) -> np.ndarray:
    """Return all pairs (place in `values`, place in `others`) within `radius` bits, equal ones too: int64 (m, 2)."""
    return _joined(values, others, radius, scratch)


def _joined(one: np.ndarray, other: np.ndarray, radius: int, scratch: Path | None, also: str = "") -> np.ndarray:
    joins = [
        f"select a.n as late, b.n as early from one a join other b on (a.h & {mask}) = (b.h & {mask}) "
        f"where {also} bit_count(xor(a.h, b.h)) <= {radius}"
        for mask in _masks(radius, len(one) * len(other))
    ]
    folder = scratch / "duckdb" if scratch is not None else None
    with open_database(memory_mb=MEMORY_MB, scratch=folder) as connection:
        for name, hash_ in (("one", one), ("other", other)):
            connection.register(name, pa.table({"n": np.arange(len(hash_)), "h": hash_.view(np.uint64)}))
        found = connection.sql(" union ".join(joins) + " order by late, early").to_arrow_table()
    return np.stack([found.column(name).to_numpy() for name in ("late", "early")], axis=1)


def _masks(radius: int, candidates: int) -> Iterator[str]:
    """Yield what is joined on. More bands alike mean fewer false candidates and more joins: the cheapest is taken."""

    def cost(alike: int) -> float:
        joins = math.comb(radius + alike, alike)
        return joins * (math.sqrt(candidates) + candidates / 2 ** (BITS * alike / (radius + alike)))

    alike = min((1, 2, 3, 4), key=cost)
    edges = np.linspace(0, BITS, radius + alike + 1).astype(int).tolist()
    bands = [(1 << high) - (1 << low) for low, high in pairwise(edges)]
    for some in combinations(bands, alike):
        yield f"{sum(some)}::ubigint"
