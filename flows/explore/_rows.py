"""The vectors of one embedding column in one version, and exact comparisons with them."""

from collections.abc import Iterable
from functools import cached_property

import numpy as np

from catalog import lookup
from catalog.dataset import Dataset
from catalog.errors import NotFoundError
from catalog.version import Version
from flows.explore.stored_index import TABLE
from tasks.index.vector_index import unit_rows
from tasks.vectors.mapped import usable


class Rows:
    """The vectors of one column in one version."""

    def __init__(self, dataset: Dataset, version: Version, column: str) -> None:
        self.dataset, self.version, self.column = dataset, version, column

    @cached_property
    def paths(self) -> list[str]:
        return [part.path for part in self.dataset.files(self.version, TABLE)]

    @property
    def rows(self) -> int:
        return self.version.tables[TABLE].rows

    @cached_property
    def _parts(self) -> lookup.Parts:
        return lookup.Parts(self.dataset.storage, self.paths)

    def of(self, sample_ids: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return (ids ascending, float32 unit rows) of the samples that have a vector."""
        ids, vectors = lookup.vectors_of(self._parts, self.column, sample_ids)
        good = usable(vectors)
        return ids[good], unit_rows(vectors[good])

    def one(self, sample_id: int) -> np.ndarray:
        """Return the vector of one sample, float32 (d,), of length 1. Raises NotFoundError."""
        possible = self.paths and 0 <= sample_id < 1 << 63
        vectors = self.of(np.array([sample_id]))[1] if possible else np.empty((0, 0), np.float32)
        if not len(vectors):
            raise NotFoundError(f"{self.version.label} has no sample {sample_id} with a vector in {self.column!r}")
        return np.asarray(vectors[0])

    def nearest(
        self, vector: np.ndarray, k: int, allowed: np.ndarray | None, paths: Iterable[str]
    ) -> tuple[np.ndarray, np.ndarray]:
        """Return (ids, cosines) of the k nearest rows of some parts, exactly: block by block."""
        best = (np.empty(0, np.int64), np.empty(0, np.float32))
        for path in paths:
            for ids, vectors in lookup.blocks(self.dataset.storage, path, self.column, allowed):
                good = usable(vectors)
                scores = unit_rows(vectors[good]) @ vector
                best = first(np.concatenate([best[0], ids[good]]), np.concatenate([best[1], scores]), k)
        return best


def first(ids: np.ndarray, scores: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the k best, best first, ties by id."""
    if len(ids) > 4 * k:
        least = np.partition(scores, len(scores) - k)[len(scores) - k]
        ids, scores = ids[scores >= least], scores[scores >= least]
    order = np.lexsort((ids, -scores))[:k]
    return ids[order], scores[order]
