"""What is left of every concept, and of the tail: one set of numbers by which choices of rows are compared.

A concept is a cluster (or a label, or whatever numbers rows); what is compared is how many rows each had, and has.
"""

from dataclasses import dataclass
from typing import Final

import numpy as np

TAIL: Final = 0.2
"""The tail: the last fifth of the rows, where those of the largest concepts come first."""


@dataclass(frozen=True)
class Coverage:
    """What a choice did to concepts. Concepts without rows before it take no part in any number."""

    concept: np.ndarray
    """int64 (c,): the concepts that had rows, ascending."""
    before: np.ndarray
    """int64 (c,): rows of each."""
    kept: np.ndarray
    """int64 (c,): of them kept."""

    @property
    def share(self) -> float:
        """Return the rows kept, of all."""
        return _ratio(self.kept.sum(), self.before.sum())

    @property
    def shares(self) -> np.ndarray:
        """Return the rows kept of each concept, of those it had: float64 (c,)."""
        return np.asarray(self.kept / self.before)

    @property
    def emptied(self) -> int:
        """Return how many concepts have nothing left."""
        return int((self.kept == 0).sum())

    @property
    def concept_coverage(self) -> float:
        """Return the concepts that have something left, of all."""
        return _ratio(len(self.kept) - self.emptied, len(self.kept))

    @property
    def tail(self) -> np.ndarray:
        """Return which part of each concept's rows lies in the tail: float64 (c,), 0..1 (`tail_weights`)."""
        return tail_weights(self.before)

    @property
    def tail_concepts(self) -> int:
        """Return how many concepts the tail is made of, at least in part."""
        return int((self.tail > 0).sum())

    @property
    def tail_share(self) -> float:
        """Return the rows of the tail that are kept: sum(w * kept) / sum(w * before), w being `tail`."""
        weights = self.tail
        return _ratio(weights @ self.kept, weights @ self.before)

    @property
    def effective(self) -> tuple[float, float]:
        """Return the effective number of concepts, before and after."""
        return effective_number(self.before), effective_number(self.kept)

    @property
    def gini(self) -> tuple[float, float]:
        """Return the Gini coefficient of the sizes, before and after: 0 where all are equal."""
        return gini(self.before), gini(self.kept)


def coverage(clusters: np.ndarray, kept: np.ndarray) -> Coverage:
    """Return what keeping some rows does to the concepts.

    `clusters`: whole numbers (n,), the concept of each row; rows below 0 have none, and do not count.
    `kept`: bool (n,). Raises ValueError where the lengths differ.
    """
    if len(clusters) != len(kept):
        raise ValueError(f"coverage: {len(clusters)} rows have a cluster, but {len(kept)} are kept or not")
    has = clusters >= 0
    concept, of, before = np.unique(clusters[has], return_inverse=True, return_counts=True)
    left = np.bincount(of, weights=kept[has], minlength=len(concept)).astype(np.int64)
    return Coverage(concept.astype(np.int64), before.astype(np.int64), left)


def tail_weights(sizes: np.ndarray, tail: float = TAIL) -> np.ndarray:
    """Return which part of each concept's rows lies in the last `tail` of all rows, the largest concepts first.

    The smallest concepts lie in it whole; those of the size at which the border falls lie in it with one and the same
    part, so the tail is exactly `tail` of the rows, and no order among equal sizes matters.
    `sizes`: whole numbers (c,) above 0. Gives float64 (c,), 0..1.
    """
    size, of = np.unique(sizes, return_inverse=True)
    rows = size * np.bincount(of, minlength=len(size))  # of all concepts of a size, the smallest first
    end = np.cumsum(rows)
    inside = np.clip(tail * rows.sum() - (end - rows), 0, rows)
    return np.asarray((inside / np.maximum(rows, 1))[of], np.float64)


def effective_number(sizes: np.ndarray) -> float:
    """Return e to the entropy of the shares (the Hill number of order 1): k where k concepts are equally large.

    `sizes`: numbers (c,) of 0 or more. 0 where there are no rows.
    """
    some = np.asarray(sizes, np.float64)
    some = some[some > 0]
    if not len(some):
        return 0.0
    shares = some / some.sum()
    return float(np.exp(-(shares * np.log(shares)).sum()))


def gini(sizes: np.ndarray) -> float:
    """Return sum_i (2 i - c - 1) x_i / (c sum x), x ascending, i from 1: 0 where all c are equal, to 1 - 1 / c.

    `sizes`: numbers (c,) of 0 or more. 0 where there are no rows. Source: Gini 1912, in the form of Sen 1973.
    """
    x = np.sort(np.asarray(sizes, np.float64))
    if not x.sum():
        return 0.0
    places = 2 * np.arange(1, len(x) + 1) - len(x) - 1
    return float(places @ x / (len(x) * x.sum()))


def _ratio(part: float, whole: float) -> float:
    return float(part / whole) if whole else 0.0
