"""Ties between rows as arrays: the nearest of each row, or all of them."""

from dataclasses import dataclass

import numpy as np

from tasks.deduplicate._near import CosinePairs, nearest


@dataclass
class Ties:
    """The most similar tied row of each of n rows."""

    partner: np.ndarray
    """int64 (n,): that row; -1 for none."""
    cosine: np.ndarray
    """float32 (n,): its cosine; NaN for none."""

    @classmethod
    def of(cls, count: int) -> "Ties":
        """Return n rows without ties."""
        return cls(np.full(count, -1, np.int64), np.full(count, np.nan, np.float32))

    def offer(self, rows: np.ndarray, partners: np.ndarray, cosine: np.ndarray) -> None:
        """Update rows whose offered partner is more similar. Arrays (m,); rows in any order, with repetitions.

        In a tie the partner that was offered first is kept; within one call, the lowest row.
        """
        order = np.lexsort((partners, -cosine, rows))
        order = order[np.r_[True, np.diff(rows[order]) != 0][: len(order)]]
        more = order[~(cosine[order] <= self.cosine[rows[order]])]  # NaN: any value is more
        self.partner[rows[more]], self.cosine[rows[more]] = partners[more], cosine[more]

    def offer_sorted(self, pairs: CosinePairs) -> None:
        """Update as `offer`, faster, with pairs that are sorted by row and partner."""
        rows, partners, cosine = nearest(pairs)
        more = ~(cosine <= self.cosine[rows])
        self.partner[rows[more]], self.cosine[rows[more]] = partners[more], cosine[more]


@dataclass(frozen=True)
class Pairs:
    """Ties as three arrays (m,)."""

    late: np.ndarray
    """int64: the row that comes later in the order of preference."""
    early: np.ndarray
    """int64."""
    cosine: np.ndarray
    """float32."""

    @classmethod
    def joined(cls, some: "list[Pairs]") -> "Pairs":
        """Concatenate pairs."""
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
