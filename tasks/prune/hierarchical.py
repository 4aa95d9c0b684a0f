"""`method: hierarchical`: flatten the long tail by balanced sampling over a hierarchy of clusters."""

from itertools import count
from typing import Literal

import numpy as np
from pydantic import Field

from catalog.errors import UserError
from catalog.inputs import Inputs
from tasks.prune._base import ClusterSelector, Rows, Selection, Which, measured, sentences
from tasks.stage import Run, Tables
from tasks.vectors import random_keys as draw


class Hierarchical(ClusterSelector):
    """Balanced sampling from the top of the hierarchy down: every cluster gets an equal share, up to its size.

    The total is distributed over the clusters of the top level, the share of each over its children, and so on to the
    leaves (`cut`): the largest m such that min(m, size) rows of each do not exceed the share, and one more row of
    clusters sampled by the seed for the rest. Sizes count the candidate rows, not those of the training. Reads the
    table `hierarchy` if it exists; without it, there is one cut over the clusters.

    Source: Vo et al., Automatic data curation for self-supervised learning: a clustering-based approach, TMLR 2024
    (arXiv 2405.15613), section 3.3. No row is taken twice: the paper's multiplier, which copies rows of small
    clusters, is omitted. Not density: complexity is not used, and a leaf's nearest rows come first.
    """

    method: Literal["hierarchical"] = "hierarchical"
    seeded = True
    which: Which | Literal["random"] = Field(
        "easy", description="which rows of a leaf come first: near to the centroid, far from it, or any"
    )

    def sides(self, available: Tables) -> tuple[str, ...]:
        return ("hierarchy",) if "hierarchy" in available else ()

    def sides_hashed_as_inputs(self) -> tuple[str, ...]:
        return ("hierarchy",)

    def select(self, rows: Rows, total: int, inputs: Inputs, run: Run) -> Selection:
        sizes = rows.sizes()
        quota = np.zeros(len(sizes), np.int64)
        leaves = np.flatnonzero(sizes)
        levels = _levels(inputs, leaves)
        quota[leaves] = share_out(levels, sizes[leaves], total, run.seed)
        run.note(
            levels=len(levels),
            clusters=[len(np.unique(level)) for level in levels],
            kept_whole=int((quota[leaves] == sizes[leaves]).sum()),
            largest_quota=int(quota.max()),
        )
        key = draw.keys(rows.ids, run.seed) if self.which == "random" else rows.difficulty(self.which)
        ranks = rows.ranks(key)
        size, share = sizes[rows.cluster], quota[rows.cluster]
        evidence = sentences(
            "distance ", rows.distance, ", rank ", ranks + 1, " of ", size,
            " in cluster ", rows.cluster, ", share ", share,
        )  # fmt: skip
        numbers = measured(distance=rows.distance, rank=ranks + 1, size=size, cluster=rows.cluster, share=share)
        return Selection(ranks < share, evidence, numbers)


def share_out(levels: list[np.ndarray], sizes: np.ndarray, total: int, seed: int) -> np.ndarray:
    """Return how many rows each leaf gets: int64 (leaves,); they sum to min(total, sum(sizes)).

    `levels`: the ancestor of each leaf, int64 (leaves,), one array per level: the leaves' own first, the top last.
    `sizes`: int64 (leaves,), rows in each leaf.
    """
    budget, group = np.array([total], np.int64), np.zeros(len(sizes), np.int64)  # one root above the top
    for depth in reversed(range(len(levels))):
        clusters, first, of = np.unique(levels[depth], return_index=True, return_inverse=True)
        below = np.bincount(of, weights=sizes, minlength=len(clusters)).astype(np.int64)
        keys = draw.keys(clusters | depth << 32, seed)
        budget = cut(below, group[first], budget, keys)
        group = of
    return budget[group]


def cut(sizes: np.ndarray, group: np.ndarray, budget: np.ndarray, keys: np.ndarray) -> np.ndarray:
    """Return each cluster's share of its group's budget: int64 (k,). No loop over groups; O(k log k).

    In a group with budget T, m is the largest integer with sum(min(m, size)) <= T; each cluster gets min(m, size), and
    the rest is given one by one to the clusters with size > m that have the smallest keys. If T is at least the sum,
    every cluster gets its size.

    `sizes`: int64 (k,); `group`: int64 (k,), 0 .. g - 1; `budget`: int64 (g,); `keys`: uint64 (k,), no two alike.
    """
    groups = len(budget)
    order = np.lexsort((sizes, group))
    size, of = sizes[order], group[order]
    members = np.bincount(of, minlength=groups)
    start = np.cumsum(members) - members
    before = np.cumsum(size) - size
    before = before - before[np.minimum(start, len(size) - 1)][of]  # rows of the smaller clusters of its group
    larger = members[of] - (np.arange(len(size)) - start[of])  # clusters of its size or larger, including itself
    whole = before + size * larger <= budget[of]  # m is at least its size, so all of it is taken
    full = np.bincount(of, weights=whole, minlength=groups).astype(np.int64)
    taken = np.bincount(of, weights=np.where(whole, size, 0), minlength=groups).astype(np.int64)
    open_ = np.maximum(members - full, 1)
    m, rest = np.divmod(np.maximum(budget - taken, 0), open_)
    quota = np.where(whole, size, m[of])
    lucky = np.lexsort((keys[order], whole, of))  # in each group, those with more than m first, by their keys
    rank = np.empty(len(size), np.int64)
    rank[lucky] = np.arange(len(size)) - start[of[lucky]]
    quota += ~whole & (rank < rest[of])
    found = np.empty(len(sizes), np.int64)
    found[order] = quota
    return found


def _levels(inputs: Inputs, leaves: np.ndarray) -> list[np.ndarray]:
    """Return the leaves and their ancestors, level by level (see `share_out`).

    Raises UserError if a cluster has no place in the hierarchy.
    """
    found = [leaves.astype(np.int64)]
    if "hierarchy" not in inputs:
        return found
    table = inputs.sql("select level, cluster, parent from hierarchy order by level, cluster")
    level, cluster = (table.column(name).to_numpy().astype(np.int64) for name in ("level", "cluster"))
    parent = table.column("parent").fill_null(-1).to_numpy().astype(np.int64)
    for number in count(1):  # up to the top, whose clusters have no parent
        mine = level == number
        at, there = _look_up(cluster[mine], found[-1])
        if not there.all():
            lost = int(found[-1][np.argmin(there)])
            raise UserError(
                f"the hierarchy has no cluster {lost} at level {number}, which rows or clusters below name: "
                "it was made from other clusters than these"
            )
        above = parent[mine][at]
        if (above < 0).all():
            return found
        if (above < 0).any():
            orphan = int(found[-1][np.argmax(above < 0)])
            raise UserError(f"the hierarchy's cluster {orphan} at level {number} has no parent, but others have")
        found.append(above)
    raise AssertionError("a level that does not exist is refused")


def _look_up(known: np.ndarray, wanted: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return (index of each wanted number among the ascending known ones, whether it exists)."""
    if len(known) == 0:
        return np.zeros(len(wanted), np.int64), np.zeros(len(wanted), bool)
    at = np.minimum(np.searchsorted(known, wanted), len(known) - 1)
    return at, known[at] == wanted
