"""Tune the search effort of an index to a target recall, measured on held-out queries."""

import time
from dataclasses import dataclass
from typing import Any, Final

import numpy as np

from tasks.index.held_out import HeldOut, K
from tasks.index.vector_index import VectorIndex

RESCORED: Final = 4
"""An index whose scores are estimates returns this many times the requested rows, to be rescored."""
_TIMED: Final = 64
_TIMED_S: Final = 0.5
"""Limits of the timing: queries, and seconds."""
_FLAT_GAIN: Final = 0.0005
"""If doubling the effort gains less recall than this, the codes are the limit, and the search stops."""
_BISECTIONS: Final = 4


@dataclass(frozen=True)
class Tuned:
    """The chosen effort, and its measured recall.

    `recall` is that of the index alone; `rescored` that of a search which rescores the best 40. By kind of query: mean,
    standard_error, queries.
    """

    effort: int
    recall: dict[str, dict[str, Any]]
    rescored: dict[str, dict[str, Any]]
    ms_per_query: float

    def worst(self, lossy: bool) -> float | None:
        """Return the applicable recall of the worst kind of query; None if nothing was measured."""
        return _worst(self.rescored if lossy else self.recall)


def tune(index: VectorIndex, held_out: HeldOut, target: float, lossy: bool, least: int = 1) -> Tuned:
    """Return the least effort whose recall reaches `target` for every kind of query, or that with the best recall.

    At least `least`; for a graph at least 10, as it always examines that many candidates.
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
    """Search as `espalier search` does: a graph examines as many candidates as are requested, so no more are."""
    if not len(held_out):
        return Tuned(effort, {}, {}, 0.0)
    wanted = RESCORED * K if lossy else K
    _, found = index.search(held_out.queries, wanted + 1, effort)
    recall = held_out.summary(held_out.recalls(found))
    return Tuned(effort, recall, held_out.summary(held_out.recalls(found, wanted)), 0.0)


def _ms_per_query(index: VectorIndex, held_out: HeldOut, effort: int) -> float:
    """Return the median time of a single query, ms."""
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
