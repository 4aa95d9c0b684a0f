"""Ties between rows, as arrays: the nearest of each row, or all of them."""

from dataclasses import dataclass

import numpy as np

from tasks.deduplicate._near import CosinePairs, nearest


@dataclass
class Ties:
    """The most similar row that was found for each of n rows."""

    partner: np.ndarray
    """int64 (n,): that row; -1 for none."""
    cosine: np.ndarray
    """float32 (n,): its cosine; NaN for none."""

    @classmethod
    def of(cls, count: int) -> "Ties":
        """Return n rows without any."""
        return cls(np.full(count, -1, np.int64), np.full(count, np.nan, np.float32))

    def offer(self, rows: np.ndarray, partners: np.ndarray, cosine: np.ndarray) -> None:
        """Take over what is more similar than before. Arrays (m,), rows in any order and any number of times.

        Of equals, the one that was offered first stays; within one call, the lowest row.
        """
        order = np.lexsort((partners, -cosine, rows))
        order = order[np.r_[True, np.diff(rows[order]) != 0][: len(order)]]
        more = order[~(cosine[order] <= self.cosine[rows[order]])]  # NaN: whatever comes is more
        self.partner[rows[more]], self.cosine[rows[more]] = partners[more], cosine[more]

    def offer_sorted(self, pairs: CosinePairs) -> None:
        """Do the same with pairs whose rows ascend, and of one row the partners: faster."""
        rows, partners, cosine = nearest(pairs)
        more = ~(cosine <= self.cosine[rows])
        self.partner[rows[more]], self.cosine[rows[more]] = partners[more], cosine[more]


@dataclass(frozen=True)
class Pairs:
    """Ties, one a line: (m,) each."""

    late: np.ndarray
    """int64: the row that comes later in the order of preference."""
    early: np.ndarray
    """int64."""
    cosine: np.ndarray
    """float32."""

    @classmethod
    def joined(cls, some: "list[Pairs]") -> "Pairs":
        """Return all pairs of several. No pairs where there are none."""
        empty = cls(np.empty(0, np.int64), np.empty(0, np.int64), np.empty(0, np.float32))
        late, early, cosine = zip(*((p.late, p.early, p.cosine) for p in (empty, *some)), strict=True)
        return cls(np.concatenate(late), np.concatenate(early), np.concatenate(cosine))

    def among(self, rows: np.ndarray, count: int) -> "Pairs":
        """Return the pairs of which both are in `rows`, int64 (k,), of `count` rows."""
        wanted = np.zeros(count, bool)
        wanted[rows] = True
        both = wanted[self.late] & wanted[self.early]
        return Pairs(self.late[both], self.early[both], self.cosine[both])


def roots(count: int, links: np.ndarray) -> np.ndarray:
    """Return the lowest row of each row's connected component: int64 (count,). `links`: int64 (m, 2)."""
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    graph = coo_array((np.ones(len(links), bool), (links[:, 0], links[:, 1])), shape=(count, count))
    _, component = connected_components(graph, directed=False)
    _, lowest = np.unique(component, return_index=True)
    result: np.ndarray = lowest[component].astype(np.int64)
    return result
