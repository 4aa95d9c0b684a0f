"""Large clusters in cells: what makes comparing all rows of a cluster cost as much a row however many rows there are.

A cluster above twice `CELL_ROWS` is cut into cells by a k-means of its own. Copies that lie on two sides of a cell's
border are found as those of clusters are (`borders`).
"""

from typing import Final

import numpy as np

from tasks import kmeans

CELL_ROWS: Final = 2048
"""Mean size of a cell."""
LARGEST: Final = 1 << 20
"""A cluster above it stays whole: one is held in memory by each core while it is cut."""
SAMPLE_PER_CENTROID: Final = 256
ITERATIONS: Final = 8


def split(
    rows: np.ndarray, vectors: np.ndarray, starts: np.ndarray, centroids: np.ndarray, seed: int, device: str
) -> tuple[np.ndarray, np.ndarray]:
    """Cut large clusters, moving their rows in place; return (starts int64 (c + 1,), centroids float32 (c, d)).

    `rows`: int64 (m,), `vectors`: (m, d), those of a cluster lying together, between `starts`, int64 (k + 1,). Within
    a cell they keep their order. `centroids`: float32 (k, d), unit rows.
    """

    def cut(cluster: int) -> tuple[np.ndarray, np.ndarray]:
        start, stop = starts[cluster : cluster + 2].tolist()
        if not 2 * CELL_ROWS < stop - start <= LARGEST:
            return np.array([stop - start]), centroids[cluster : cluster + 1]
        held = np.array(vectors[start:stop])
        fitted = _fit(held, seed + cluster, device)
        cell, _ = kmeans.assign(held, fitted, device)
        order = np.argsort(cell, kind="stable")
        vectors[start:stop] = held[order]
        kmeans.release(vectors)
        rows[start:stop] = rows[start:stop][order]
        count = np.bincount(cell, minlength=len(fitted))
        return count[count > 0], fitted[count > 0]

    sizes, centres = zip(*kmeans.on_cores(cut, range(len(starts) - 1), device), strict=True)
    return np.r_[0, np.cumsum(np.concatenate(sizes))], np.concatenate(centres)


def _fit(vectors: np.ndarray, seed: int, device: str) -> np.ndarray:
    k = -(-len(vectors) // CELL_ROWS)
    drawn = np.random.default_rng(seed).choice(len(vectors), min(SAMPLE_PER_CENTROID * k, len(vectors)), replace=False)
    return kmeans.fit(vectors[np.sort(drawn)], k, niter=ITERATIONS, seed=seed, device=device).centroids
