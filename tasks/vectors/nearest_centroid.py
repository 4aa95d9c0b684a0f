"""The nearest of some unit centroids for any rows, by the cosine.

All work is done in blocks whose size does not depend on how the rows are batched. On the CPU a thread processes whole
blocks, and results are returned in the order of the blocks, so they do not depend on the number of threads either.
"""

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Final

import numpy as np

from tasks.vectors.core_pool import on_cores
from tasks.vectors.unit_rows import UnitRows, units

if TYPE_CHECKING:
    import torch

BLOCK: Final = 1024
"""On the CPU a thread multiplies this many rows with this many centroids at once: 4 MB of products, which fit in the
cache."""


def assign(rows: np.ndarray, centroids: np.ndarray, device: str = "cpu") -> tuple[np.ndarray, np.ndarray]:
    """Return (nearest of unit centroids (k, d): int32 (n,), cosine to it: float32 (n,)); ties to the lowest.

    `rows` are as for `kmeans.fit`: each has a direction. Use `Assigner` where some may have none.
    """
    import torch

    found, cosine = np.empty(len(rows), np.int32), np.empty(len(rows), np.float32)
    done = 0
    unit = torch.from_numpy(np.array(centroids, np.float32)).to(device)
    for _, best, cosines in nearest_blocks(UnitRows(rows, device), unit):
        span = slice(done, done + len(best))
        found[span], cosine[span] = best.cpu().numpy(), cosines.cpu().numpy()
        done = span.stop
    return found, cosine


class Assigner:
    """Finds the nearest of k unit centroids: float32 (k, d)."""

    def __init__(self, centroids: np.ndarray, device: str = "cpu") -> None:
        import torch

        self._device = device
        self._centroids = torch.from_numpy(np.array(centroids, np.float32)).to(device)
        self.rows_at_once = _step(self._centroids)

    def __call__(self, vectors: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return (cluster int32 (n,), distance float32 (n,), 1 - cosine) of vectors (n, d); ties to the lowest.

        Rows without a direction, and all rows where there is no centroid, get -1 and NaN.
        """
        starts = range(0, len(vectors), self.rows_at_once)
        found = list(self.each(vectors[start : start + self.rows_at_once] for start in starts))
        if not found:
            return np.empty(0, np.int32), np.empty(0, np.float32)
        return np.concatenate([cluster for cluster, _ in found]), np.concatenate([distance for _, distance in found])

    def each(self, blocks: Iterable[np.ndarray]) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Yield the same for each block of at most `rows_at_once` rows; blocks are read ahead."""
        return on_cores(self._block, blocks, self._device)

    def _block(self, vectors: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        if not len(self._centroids) or not len(vectors):
            return np.full(len(vectors), -1, np.int32), np.full(len(vectors), np.nan, np.float32)
        best, cosine = _best(units(vectors, self._device), self._centroids)
        cosines = cosine.cpu().numpy()
        cluster = np.where(np.isnan(cosines), -1, best.cpu().numpy()).astype(np.int32)
        return cluster, np.maximum(1 - cosines, 0)


def block_rows(k: int) -> int:
    """Return how many rows to multiply with k others in one product on a GPU: the product takes at most 64 MB."""
    return min(max((1 << 24) // max(k, 1), 256), 8192)


def nearest_blocks(
    rows: UnitRows, centroids: "torch.Tensor"
) -> Iterator[tuple["torch.Tensor", "torch.Tensor", "torch.Tensor"]]:
    """Yield (block, index of the nearest centroid, cosine to it)."""
    step = _step(centroids)

    def nearest_of(start: int) -> tuple["torch.Tensor", "torch.Tensor", "torch.Tensor"]:
        block = rows[start : min(start + step, len(rows))]
        return block, *_best(block, centroids)

    return on_cores(nearest_of, range(0, len(rows), step), centroids.device.type)


def _step(centroids: "torch.Tensor") -> int:
    return block_rows(len(centroids)) if centroids.is_cuda else BLOCK


def _best(block: "torch.Tensor", centroids: "torch.Tensor") -> tuple["torch.Tensor", "torch.Tensor"]:
    """Return (index of the nearest centroid int64 (n,), cosine to it float32 (n,)) of unit rows (n, d).

    Ties to the lowest index; a row of NaN has a cosine of NaN.
    """
    import torch

    if block.is_cuda:
        cosine, best = torch.mm(block, centroids.T).max(dim=1)  # the first of equals
        return best, cosine
    best, cosine = _first_of(block, centroids[:BLOCK])
    for start in range(BLOCK, len(centroids), BLOCK):
        there, value = _first_of(block, centroids[start : start + BLOCK])
        better = value > cosine
        best, cosine = torch.where(better, there + start, best), torch.where(better, value, cosine)
    return best, cosine


def _first_of(block: "torch.Tensor", centroids: "torch.Tensor") -> tuple["torch.Tensor", "torch.Tensor"]:
    """Return the same for a few centroids on the CPU: numpy's argmax is ten times as fast as torch's max by row."""
    import torch

    products = torch.mm(block, centroids.T)
    best = torch.from_numpy(products.numpy().argmax(axis=1))
    return best, products.gather(1, best[:, None])[:, 0]
