"""Spherical k-means over embeddings: draw a training sample, fit centroids to it, assign rows to them.

`Sample` draws in one pass and keeps its rows in a memory map; `fit` is Lloyd's loop over that; `Assigner` gives the
nearest centroid of any rows. All work in blocks whose size does not depend on how the rows came; on the CPU a thread
takes whole blocks, and results are added in their order, so that they do not depend on how many threads there are
either. Mapped pages are given back after each block (`release`), so that what a process holds does not grow with the
rows: a file that fits stays in the page cache, which the kernel takes back when it needs it.
Not k-means in Euclidean space: rows are scaled to unit length, and so are the centroids.

Source: Dhillon and Modha, Concept decompositions for large sparse text data using clustering, Machine Learning 2001;
empty clusters are refilled as faiss does it; `spread` is k-means++ (Arthur and Vassilvitskii, SODA 2007), drawn in
rounds as k-means|| does (Bahmani et al., VLDB 2012).
"""

import mmap
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal

import numpy as np
import pyarrow as pa

from catalog.errors import RecipeError, UserError, nearest
from catalog.schema import role
from catalog.wording import amount
from tasks.stage import Tables
from tasks.streams.ordered_map import Item, Result, in_order
from tasks.vectors import random_keys as draw

if TYPE_CHECKING:
    import torch

Engine = Literal["auto", "torch", "faiss"]
Init = Literal["random", "k-means++"]

HELD_BYTES: Final = 1 << 30
"""Training rows stay on the device as float32 up to this size; above it they are converted block by block."""
BLOCK: Final = 1024
"""On the CPU a thread multiplies so many rows with so many centroids at once: 4 MB of products, which stay in cache."""
AHEAD: Final = 12
"""Blocks that are drawn beyond one a thread: work for the threads while the next rows are read."""
PIECE_ROWS: Final = 256
"""Rows of a memory map that are moved at once, from anywhere: where the page cache lies in large pages, the kernel maps
2 MB around each, and a few thousand would make the whole of a large file resident."""
SPREAD_ROUNDS: Final = 128
"""k-means++ draws its rows in so many rounds: one by one up to this k."""
SPREAD_ROWS_PER_CENTROID: Final = 64
"""k-means++ draws from a sample of so many rows a centroid, at most what `HELD_BYTES` holds."""


def vector_column(available: Tables, encoder: str) -> str:
    """Return the embedding column that `encoder` names; the first one where it is empty. Raises RecipeError."""
    if "embeddings" not in available:
        raise RecipeError("there are no embeddings to read: put a stage `use: embed` before this one")
    names = [field_.name for field_ in available["embeddings"] if role(field_) == "vector"]
    if encoder and encoder not in names:
        raise RecipeError(f"no embedding column {encoder!r}{nearest(encoder, names)}")
    if not names:
        raise RecipeError("the embeddings table has no vector column")
    return encoder or names[0]


CLUSTERED: Final = "clustered"
"""Key of the metadata of `centroids.centroid`: the embedding column that was clustered."""


def clustered_column(available: Tables, encoder: str) -> str:
    """Return the embedding column that the centroids were fitted on: what they say, else as `vector_column`.

    Raises RecipeError where `encoder` names another one: vectors of two encoders are not to be compared.
    """
    field_ = available["centroids"].field("centroid") if "centroids" in available else None
    fitted = ((field_.metadata if field_ else None) or {}).get(CLUSTERED.encode(), b"").decode()
    if fitted and encoder and encoder != fitted:
        raise RecipeError(f"encoder {encoder!r}: the clusters are of the embedding column {fitted!r}")
    return vector_column(available, encoder or fitted)


def width(schema: pa.Schema, column: str) -> int:
    """Return how many numbers a vector of `column` has."""
    return int(schema.field(column).type.list_size)


def usable(vectors: np.ndarray) -> np.ndarray:
    """Return which rows of (n, d) have a direction: bool (n,), false for zero, NaN and infinite ones."""
    if vectors.dtype == np.float16:
        return _usable_halves(np.ascontiguousarray(vectors))
    rows = vectors.astype(np.float32)
    squared = np.einsum("ij,ij->i", rows, rows)
    good: np.ndarray = np.isfinite(squared) & (squared > 0)
    return good


def _usable_halves(vectors: np.ndarray) -> np.ndarray:
    """The same of float16 by its bits, a tenth of the time: no such square overflows float32 or vanishes in it.

    Without the sign they are ordered as the magnitudes are: 0 is zero, from 0x7C00 on they are infinite or NaN.
    """
    most = np.empty(len(vectors), np.uint16)
    for start in range(0, len(vectors), BLOCK):
        magnitudes = vectors[start : start + BLOCK].view(np.uint16) & np.uint16(0x7FFF)
        magnitudes.max(axis=1, out=most[start : start + BLOCK], initial=0)
    good: np.ndarray = (most > 0) & (most < 0x7C00)
    return good


def release(rows: np.ndarray) -> None:
    """Unmap the pages of a memory map that were touched: they stay in the kernel's page cache, not in this process.

    Nothing is lost: what was written is in the page cache too. Does nothing to rows in memory, and to private
    (copy-on-write) maps, whose changes lie nowhere else.
    """
    base: object = rows
    while isinstance(base, np.ndarray) and getattr(base, "mode", "") != "c":
        base = base.base
    if isinstance(base, mmap.mmap):
        base.madvise(mmap.MADV_DONTNEED)


def gathered(rows: np.ndarray, at: np.ndarray) -> np.ndarray:
    """Return some rows (m, d), int64 (m,) says which, of a map (n, d), releasing it after each `PIECE_ROWS`."""
    found = np.empty((len(at), *rows.shape[1:]), rows.dtype)
    for begin in range(0, len(at), PIECE_ROWS):
        piece = slice(begin, begin + PIECE_ROWS)
        found[piece] = rows[at[piece]]
        release(rows)
    return found


class Sample:
    """A uniform sample without replacement, drawn in one pass: the rows with the smallest keys (bottom-k sampling).

    Which rows it holds depends on the seed and the ids alone, not on their order or on batches. Vectors lie in a
    memory map at `path`, float16, about 1.25 times the sample's size (and once more while a part of the rows that were
    offered is sorted); memory is 16 bytes a sampled row, and a block.
    """

    def __init__(self, path: Path, rows: int, dim: int, seed: int) -> None:
        self.seen = 0
        self._rows, self._seed, self._filled = rows, seed, 0
        slots = rows + max(rows // 4, 1024)
        self._vectors = np.lib.format.open_memmap(path, mode="w+", dtype=np.float16, shape=(slots, dim))
        self._ids = np.empty(slots, np.int64)
        self._keys = np.empty(slots, np.uint64)
        self._limit = np.uint64(0xFFFFFFFFFFFFFFFF)

    def add(self, sample_ids: np.ndarray, vectors: np.ndarray) -> None:
        """Offer rows: ids int64 (n,), vectors (n, d). Those without a direction are passed over, and not `seen`."""
        good = usable(vectors)
        self.seen += int(good.sum())
        keys = draw.keys(sample_ids, self._seed)
        wanted = np.flatnonzero(good & (keys <= self._limit))
        while len(wanted):
            now, wanted = np.split(wanted, [len(self._ids) - self._filled])
            to = slice(self._filled, self._filled + len(now))
            self._vectors[to], self._ids[to], self._keys[to] = vectors[now], sample_ids[now], keys[now]
            self._filled += len(now)
            if self._filled == len(self._ids):
                self._shrink()
        release(self._vectors)

    def take(self) -> tuple[np.ndarray, np.ndarray]:
        """Return (ids int64 (m,) ascending, vectors float16 (m, d), a memory map) of the sample."""
        self._shrink()
        ids = self._ids[: self._filled]
        if (ids[1:] > ids[:-1]).all():  # every row that was offered, as they come: no second copy of all of them
            return ids, self._vectors[: self._filled]
        order = np.argsort(ids)
        sorted_path = Path(str(self._vectors.filename) + ".sorted")
        shape = (max(self._filled, 1), self._vectors.shape[1])
        out = np.lib.format.open_memmap(sorted_path, mode="w+", dtype=np.float16, shape=shape)
        for start in range(0, self._filled, PIECE_ROWS):
            piece = order[start : start + PIECE_ROWS]
            out[start : start + len(piece)] = self._vectors[piece]
            release(self._vectors)
            release(out)
        return ids[order], out[: self._filled]

    def _shrink(self) -> None:
        """Keep the `rows` smallest keys, moving as few rows as possible."""
        if self._filled <= self._rows:
            return
        smallest = np.argpartition(self._keys[: self._filled], self._rows - 1)[: self._rows]
        stays = np.zeros(self._filled, bool)
        stays[smallest] = True
        holes = np.flatnonzero(~stays[: self._rows])
        movers = self._rows + np.flatnonzero(stays[self._rows :])
        self._ids[holes], self._keys[holes] = self._ids[movers], self._keys[movers]
        for start in range(0, len(holes), PIECE_ROWS):
            piece = slice(start, start + PIECE_ROWS)
            self._vectors[holes[piece]] = self._vectors[movers[piece]]
            release(self._vectors)
        self._filled = self._rows
        self._limit = self._keys[: self._rows].max()


class UnitRows:
    """Rows of a matrix as float32 unit vectors on a device, a range at a time; held there when they are few.

    `rows`: (n, d), float16 or float32, in memory or mapped. A row without a direction (`usable`) becomes NaN.
    """

    def __init__(self, rows: np.ndarray, device: str) -> None:
        self._rows, self._device = rows, device
        self._held = self._load(0, len(rows)) if rows.size * 4 <= HELD_BYTES else None

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, span: slice) -> "torch.Tensor":
        if self._held is not None:
            return self._held[span]
        return self._load(span.start, span.stop)

    def _load(self, start: int, stop: int) -> "torch.Tensor":
        piece = _units(self._rows[start:stop], self._device)
        release(self._rows)
        return piece


def _units(rows: np.ndarray, device: str) -> "torch.Tensor":
    """Return rows as float32 unit vectors, (n, d) on a device; NaN where a row has no direction."""
    import torch

    piece = torch.from_numpy(np.array(rows)).to(device).float()
    norms = torch.linalg.vector_norm(piece, dim=1, keepdim=True)
    return piece.div_(norms.masked_fill_((norms == 0) | norms.isinf(), torch.nan))


@dataclass(frozen=True)
class Fit:
    """What `fit` found. Objectives are mean cosines of a row to its centroid, one an iteration, the last one final."""

    centroids: np.ndarray
    """float32 (k, d), unit rows."""
    sizes: np.ndarray
    """int64 (k,): training rows nearest to each."""
    engine: str
    objective: list[float] = field(default_factory=list)
    repairs: list[int] = field(default_factory=list)
    """Empty clusters refilled, by iteration."""

    def facts(self) -> dict[str, Any]:
        """Return what is worth noting beside the table."""
        return {
            "engine": self.engine,
            "training_rows": int(self.sizes.sum()),
            "iterations": len(self.objective) - 1,
            "objective": [round(value, 6) for value in self.objective],
            "empty_cluster_repairs": self.repairs,
        }


def fit(
    rows: np.ndarray,
    k: int,
    *,
    niter: int = 25,
    seed: int = 0,
    device: str = "cpu",
    engine: Engine = "auto",
    init: Init = "random",
) -> Fit:
    """Fit k unit centroids to rows (n, d), float16 or float32, each with a direction.

    Starts from k distinct rows, random ones or those of `spread`; stops after `niter` updates, or when none changes
    anything. Both engines get the same start and give the same things; `auto` is torch, which reads mapped rows block
    by block and needs no second CUDA runtime on a GPU; faiss holds all rows in memory as float32
    (`tests/benchmarks/bench_kmeans.py` compares their speed). Raises UserError where k is above n.
    """
    if k > len(rows):
        raise UserError(f"k is {k}, but only {amount(len(rows), 'row has', 'rows have')} a usable embedding: lower k")
    rng = np.random.default_rng(seed)
    start = spread(rows, k, rng, device) if init == "k-means++" else np.sort(rng.choice(len(rows), k, replace=False))
    if engine == "faiss":
        return _fit_faiss(rows, start, niter, seed, device)
    return _fit_torch(rows, start, niter, rng, device)


def spread(rows: np.ndarray, k: int, rng: np.random.Generator, device: str = "cpu") -> np.ndarray:
    """Return k distinct rows that lie far apart: int64 (k,), ascending. k-means++ in at most `SPREAD_ROUNDS` rounds.

    Each round draws rows with a chance in proportion to their distance, 1 - cosine (half of the squared Euclidean one
    of unit vectors), to the nearest row drawn before; up to k = `SPREAD_ROUNDS` it is one row a round: k-means++
    itself. Together they cost as much as one pass of Lloyd's loop. Draws from a uniform sample of the rows where they
    are many (`SPREAD_ROWS_PER_CENTROID`, `HELD_BYTES`). No local trials: not the greedy variant.
    """
    most = max(k, min(SPREAD_ROWS_PER_CENTROID * max(k, SPREAD_ROUNDS), HELD_BYTES // (4 * rows.shape[1])))
    pool = np.arange(len(rows)) if len(rows) <= most else np.sort(rng.choice(len(rows), most, replace=False))
    unit = UnitRows(rows if len(pool) == len(rows) else gathered(rows, pool), device)
    taken = np.zeros(len(pool), bool)
    distance = np.ones(len(pool), np.float32)
    left = k
    for rounds in range(min(k, SPREAD_ROUNDS), 0, -1):
        now = _draw(distance, taken, -(-left // rounds), rng)
        taken[now] = True
        left -= len(now)
        if left:
            centres = UnitRows(gathered(rows, pool[now]), device)[0 : len(now)]
            cosines = np.concatenate([cosine.cpu().numpy() for _, _, cosine in _nearest(unit, centres)])
            distance = np.minimum(distance, np.maximum(1 - cosines, 0))
    return np.sort(pool[taken])


def _draw(weights: np.ndarray, taken: np.ndarray, count: int, rng: np.random.Generator) -> np.ndarray:
    """Return `count` rows that are not taken, by weight, without replacement; those of no weight come last.

    The smallest of exponential variates divided by the weights: Efraimidis and Spirakis 2006.
    """
    keys = rng.standard_exponential(len(weights)) / np.maximum(weights.astype(np.float64), 1e-30)
    keys[taken] = np.inf
    return np.argpartition(keys, count - 1)[:count]


def between(centroids: np.ndarray, neighbours: int) -> np.ndarray:
    """Return the mean distance of each centroid to its nearest others: float64 (k,); NaN where there is one only.

    `centroids`: float32 (k, d), unit rows. Fewer others than `neighbours`: all of them. In blocks: 64 MB at a time.
    Source: d_inter of Abbas et al. 2024 (arXiv 2401.04578), section 3.
    """
    k = len(centroids)
    near = min(neighbours, k - 1)
    mean = np.full(k, np.nan)
    if near < 1:
        return mean
    step = max((1 << 24) // k, 1)
    for start in range(0, k, step):
        distance = 1 - centroids[start : start + step] @ centroids.T
        own = np.arange(len(distance))
        distance[own, start + own] = np.inf
        mean[start : start + step] = np.partition(distance, near - 1, axis=1)[:, :near].mean(axis=1, dtype=np.float64)
    return mean


def assign(rows: np.ndarray, centroids: np.ndarray, device: str = "cpu") -> tuple[np.ndarray, np.ndarray]:
    """Return (nearest of unit centroids (k, d): int32 (n,), cosine to it: float32 (n,)); ties to the lowest.

    `rows` as for `fit`: each with a direction. Where some may have none, `Assigner` is for them.
    """
    import torch

    found, cosine = np.empty(len(rows), np.int32), np.empty(len(rows), np.float32)
    done = 0
    unit = torch.from_numpy(np.array(centroids, np.float32)).to(device)
    for _, best, cosines in _nearest(UnitRows(rows, device), unit):
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
        """Yield the same for each of some blocks of at most `rows_at_once` rows, which are drawn ahead."""
        return on_cores(self._block, blocks, self._device)

    def _block(self, vectors: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        if not len(self._centroids) or not len(vectors):
            return np.full(len(vectors), -1, np.int32), np.full(len(vectors), np.nan, np.float32)
        best, cosine = _best(_units(vectors, self._device), self._centroids)
        cosines = cosine.cpu().numpy()
        cluster = np.where(np.isnan(cosines), -1, best.cpu().numpy()).astype(np.int32)
        return cluster, np.maximum(1 - cosines, 0)


def block_rows(k: int) -> int:
    """Return how many rows are multiplied with k others in one product (ours on a GPU): at most 64 MB of it."""
    return min(max((1 << 24) // max(k, 1), 256), 8192)


def _step(centroids: "torch.Tensor") -> int:
    return block_rows(len(centroids)) if centroids.is_cuda else BLOCK


def _nearest(
    rows: UnitRows, centroids: "torch.Tensor"
) -> Iterator[tuple["torch.Tensor", "torch.Tensor", "torch.Tensor"]]:
    """Yield (block, index of the nearest centroid, cosine to it)."""
    step = _step(centroids)

    def nearest_of(start: int) -> tuple["torch.Tensor", "torch.Tensor", "torch.Tensor"]:
        block = rows[start : min(start + step, len(rows))]
        return block, *_best(block, centroids)

    return on_cores(nearest_of, range(0, len(rows), step), centroids.device.type)


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
    """The same of a few centroids on the CPU: numpy's argmax is ten times as fast as torch's max over a dimension."""
    import torch

    products = torch.mm(block, centroids.T)
    best = torch.from_numpy(products.numpy().argmax(axis=1))
    return best, products.gather(1, best[:, None])[:, 0]


def on_cores(
    function: Callable[[Item], Result], items: Iterable[Item], device: str, ahead: int = AHEAD
) -> Iterator[Result]:
    """Yield `function` of each item, in order. On the CPU as many are in work as torch has threads, each on one; up to
    `ahead` more wait or are done.

    That is cheaper than products on all threads: none waits for another at the end of each operation, conversions and
    maxima are spread too, and so is reading, which goes on in this thread meanwhile.
    """
    import torch

    threads = torch.get_num_threads()
    if device != "cpu" or threads == 1:
        yield from map(function, items)
        return
    torch.set_num_threads(1)  # of this thread, and of those that start from now on
    try:
        yield from in_order(function, items, threads, ahead)
    finally:
        torch.set_num_threads(threads)


def _fit_torch(rows: np.ndarray, start: np.ndarray, niter: int, rng: np.random.Generator, device: str) -> Fit:
    import torch

    unit = UnitRows(rows, device)
    centroids = UnitRows(gathered(rows, start), device)[0 : len(start)].clone()
    objective: list[float] = []
    repairs: list[int] = []
    while True:
        sums, counts, total = _totals(unit, centroids)
        objective.append(total / len(rows))
        if len(repairs) == niter:
            break
        moved, empty = _update(centroids, sums, counts, rng)
        if torch.equal(moved, centroids):
            break
        repairs.append(empty)
        centroids = moved
    return Fit(centroids.cpu().numpy(), counts.cpu().numpy(), "torch", objective, repairs)


def _totals(rows: UnitRows, centroids: "torch.Tensor") -> tuple["torch.Tensor", "torch.Tensor", float]:
    """Return (sums float32 (k, d), counts int64 (k,), sum of cosines) of one pass."""
    import torch

    sums = torch.zeros_like(centroids)
    counts = torch.zeros(len(centroids), dtype=torch.int64, device=centroids.device)
    total = torch.zeros((), dtype=torch.float64, device=centroids.device)
    # CUDA adds in any order unless told. Only here: the same switch makes cuBLAS ask for a variable of its own.
    strict = centroids.is_cuda and not torch.are_deterministic_algorithms_enabled()
    for block, best, cosine in _nearest(rows, centroids):
        if strict:
            torch.use_deterministic_algorithms(True)
        sums.index_add_(0, best, block)
        if strict:
            torch.use_deterministic_algorithms(False)
        counts += torch.bincount(best, minlength=len(centroids))
        total += cosine.double().sum()
    return sums, counts, float(total)


def _update(
    centroids: "torch.Tensor", sums: "torch.Tensor", counts: "torch.Tensor", rng: np.random.Generator
) -> tuple["torch.Tensor", int]:
    """Return (new centroids, how many were empty and refilled)."""
    import torch

    norms = torch.linalg.vector_norm(sums, dim=1, keepdim=True)
    moved = torch.where(norms > 0, sums / norms.clamp_min(torch.finfo(torch.float32).tiny), centroids)
    sizes = counts.cpu().numpy().astype(np.float64)
    empty = np.flatnonzero(sizes == 0)
    sign = torch.ones(centroids.shape[1], device=centroids.device)
    sign[1::2] = -1
    refilled = 0
    for hole in empty:
        spare = np.maximum(sizes - 1, 0)
        if not spare.any():
            break
        donor = int(rng.choice(len(sizes), p=spare / spare.sum()))
        moved[hole] = moved[donor] * (1 + sign / 1024)
        moved[donor] = moved[donor] * (1 - sign / 1024)
        moved[[int(hole), donor]] /= torch.linalg.vector_norm(moved[[int(hole), donor]], dim=1, keepdim=True)
        sizes[hole] = sizes[donor] // 2
        sizes[donor] -= sizes[hole]
        refilled += 1
    return moved, refilled


def _import_faiss() -> Any:
    """Return the module faiss. Raises UserError where it is missing, or installed twice: both own that name."""
    there = [name for name in ("faiss-cpu", "faiss-gpu-cu12") if _is_installed(name)]
    if len(there) != 1:
        found = "both faiss-cpu and faiss-gpu-cu12 are installed" if there else "faiss is not installed"
        raise UserError(f"engine faiss: {found}; install exactly one: pip install -e '.[cpu]' or '.[gpu]'")
    import faiss

    return faiss


def _is_installed(distribution: str) -> bool:
    from importlib.metadata import PackageNotFoundError, version

    try:
        version(distribution)
    except PackageNotFoundError:
        return False
    return True


def _fit_faiss(rows: np.ndarray, start: np.ndarray, niter: int, seed: int, device: str) -> Fit:
    import torch

    faiss = _import_faiss()
    unit = UnitRows(rows, "cpu")[0 : len(rows)].numpy()
    gpus = faiss.get_num_gpus() if device.startswith("cuda") else 0
    kmeans = faiss.Kmeans(
        rows.shape[1],
        len(start),
        niter=niter,
        seed=seed & 0x7FFFFFFF,
        spherical=True,
        gpu=gpus > 0,
        min_points_per_centroid=1,
        max_points_per_centroid=len(rows),  # its default of 256 would draw a sample of its own, unseen
    )
    kmeans.train(unit, init_centroids=unit[start])
    centroids = torch.from_numpy(kmeans.centroids).to(device)
    centroids /= torch.linalg.vector_norm(centroids, dim=1, keepdim=True)
    _, counts, total = _totals(UnitRows(rows, device), centroids)  # its own objective is of the iteration before
    steps = kmeans.iteration_stats or []
    return Fit(
        centroids.cpu().numpy(),
        counts.cpu().numpy(),
        "faiss",
        [step["obj"] / len(rows) for step in steps] + [total / len(rows)],
        [int(step["nsplit"]) for step in steps],
    )
