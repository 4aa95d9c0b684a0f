"""k-means with resampling: centroids are distributed over the support of the data and not by its density."""

from dataclasses import replace
from typing import Annotated

import numpy as np
from pydantic import Field

from tasks.stage import Config
from tasks.vectors import kmeans
from tasks.vectors.mapped import gather
from tasks.vectors.nearest_centroid import assign
from tasks.vectors.seeds import round_seed

Points = Annotated[int, Field(ge=1)]


class Resample(Config):
    """How often, and from how many rows, each level of hierarchical k-means is fitted again."""

    rounds: int = Field(10, ge=0, description="how often a level is resampled; 0: plain k-means")
    points: tuple[Points, ...] | None = Field(
        None,
        description="rows per cluster, nearest to its centroid, by level from the leaves; 1: no resampling; "
        "default: 1 for the leaves, above them half of the average cluster size",
    )


def usual_points(rows: int, k: int) -> int:
    """Return half of the average size of k clusters of `rows` rows, rounded up.

    This corresponds to the paper's settings (10 of 20, 5 of 10, 3 of 5 per cluster, at levels 2, 3 and 4).
    """
    return -(-rows // (2 * k))


def fit_resampled(
    rows: np.ndarray,
    k: int,
    *,
    points: int,
    rounds: int,
    niter: int,
    seed: int,
    device: str = "cpu",
    engine: kmeans.Engine = "auto",
) -> kmeans.Fit:
    """Fit k unit centroids to rows (n, d), and then `rounds` times to the `points` rows nearest to each centroid.

    Each round assigns all rows to the latest centroids, takes from each cluster its `points` nearest rows, and fits k
    centroids to only those, from a new start. A large cluster thus contributes no more rows than a small one, and the
    distribution of centroids tends to uniform over the support of the data. Sizes and the last objective are over all
    rows. With one point, or as many as every cluster has, it is plain k-means. Raises UserError if k is above n.
    Source: Vo et al., Automatic data curation for self-supervised learning: a clustering-based approach, TMLR 2024
    (arXiv 2405.15613), section 3.3. Here k-means is spherical, and empty clusters are refilled.
    """
    fit = kmeans.fit(rows, k, niter=niter, seed=seed, device=device, engine=engine, init="k-means++")
    cluster, cosine = assign(rows, fit.centroids, device)
    for round_ in range(rounds if points > 1 else 0):
        chosen = nearest_members(cluster, cosine, points)
        if not k <= len(chosen) < len(rows):  # all rows would be used, or fewer than k
            break
        again = round_seed(seed, round_ + 1)
        fit = kmeans.fit(
            gather(rows, chosen), k, niter=niter, seed=again, device=device, engine=engine, init="k-means++"
        )
        cluster, cosine = assign(rows, fit.centroids, device)
    sizes = np.bincount(cluster, minlength=k).astype(np.int64)
    return replace(fit, sizes=sizes, objective=[*fit.objective[:-1], float(cosine.mean(dtype=np.float64))])


def nearest_members(cluster: np.ndarray, cosine: np.ndarray, points: int) -> np.ndarray:
    """Return the `points` rows of each cluster whose cosine to its centroid is highest: int64, ascending.

    `cluster` int32 (n,), `cosine` float32 (n,); in a tie the lower row.
    """
    order = np.lexsort((-cosine, cluster))
    sizes = np.bincount(cluster)
    starts = np.cumsum(sizes) - sizes
    place = np.arange(len(order)) - starts[cluster[order]]
    return np.sort(order[place < points])
