"""Held-out queries with their exact neighbours, to measure an index's recall.

A query is the vector of a sample, or of its caption if the encoder embeds captions (captions are far from images, and
an index that is good for pictures may be bad for text). A picture is not a neighbour of its own query. The exact
neighbours are updated incrementally: parts are added and removed without reading the other parts.
"""

from dataclasses import dataclass
from io import BytesIO
from typing import Any, Final

import numpy as np

from tasks.index.vector_index import unit_rows

K: Final = 10
"""Recall is that of the K nearest neighbours."""
DEPTH: Final = 64
"""Exact neighbours stored for each query: enough to allow for ties and removed rows."""
TIE: Final = 1e-5
"""Cosines that differ by less are equal: float16 has no higher precision. Copies of a picture are interchangeable."""
_BLOCK: Final = 8192


@dataclass
class HeldOut:
    """Queries, and the exact nearest of all rows added so far.

    `queries` float32 (q, d), unit rows; `sample_ids` int64 (q,): the sample of each; `captions` bool (q,): whether it
    is the vector of the caption; `scores` float32 (q, DEPTH), descending, and `neighbours` int64 (q, DEPTH), padded
    with -inf and -1; `floors` float32 (q,): below this cosine the neighbours may be incomplete.
    """

    queries: np.ndarray
    sample_ids: np.ndarray
    captions: np.ndarray
    scores: np.ndarray
    neighbours: np.ndarray
    floors: np.ndarray

    @classmethod
    def of(cls, sample_ids: np.ndarray, vectors: np.ndarray, captions: np.ndarray) -> "HeldOut":
        """Return queries without neighbours."""
        count = len(sample_ids)
        empty = np.full((count, DEPTH), -np.inf, np.float32)
        unknown = np.full((count, DEPTH), -1, np.int64)
        floors = np.full(count, -np.inf, np.float32)
        return cls(unit_rows(vectors), np.asarray(sample_ids, np.int64), captions, empty, unknown, floors)

    @classmethod
    def read(cls, data: bytes) -> "HeldOut":
        """Parse the result of `write`."""
        with np.load(BytesIO(data), allow_pickle=False) as kept:
            return cls(**{name: kept[name] for name in cls.__dataclass_fields__})

    def write(self) -> bytes:
        """Serialise as `npz`."""
        buffer = BytesIO()
        np.savez(buffer, **vars(self))
        return buffer.getvalue()

    def __len__(self) -> int:
        return len(self.sample_ids)

    def add(self, sample_ids: np.ndarray, rows: np.ndarray) -> None:
        """Add rows as possible neighbours: ids int64 (n,) ascending, float32 (n, d) unit rows."""
        for start in range(0, len(rows) if len(self) else 0, _BLOCK):
            self._add(sample_ids[start : start + _BLOCK], rows[start : start + _BLOCK])

    def _remove(self, gone: np.ndarray) -> None:
        """Remove neighbours (bool (q, DEPTH)), and the queries whose neighbours are then incomplete."""
        full = np.isfinite(self.scores[:, -1]) & gone.any(axis=1)
        self.floors = np.where(full, np.maximum(self.floors, self.scores[:, -1]), self.floors)
        self.scores = np.where(gone, -np.inf, self.scores).astype(np.float32)
        self.neighbours = np.where(gone, -1, self.neighbours)
        order = np.argsort(-self.scores, axis=1, kind="stable")
        self.scores = np.take_along_axis(self.scores, order, axis=1)
        self.neighbours = np.take_along_axis(self.neighbours, order, axis=1)
        self._keep(~np.isfinite(self.floors) | (self._known() >= K))

    def remove(self, gone: np.ndarray) -> None:
        """Remove samples, as neighbours and as queries: int64 (n,)."""
        self._keep(~np.isin(self.sample_ids, gone))
        self._remove(np.isin(self.neighbours, gone) & (self.neighbours >= 0))

    def remove_span(self, low: int, high: int) -> None:
        """Remove the samples in [low, high]."""
        self._keep((self.sample_ids < low) | (self.sample_ids > high))
        self._remove((self.neighbours >= low) & (self.neighbours <= high))

    def recalls(self, found: np.ndarray, first: int = K) -> np.ndarray:
        """Return each query's recall, float64 (q,): the share of its K nearest among the `first` results.

        `found`: int64 (q, at least first + 1), best first, padded with -1. NaN for queries without neighbours.
        """
        own = (found == self.sample_ids[:, None]) & ~self.captions[:, None]
        order = np.argsort(own, axis=1, kind="stable")  # the picture itself is last
        kept = np.take_along_axis(np.where(own, -1, found), order, axis=1)[:, :first]
        wanted = np.minimum(self._known(), K)
        least = np.take_along_axis(self.scores, np.maximum(wanted - 1, 0)[:, None], axis=1)
        right = np.where(self.scores >= least - TIE, self.neighbours, -2)
        hits = (kept[:, :, None] == right[:, None, :]).any(axis=2).sum(axis=1)
        shares: np.ndarray = np.where(wanted > 0, np.minimum(hits, wanted) / np.maximum(wanted, 1), np.nan)
        return shares

    def summary(self, recalls: np.ndarray) -> dict[str, dict[str, Any]]:
        """Return mean recall, standard error and number of queries, of pictures (`image`) and of captions (`text`)."""
        made: dict[str, dict[str, Any]] = {}
        for name, mine in (("image", ~self.captions), ("text", self.captions)):
            some = recalls[mine & np.isfinite(recalls)]
            if len(some):
                error = float(some.std(ddof=1) / np.sqrt(len(some))) if len(some) > 1 else None
                made[name] = {"mean": float(some.mean()), "standard_error": error, "queries": len(some)}
        return made

    def _add(self, sample_ids: np.ndarray, rows: np.ndarray) -> None:
        cosines = self.queries @ rows.T
        at = np.minimum(np.searchsorted(sample_ids, self.sample_ids), len(sample_ids) - 1)
        own = np.flatnonzero((sample_ids[at] == self.sample_ids) & ~self.captions)
        cosines[own, at[own]] = -np.inf
        least = np.maximum(self.scores[:, -1], self.floors)
        better = cosines > least[:, None]
        many = np.flatnonzero(better.sum(axis=1) > DEPTH)
        if len(many):  # nearly all of the first rows are candidates: sorting them would dominate the cost
            own_best = np.partition(cosines[many], -DEPTH, axis=1)[:, -DEPTH]
            better[many] &= cosines[many] >= own_best[:, None]
        query, column = np.nonzero(better)
        if not len(query):
            return
        known = np.isfinite(self.scores)
        queries = np.concatenate([np.nonzero(known)[0], query])
        scores = np.concatenate([self.scores[known], cosines[query, column]])
        ids = np.concatenate([self.neighbours[known], sample_ids[column]])
        order = np.lexsort((ids, -scores, queries))
        queries, scores, ids = queries[order], scores[order], ids[order]
        place = np.arange(len(queries)) - np.searchsorted(queries, queries)
        top = place < DEPTH
        self.scores[queries[top], place[top]] = scores[top]
        self.neighbours[queries[top], place[top]] = ids[top]

    def _known(self) -> np.ndarray:
        return np.asarray(np.isfinite(self.scores).sum(axis=1))

    def _keep(self, kept: np.ndarray) -> None:
        for name in self.__dataclass_fields__:
            setattr(self, name, getattr(self, name)[kept])
