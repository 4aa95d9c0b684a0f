"""`method: density`: keep more of the complex concepts and less of the simple ones (density-based pruning)."""

from typing import Final, Literal

import numpy as np
from pydantic import Field

from catalog.errors import UserError
from catalog.inputs import Inputs, as_matrix
from catalog.wording import amount
from tasks.prune._base import ClusterSelector, Rows, Selection, Which, measured, sentences
from tasks.stage import Run, Tables
from tasks.vectors import random_keys as draw
from tasks.vectors.kmeans import between

Projection = Literal["additive", "proportional"]


class Density(ClusterSelector):
    """Give every cluster a quota by its complexity, and keep that many of its rows.

    Complexity of cluster j: C_j = d_intra,j * d_inter,j, the mean distance of its rows to its centroid times the mean
    distance of its centroid to the nearest `neighbours` others. Quotas: the point nearest to softmax(C / temperature)
    * total that sums to the total, with `min_per_cluster` <= quota <= size (`quotas`).

    Source: Abbas et al., Effective pruning of web-scale datasets based on complexity of concept clusters, ICLR 2024
    (arXiv 2401.04578), section 3. It departs from it in three ways: quotas are whole numbers that sum exactly to the
    total; clusters that have no rows take no part; a cluster of one row, which has no spread, gets the mean complexity
    of the others. Not a density in space: a cluster's size enters only as its upper bound.
    """

    method: Literal["density"] = "density"
    version = 2
    seeded = True
    temperature: float = Field(
        0.1,
        gt=0,
        description="of the softmax: small prefers complex clusters more; 0.1 is for complexities of 0.05 to 0.5, and "
        "where they are smaller (the notes: entropy_nats near entropy_uniform_nats) it makes all clusters alike",
    )
    neighbours: int = Field(20, gt=0, description="nearest other centroids that the distance between is a mean of")
    min_per_cluster: int = Field(1, ge=0, description="rows that every cluster keeps at least, as far as it has them")
    projection: Projection = Field(
        "additive", description="additive: least squares, as published; proportional: relative entropy"
    )
    which: Which | Literal["random"] = Field("hard", description="keep rows far from the centroid, near, or any")

    def sides(self, available: Tables) -> tuple[str, ...]:
        return ("centroids",)

    def select(self, rows: Rows, total: int, inputs: Inputs, run: Run) -> Selection:
        sides = inputs.whole("centroids").sort_by("cluster")
        centroids = as_matrix(sides.column("centroid"))
        sizes = rows.sizes(len(centroids))
        present = np.flatnonzero(sizes)
        inter = np.full(len(sizes), np.nan)
        inter[present] = between(centroids[present], self.neighbours)  # what was filtered away is nobody's neighbour
        scores = complexity(rows, inter)[present]
        share = softmax(scores / self.temperature)
        upper = sizes[present]
        lower = np.minimum(self.min_per_cluster, upper)
        if lower.sum() > total:
            raise UserError(
                f"min_per_cluster {self.min_per_cluster} needs {amount(int(lower.sum()), 'row')} in "
                f"{amount(len(present), 'cluster')}, but only {total} are to be kept: "
                f"{lower.sum() - total} too many; keep more, or lower k or min_per_cluster"
            )
        quota = np.zeros(len(sizes), np.int64)
        quota[present] = quotas(share * total, lower, upper, total, self.projection)
        run.note(
            clusters=len(present),
            entropy_nats=round(float(-(share * np.log(np.maximum(share, 1e-300))).sum()), 6),
            entropy_uniform_nats=round(float(np.log(len(present))), 6),
            clamped_to_size=int((quota[present] == upper).sum()),
            clamped_to_minimum=int(((quota[present] == lower) & (lower < upper)).sum()),
        )
        ranks = rows.ranks(self._key(rows, run.seed))
        size, share = sizes[rows.cluster], quota[rows.cluster]
        evidence = sentences(
            "distance ", rows.distance, ", rank ", ranks + 1, " of ", size,
            " in cluster ", rows.cluster, ", quota ", share,
        )  # fmt: skip
        numbers = measured(distance=rows.distance, rank=ranks + 1, size=size, cluster=rows.cluster, quota=share)
        return Selection(ranks < share, evidence, numbers)

    def _key(self, rows: Rows, seed: int) -> np.ndarray:
        return draw.keys(rows.ids, seed) if self.which == "random" else rows.difficulty(self.which)


def complexity(rows: Rows, inter: np.ndarray) -> np.ndarray:
    """Return d_intra * d_inter: float64 (k,); the mean of the others where it is not defined (0 or 1 rows)."""
    sizes = rows.sizes(len(inter))
    total = np.bincount(rows.cluster, weights=rows.distance, minlength=len(inter))
    product = total / np.maximum(sizes, 1) * inter
    known = (sizes > 1) & np.isfinite(product)
    filled: np.ndarray = np.where(known, product, product[known].mean() if known.any() else 0.0)
    return filled


def softmax(scores: np.ndarray) -> np.ndarray:
    """Return exp(scores) / sum(exp(scores)): float64 (k,)."""
    weights: np.ndarray = np.exp(scores - scores.max())
    weights /= weights.sum()
    return weights


FLOOR: Final = 1e-200
"""The proportional form divides by the targets: none may be zero."""


def quotas(
    target: np.ndarray, lower: np.ndarray, upper: np.ndarray, total: int, projection: Projection = "additive"
) -> np.ndarray:
    """Return the whole numbers nearest to `target` that sum to `total` within bounds: int64 (k,). O(k log k), exact.

    Minimises sum (x - target)^2 / 2 (additive), or sum x log(x / target) - x (proportional), over integers
    lower <= x <= upper with sum(x) = total. The real optimum is x = clip(target + shift, lower, upper), or clip(scale *
    target, ...), for one scalar, which lies between two neighbouring points where a bound starts or stops to bind;
    the integer optimum lies between its floor and its ceiling, and takes the cheapest units. Ties: the lower index.

    `target`: float (k,), >= 0 if proportional; `lower`, `upper`: integers (k,). Raises UserError if no x will do.
    Not a rounding of a solver's answer: the total is exact.
    Source: the KKT conditions of the quadratic programme in Abbas et al. 2024, appendix (there solved by OSQP).
    """
    aim = np.asarray(target, np.float64)
    low, high = np.asarray(lower, np.int64), np.asarray(upper, np.int64)
    _check_feasible(aim, low, high, total)
    if len(aim) == 0:
        return low
    if projection == "proportional":
        aim = np.maximum(aim / max(aim.max(), FLOOR), FLOOR)  # its scale is free
    x = _continuous(aim, low, high, total, projection)
    whole: np.ndarray = np.clip(np.floor(x).astype(np.int64), low, high)
    while missing := total - int(whole.sum()):
        up = missing > 0
        room = np.flatnonzero(whole < high if up else whole > low)
        cost = _unit_cost(aim[room], whole[room] if up else whole[room] - 1, projection)
        cheapest = room[np.argsort(cost if up else -cost, kind="stable")[: abs(missing)]]
        whole[cheapest] += 1 if up else -1
    return whole


def _check_feasible(target: np.ndarray, lower: np.ndarray, upper: np.ndarray, total: int) -> None:
    if not np.isfinite(target).all():
        raise UserError(f"quotas: {int((~np.isfinite(target)).sum())} targets are not finite")
    if (lower > upper).any():
        at = int(np.argmax(lower > upper))
        raise UserError(f"quotas: cluster {at} has lower bound {lower[at]} above its upper bound {upper[at]}")
    if total < lower.sum():
        raise UserError(f"quotas: the lower bounds sum to {lower.sum()}, {lower.sum() - total} above the total {total}")
    if total > upper.sum():
        raise UserError(f"quotas: the upper bounds sum to {upper.sum()}, {total - upper.sum()} below the total {total}")


def _continuous(aim: np.ndarray, low: np.ndarray, high: np.ndarray, total: int, projection: Projection) -> np.ndarray:
    """Return the real optimum: float64 (k,)."""

    def at(level: float) -> np.ndarray:
        x: np.ndarray = np.clip(aim + level if projection == "additive" else aim * level, low, high)
        return x

    leaves, meets = (low - aim, high - aim) if projection == "additive" else (low / aim, high / aim)
    edges = np.sort(np.concatenate([leaves, meets]))
    left, right = 0, len(edges) - 1
    while right - left > 1:  # the sum grows with the level: find the two edges that the total lies between
        middle = (left + right) // 2
        left, right = (middle, right) if at(edges[middle]).sum() <= total else (left, middle)
    free = (leaves <= edges[left]) & (meets >= edges[right])
    slope = np.where(free, 1.0 if projection == "additive" else aim, 0.0).sum()
    start = edges[left]
    gap = (total - at(start).sum()) / slope if slope > 0 else 0.0
    return at(min(max(start + gap, start), edges[right]))


def _unit_cost(aim: np.ndarray, count: np.ndarray, projection: Projection) -> np.ndarray:
    """Return what the unit after `count` adds to the objective, up to a constant: float64."""
    some = np.maximum(count, 1)
    step = (count + 1) * np.log(count + 1.0) - np.where(count > 0, count * np.log(some), 0.0)
    cost: np.ndarray = count - aim if projection == "additive" else step - np.log(aim)
    return cost
