"""Coverage of concepts and of the tail: the numbers by which selections of rows are compared.

A concept is a cluster (or a label, or any other integer of a row); its sizes before and after a selection are compared.
"""

from dataclasses import dataclass
from typing import Final

import numpy as np

TAIL: Final = 0.2
"""The tail: the last fifth of the rows, sorted by descending size of their concept."""


@dataclass(frozen=True)
class Coverage:
    """Sizes of concepts before and after a selection. Concepts without rows before are excluded."""

    concept: np.ndarray
    """int64 (c,): the concepts that had rows, ascending."""
    before: np.ndarray
    """int64 (c,): rows of each before."""
    kept: np.ndarray
    """int64 (c,): rows of each kept."""

    @property
    def share(self) -> float:
        """Return the share of rows kept."""
        return _ratio(self.kept.sum(), self.before.sum())

    @property
    def shares(self) -> np.ndarray:
        """Return the share of rows kept of each concept: float64 (c,)."""
        return np.asarray(self.kept / self.before)

    @property
    def emptied(self) -> int:
        """Return how many concepts have no row left."""
        return int((self.kept == 0).sum())

    @property
    def tail(self) -> np.ndarray:
        """Return the fraction of each concept's rows in the tail: float64 (c,), 0..1 (`tail_weights`)."""
        return tail_weights(self.before)

    @property
    def tail_concepts(self) -> int:
        """Return how many concepts are at least partly in the tail."""
        return int((self.tail > 0).sum())

    @property
    def tail_share(self) -> float:
        """Return the share of the tail's rows that are kept: sum(w * kept) / sum(w * before), w being `tail`."""
        weights = self.tail
        return _ratio(weights @ self.kept, weights @ self.before)

    @property
    def effective(self) -> tuple[float, float]:
        """Return the effective number of concepts, before and after."""
        return effective_number(self.before), effective_number(self.kept)

    @property
    def gini(self) -> tuple[float, float]:
        """Return the Gini coefficient of the sizes, before and after: 0 if all are equal."""
        return gini(self.before), gini(self.kept)


def coverage(clusters: np.ndarray, kept: np.ndarray) -> Coverage:
    """Return the coverage of concepts if some rows are kept.

    `clusters`: integers (n,), the concept of each row; negative ones have none, and do not count.
    `kept`: bool (n,). Raises ValueError if the lengths differ.
    """
    if len(clusters) != len(kept):
        raise ValueError(f"coverage: {len(clusters)} rows have a cluster, but {len(kept)} are kept or not")
    has = clusters >= 0
    concept, of, before = np.unique(clusters[has], return_inverse=True, return_counts=True)
    left = np.bincount(of, weights=kept[has], minlength=len(concept)).astype(np.int64)
    return Coverage(concept.astype(np.int64), before.astype(np.int64), left)


def tail_weights(sizes: np.ndarray, tail: float = TAIL) -> np.ndarray:
    """Return the fraction of each concept's rows in the last `tail` of all rows, sorted by descending concept size.

    The smallest concepts are entirely in it; those of the size at the boundary are in it with equal fractions, so the
    tail is exactly `tail` of the rows, and the order of equal sizes does not matter.
    `sizes`: integers (c,) above 0. Returns float64 (c,), 0..1.
    """
    size, of = np.unique(sizes, return_inverse=True)
    rows = size * np.bincount(of, minlength=len(size))  # rows of all concepts of a size, ascending
    end = np.cumsum(rows)
    inside = np.clip(tail * rows.sum() - (end - rows), 0, rows)
    return np.asarray((inside / np.maximum(rows, 1))[of], np.float64)


def effective_number(sizes: np.ndarray) -> float:
    """Return exp(entropy) of the shares (the Hill number of order 1): k if k concepts are equally large.

    `sizes`: non-negative numbers (c,). Returns 0 if there are no rows.
    """
    some = np.asarray(sizes, np.float64)
    some = some[some > 0]
    if not len(some):
        return 0.0
    shares = some / some.sum()
    return float(np.exp(-(shares * np.log(shares)).sum()))


def gini(sizes: np.ndarray) -> float:
    """Return sum_i (2 i - c - 1) x_i / (c sum x), x ascending, i from 1: 0 if all c are equal, to 1 - 1 / c.

    `sizes`: non-negative numbers (c,). Returns 0 if there are no rows. Source: Gini 1912, in the form of Sen 1973.
    """
    x = np.sort(np.asarray(sizes, np.float64))
    if not x.sum():
        return 0.0
    places = 2 * np.arange(1, len(x) + 1) - len(x) - 1
    return float(places @ x / (len(x) * x.sum()))


def _ratio(part: float, whole: float) -> float:
    return float(part / whole) if whole else 0.0
