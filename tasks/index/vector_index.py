"""A faiss index of unit vectors by sample_id: train, add rows in blocks, search, write.

The similarity is the inner product of unit vectors, the cosine. Lists are trained by `tasks.vectors.kmeans`, which also
assigns rows to them: its training sample is explicit (that of faiss is internal), and it runs on a GPU while faiss uses
the CPU. Rows without a direction (zero or not finite) are skipped.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import IO, Any, Final

import numpy as np

from catalog.errors import UserError
from tasks.index.choose import CODEBOOK_ROWS, LINKS, Choice, Kind
from tasks.vectors import kmeans
from tasks.vectors.nearest_centroid import Assigner

ITERATIONS: Final = 10
"""Iterations of k-means for the lists, as in faiss."""
_BUILD_EFFORT: Final = 40
"""HNSW's efConstruction, as in faiss: the number of candidates for links."""
_ROTATION_ROUNDS: Final = 8
_MAX_GRAPH_EFFORT: Final = 4096
BLOCK: Final = 16_384
"""Rows converted to float32 at once."""


def unit_rows(vectors: np.ndarray) -> np.ndarray:
    """Normalise rows that have a direction to float32 (n, d) of length 1."""
    rows = vectors.astype(np.float32)
    rows /= np.sqrt(np.einsum("ij,ij->i", rows, rows))[:, None]
    return np.ascontiguousarray(rows)


def unit_blocks(
    sample_ids: np.ndarray, vectors: np.ndarray, block_rows: int = BLOCK
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yield (ids int64 (m,), float32 (m, d) unit rows) of (n,) and (n, d), at most `block_rows` at once.

    Rows without a direction are skipped.
    """
    for start in range(0, len(vectors), block_rows):
        rows = vectors[start : start + block_rows].astype(np.float32)
        squared = np.einsum("ij,ij->i", rows, rows)
        good = np.isfinite(squared) & (squared > 0)
        ids = sample_ids[start : start + block_rows]
        if not good.all():
            ids, rows, squared = ids[good], rows[good], squared[good]
        rows /= np.sqrt(squared)[:, None]
        yield ids, rows


@dataclass
class VectorIndex:
    """A faiss index and its kind. `effort` is that of a search: nprobe of lists, efSearch of a graph."""

    faiss: Any
    kind: Kind
    device: str = "cpu"
    """The device on which added rows are compared with the lists' centroids. The index itself is on the CPU."""

    @classmethod
    def train(cls, choice: Choice, sample: np.ndarray, seed: int = 0, device: str = "cpu") -> "VectorIndex":
        """Return an empty index with lists and codes trained on a sample; `flat` and `hnsw` need none.

        `sample`: (n, d), float16 or float32, every row with a direction. Raises UserError if it has fewer rows than
        lists.
        """
        if choice.kind in ("flat", "hnsw"):
            return cls(_library().IndexIDMap(_unlisted(choice)), choice.kind)
        return cls(_listed(choice, sample, seed, device), choice.kind, device)

    @classmethod
    def read(cls, path: str | None, data: bytes | None, kind: Kind, mapped: bool = False) -> "VectorIndex":
        """Return the index in a file, or in bytes. A `mapped` one opens immediately, but cannot be changed.

        Raises UserError if it is damaged.
        """
        faiss = _library()
        try:
            if path is not None:
                return cls(faiss.read_index(path, faiss.IO_FLAG_MMAP_IFC if mapped else 0), kind)
            return cls(faiss.deserialize_index(np.frombuffer(data or b"", np.uint8)), kind)
        except RuntimeError as error:
            raise UserError(f"the index {path or ''} cannot be read: remove it and build it again") from error

    def write(self, file: IO[bytes]) -> None:
        """Write the index to a file."""
        faiss = _library()
        faiss.write_index(self.faiss, faiss.PyCallbackIOWriter(file.write))

    @property
    def rows(self) -> int:
        """The number of vectors."""
        return int(self.faiss.ntotal)

    @property
    def can_remove(self) -> bool:
        """Whether the kind supports the removal of rows."""
        return self.kind != "hnsw"

    @property
    def most_effort(self) -> int:
        """The effort that examines everything (lists), or beyond which the gain is negligible (graph)."""
        if self._lists is not None:
            return int(self._lists.nlist)
        return _MAX_GRAPH_EFFORT if self.kind == "hnsw" else 1

    def add(self, sample_ids: np.ndarray, rows: np.ndarray) -> None:
        """Add rows: ids int64 (n,), float32 (n, d) unit rows (from `unit_blocks`)."""
        if self._lists is None:
            self.faiss.add_with_ids(rows, np.ascontiguousarray(sample_ids, np.int64))
            return
        for start in range(0, len(rows), BLOCK):
            some = slice(start, start + BLOCK)
            self._add_listed(np.ascontiguousarray(sample_ids[some], np.int64), rows[some])

    def remove(self, sample_ids: np.ndarray) -> int:
        """Remove rows; return how many were found. Raises UserError if the kind does not support it."""
        return self._remove(_library().IDSelectorBatch(np.ascontiguousarray(sample_ids, np.int64)))

    def remove_span(self, low: int, high: int) -> int:
        """Remove the rows whose sample_id is in [low, high]."""
        return self._remove(_library().IDSelectorRange(low, high + 1))

    def search(
        self, queries: np.ndarray, k: int, effort: int = 0, allowed: np.ndarray | None = None
    ) -> tuple[np.ndarray, np.ndarray]:
        """Return (scores float32 (q, k) descending, sample_ids int64 (q, k)) of the nearest rows, padded with -1.

        `queries`: float32 (q, d), unit rows. `allowed` (int64) restricts the results to these samples, at about 50
        bytes of memory each during the search.
        """
        faiss = _library()
        selector = None if allowed is None else faiss.IDSelectorBatch(np.ascontiguousarray(allowed, np.int64))
        options = self._options(effort, selector)
        scores, found = self.faiss.search(np.ascontiguousarray(queries, np.float32), k, params=options)
        return np.asarray(scores), np.asarray(found)

    @cached_property
    def _lists(self) -> Any:
        return None if self.kind in ("flat", "hnsw") else _library().extract_index_ivf(self.faiss)

    @cached_property
    def _assigner(self) -> Assigner:
        return Assigner(self._lists.quantizer.reconstruct_n(0, self._lists.nlist), self.device)

    def _options(self, effort: int, selector: Any) -> Any:
        faiss = _library()
        chosen = {} if selector is None else {"sel": selector}
        if self.kind == "flat":
            return faiss.SearchParameters(**chosen)
        if self.kind == "hnsw":
            return faiss.SearchParametersHNSW(efSearch=max(effort, 1), **chosen)
        lists = faiss.SearchParametersIVF(nprobe=min(max(effort, 1), self.most_effort), **chosen)
        return faiss.SearchParametersPreTransform(index_params=lists) if self.kind == "opq" else lists

    def _add_listed(self, sample_ids: np.ndarray, rows: np.ndarray) -> None:
        if self.kind == "opq":
            rows = np.ascontiguousarray(self.faiss.chain.at(0).apply(rows))
        nearest = self._assigner(rows)[0].astype(np.int64)
        pointer = _library().swig_ptr
        self._lists.add_core(len(rows), pointer(rows), pointer(sample_ids), pointer(nearest))
        self.faiss.ntotal = self._lists.ntotal

    def _remove(self, selector: Any) -> int:
        if not self.can_remove:
            raise UserError("rows cannot be removed from an index of kind hnsw: build it again")
        return int(self.faiss.remove_ids(selector))


def _unlisted(choice: Choice) -> Any:
    faiss = _library()
    if choice.kind == "flat":
        return faiss.IndexFlatIP(choice.dim)
    graph = faiss.IndexHNSWFlat(choice.dim, LINKS, faiss.METRIC_INNER_PRODUCT)
    graph.hnsw.efConstruction = _BUILD_EFFORT
    return graph


def _listed(choice: Choice, sample: np.ndarray, seed: int, device: str) -> Any:
    """Return a trained inverted file: k-means for its lists, then faiss's training of the codes."""
    faiss = _library()
    centroids = kmeans.fit(sample, choice.lists, niter=ITERATIONS, seed=seed, device=device).centroids
    few = unit_rows(sample[np.linspace(0, len(sample) - 1, min(len(sample), CODEBOOK_ROWS)).astype(np.int64)])
    rotation = _rotation(choice, few) if choice.kind == "opq" else None
    if rotation is not None:  # a rotation preserves lengths and angles, so the centroids are rotated as well
        centroids, few = rotation.apply(centroids), rotation.apply(few)
    quantizer = faiss.IndexFlatIP(choice.dim)
    quantizer.add(np.ascontiguousarray(centroids))
    lists = _lists(choice, quantizer)
    lists.train(np.ascontiguousarray(few))
    return lists if rotation is None else faiss.IndexPreTransform(rotation, lists)


def _lists(choice: Choice, quantizer: Any) -> Any:
    faiss = _library()
    shape = (quantizer, choice.dim, choice.lists)
    product = faiss.METRIC_INNER_PRODUCT
    if choice.coding == "float32":
        return faiss.IndexIVFFlat(*shape, product)
    if choice.coding == "pq":
        coded = faiss.IndexIVFPQ(*shape, choice.codes, 8, product)
        coded.pq.cp.niter = ITERATIONS
        coded.pq.cp.min_points_per_centroid = 1
        return coded
    types = {"float16": faiss.ScalarQuantizer.QT_fp16, "8bit": faiss.ScalarQuantizer.QT_8bit}
    return faiss.IndexIVFScalarQuantizer(*shape, types[choice.coding], product)


def _rotation(choice: Choice, sample: np.ndarray) -> Any:
    faiss = _library()
    rotation = faiss.OPQMatrix(choice.dim, choice.codes)
    rotation.niter, rotation.niter_pq_0 = _ROTATION_ROUNDS, ITERATIONS
    codes = faiss.ProductQuantizer(choice.dim, choice.codes, 8)
    codes.cp.min_points_per_centroid = 1
    rotation.pq = codes
    rotation.train(np.ascontiguousarray(sample))
    rotation.pq = None
    return rotation


def _library() -> Any:
    """Return the module faiss. Raises UserError if it is missing."""
    try:
        import faiss
    except ImportError as error:
        raise UserError(
            "faiss is not installed, and an index needs it: pip install -e '.[cpu]' or '.[gpu]'; "
            "`espalier search --exact` does not"
        ) from error
    return faiss
