"""Choose the number of clusters k from a geometric grid by a criterion, which is reported for every k."""

from math import log
from typing import Final, Literal, Self

import numpy as np
from pydantic import Field, model_validator

from catalog.errors import UserError
from tasks.stage import Config
from tasks.vectors import kmeans
from tasks.vectors.nearest_centroid import assign, block_rows
from tasks.vectors.unit_rows import UnitRows

Criterion = Literal["silhouette", "calinski_harabasz"]

SAMPLE_ROWS: Final = 65536
"""The maximum number of rows on which the criterion is computed."""
ROWS_PER_CLUSTER: Final = 2
"""A k is tried only if the sample has at least this many rows per cluster."""
ITERATIONS: Final = 15


class Grid(Config):
    """The values of k to try, and the criterion."""

    min: int = Field(8, ge=2, description="the smallest k to try")
    max: int = Field(1024, ge=2, description="the largest k to try")
    per_doubling: int = Field(2, ge=1, le=8, description="values of k from one k to its double")
    criterion: Criterion = Field("silhouette", description="the criterion to maximise over the grid")

    @model_validator(mode="after")
    def _some(self) -> Self:
        if self.min > self.max:
            raise ValueError(f"k auto: min is {self.min}, above max, which is {self.max}")
        return self

    def values(self) -> list[int]:
        """Return the grid: min * 2**(i / per_doubling), rounded, and max; ascending, without repetition."""
        steps = int(log(self.max / self.min, 2) * self.per_doubling + 1e-9)
        found = {round(self.min * 2 ** (i / self.per_doubling)) for i in range(steps + 1)}
        return sorted(found | {self.max})


def choose(rows: np.ndarray, grid: Grid, *, seed: int, device: str = "cpu") -> tuple[int, dict[int, float]]:
    """Return (the k with the best criterion, the criterion of every k); in a tie the smaller k.

    `rows`: (n, d), a sample in memory, each row with a direction. Each k is fitted separately from a k-means++ start.
    Raises UserError if n is below twice the smallest k.
    """
    tried = [k for k in grid.values() if k * ROWS_PER_CLUSTER <= len(rows)]
    if not tried:
        raise UserError(
            f"k auto: min {grid.min} needs {grid.min * ROWS_PER_CLUSTER} rows with a usable embedding, but there are "
            f"{len(rows)}: lower min, or specify k as a number"
        )
    measure = silhouette if grid.criterion == "silhouette" else calinski_harabasz
    found = {}
    for k in tried:
        fit = kmeans.fit(rows, k, niter=ITERATIONS, seed=seed, device=device, init="k-means++")
        found[k] = round(measure(rows, fit.centroids, device), 6)
    return max(tried, key=lambda k: (found[k], -k)), found


def silhouette(rows: np.ndarray, centroids: np.ndarray, device: str = "cpu") -> float:
    """Return the mean simplified silhouette, -1 .. 1: (b - a) / max(a, b) of each row.

    a is the row's distance, 1 - cosine, to its centroid, b that to the second nearest; `rows` (n, d), `centroids`
    (k, d), k >= 2. It takes one product of rows and centroids, while the plain silhouette takes all pairs of rows.
    Source: Hruschka, de Castro and Campello, Evolutionary algorithms for clustering gene-expression data, ICDM 2004;
    Vendramin, Campello and Hruschka, Relative clustering validity criteria, Stat. Anal. Data Min. 2010, section 2.2.
    """
    import torch

    wide = torch.from_numpy(centroids).to(device)
    unit = UnitRows(rows, device)
    step = block_rows(len(centroids))
    total = 0.0
    for start in range(0, len(unit), step):
        block = unit[start : min(start + step, len(unit))]
        distance = (1 - (block @ wide.T).topk(2, dim=1).values).clamp_min(0).double()
        own, other = distance[:, 0], distance[:, 1]
        total += float(((other - own) / other.clamp_min(1e-12)).sum())  # own <= other: if both are 0, the result is 0
    return total / len(rows)


def calinski_harabasz(rows: np.ndarray, centroids: np.ndarray, device: str = "cpu") -> float:
    """Return (B / (k - 1)) / (W / (n - k)) over unit vectors.

    W is the sum of 1 - cosine to the nearest centroid, B + W the sum of 1 - cosine to the mean direction of all rows.
    Source: Calinski and Harabasz, A dendrite method for cluster analysis, 1974, with the distances of spherical
    k-means instead of the squared Euclidean ones (which are twice as large: the ratio is the same).
    """
    n, k = len(rows), len(centroids)
    within = float((1 - assign(rows, centroids, device)[1].astype(np.float64)).sum())
    one = kmeans.fit(rows, 1, niter=1, device=device)
    total = n * (1 - one.objective[-1])
    return (total - within) / (k - 1) / (max(within, 1e-12) / max(n - k, 1))
