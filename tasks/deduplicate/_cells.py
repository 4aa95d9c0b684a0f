"""Split large clusters into cells, so that the cost per row of comparing all rows does not grow with the cluster.

A cluster above twice `CELL_ROWS` is split by a separate k-means. Copies across a cell's border are found like those
across clusters (`_borders`).
"""

from collections.abc import Callable, Iterable, Iterator
from itertools import chain
from typing import Final

import numpy as np

from tasks.deduplicate._limits import LIMITS, Limits
from tasks.streams.ordered_map import Item, Result
from tasks.vectors import kmeans
from tasks.vectors.core_pool import on_cores
from tasks.vectors.mapped import release
from tasks.vectors.nearest_centroid import assign

CELL_ROWS: Final = 2048
"""Mean size of a cell."""
LARGEST: Final = 1 << 20
"""A larger cluster is not split, as it must be in memory for that."""
SAMPLE_PER_CENTROID: Final = 256
ITERATIONS: Final = 8


def split(
    rows: np.ndarray,
    vectors: np.ndarray,
    starts: np.ndarray,
    centroids: np.ndarray,
    seed: int,
    device: str,
    limits: Limits = LIMITS,
    largest: int = LARGEST,
) -> tuple[np.ndarray, np.ndarray]:
    """Split large clusters in place; return (starts int64 (c + 1,), centroids float32 (c, d)).

    `rows`: int64 (m,), `vectors`: (m, d), grouped by cluster at `starts`, int64 (k + 1,). The order within a cell is
    preserved. `centroids`: float32 (k, d), unit rows. Clusters of more than `largest` rows are not split.
    """
    sizes = np.diff(starts)
    large = np.flatnonzero((sizes > 2 * CELL_ROWS) & (sizes <= largest)).tolist()
    found = {cluster: (sizes[cluster : cluster + 1], centroids[cluster : cluster + 1]) for cluster in range(len(sizes))}

    def cut(cluster: int) -> tuple[int, tuple[np.ndarray, np.ndarray]]:
        start, stop = starts[cluster : cluster + 2].tolist()
        held = np.array(vectors[start:stop])
        fitted = _fit(held, seed + cluster, device)
        cell, _ = assign(held, fitted, device)
        order = np.argsort(cell, kind="stable")
        vectors[start:stop] = held[order]
        release(vectors)
        rows[start:stop] = rows[start:stop][order]
        count = np.bincount(cell, minlength=len(fitted))
        return cluster, (count[count > 0], fitted[count > 0])

    found.update(shared(cut, large, lambda cluster: int(sizes[cluster]), device, limits))
    counts, centres = zip(*found.values(), strict=True)
    return np.r_[0, np.cumsum(np.concatenate(counts))], np.concatenate(centres)


def shared(
    function: Callable[[Item], Result],
    items: Iterable[Item],
    size: Callable[[Item], int],
    device: str,
    limits: Limits = LIMITS,
) -> Iterator[Result]:
    """Yield `function` of each item: first the large items, then the others, one per core.

    `size`: the number of rows of an item.
    """
    every = list(items)
    large = (item for item in every if size(item) > limits.large_cell_rows)
    small = (item for item in every if size(item) <= limits.large_cell_rows)
    return chain(map(function, large), on_cores(function, small, device))


def _fit(vectors: np.ndarray, seed: int, device: str) -> np.ndarray:
    k = -(-len(vectors) // CELL_ROWS)
    drawn = np.random.default_rng(seed).choice(len(vectors), min(SAMPLE_PER_CENTROID * k, len(vectors)), replace=False)
    return kmeans.fit(vectors[np.sort(drawn)], k, niter=ITERATIONS, seed=seed, device=device).centroids
