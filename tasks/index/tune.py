"""How hard a search must look to find what it should: measured on held-out queries, not guessed."""

import time
from dataclasses import dataclass
from typing import Any, Final

import numpy as np

from tasks.index.held_out import HeldOut, K
from tasks.index.vector_index import VectorIndex

RESCORED: Final = 4
"""An index whose scores are estimates gives so many times the rows that are wanted; the stored vectors decide."""
_TIMED: Final = 64
_TIMED_S: Final = 0.5
"""At most so many queries are timed, and no more after so many seconds."""
_FLAT_GAIN: Final = 0.0005
"""Where twice the effort gains less recall than this, more effort is wasted: the codes are the limit."""
_BISECTIONS: Final = 4


@dataclass(frozen=True)
class Tuned:
    """The effort that was settled on, and what it gives.

    `recall` is of the index alone; `rescored` what a search gives that scores the best 40 anew. By kind of query:
    mean, standard_error, queries.
    """

    effort: int
    recall: dict[str, dict[str, Any]]
    rescored: dict[str, dict[str, Any]]
    ms_per_query: float

    def worst(self, lossy: bool) -> float | None:
        """Return the recall that counts, of the kind of query that has the least; None where nothing was measured."""
        return _worst(self.rescored if lossy else self.recall)


def tune(index: VectorIndex, held_out: HeldOut, target: float, lossy: bool, least: int = 1) -> Tuned:
    """Return the least effort whose recall reaches `target` for every kind of query, or the best that there is.

    Never less than `least`; of a graph, never less than 10, as it looks at so many candidates anyway.
    """
    seen: dict[int, Tuned] = {}

    def reached(effort: int) -> float:
        seen[effort] = _measure(index, held_out, effort, lossy)
        return seen[effort].worst(lossy) or 0.0

    high = max(least, K) if index.kind == "hnsw" else least
    low, before = high - 1, -1.0
    while (now := reached(high)) < target and high < index.most_effort and now - before >= _FLAT_GAIN:
        low, high, before = high, min(2 * high, index.most_effort), now
    if now >= target:
        high = _bisect(reached, low, high, target)
    settled = seen[high]
    return Tuned(high, settled.recall, settled.rescored, _ms_per_query(index, held_out, high))


def _bisect(reached: Any, low: int, high: int, target: float) -> int:
    """Return the least effort in (low, high] that reaches the target, to a sixteenth of the gap."""
    for _ in range(_BISECTIONS):
        middle = (low + high) // 2
        if middle <= low:
            break
        low, high = (low, middle) if reached(middle) >= target else (middle, high)
    return high


def _measure(index: VectorIndex, held_out: HeldOut, effort: int, lossy: bool) -> Tuned:
    """Search as `espalier search` does: a graph looks at as many candidates as are asked for, so not for more."""
    if not len(held_out):
        return Tuned(effort, {}, {}, 0.0)
    wanted = RESCORED * K if lossy else K
    _, found = index.search(held_out.queries, wanted + 1, effort)
    recall = held_out.summary(held_out.recalls(found))
    return Tuned(effort, recall, held_out.summary(held_out.recalls(found, wanted)), 0.0)


def _ms_per_query(index: VectorIndex, held_out: HeldOut, effort: int) -> float:
    """Return the median time of one query alone, ms."""
    taken: list[float] = []
    for query in held_out.queries[:_TIMED]:
        if sum(taken) > _TIMED_S:
            break
        start = time.perf_counter()
        index.search(query[None], K, effort)
        taken.append(time.perf_counter() - start)
    return round(float(np.median(taken)) * 1e3, 4) if taken else 0.0


def _worst(recall: dict[str, dict[str, Any]]) -> float | None:
    return min((found["mean"] for found in recall.values()), default=None)
