"""Spherical k-means over embeddings: fit unit centroids to rows.

`fit` is Lloyd's loop over rows in memory or in a memory map, block by block (`tasks/vectors/nearest_centroid.py`); the
result depends neither on the number of threads nor on whether the rows are mapped.
Not k-means in Euclidean space: rows are scaled to unit length, and so are the centroids.

Source: Dhillon and Modha, Concept decompositions for large sparse text data using clustering, Machine Learning 2001;
empty clusters are refilled as in faiss; `plus_plus` is k-means++ (Arthur and Vassilvitskii, SODA 2007), drawn in
rounds as k-means|| does (Bahmani et al., VLDB 2012).
"""

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final, Literal

import numpy as np

from catalog.errors import UserError
from catalog.wording import amount
from tasks.vectors.mapped import gather
from tasks.vectors.nearest_centroid import nearest_blocks
from tasks.vectors.unit_rows import HELD_BYTES, UnitRows

if TYPE_CHECKING:
    import torch

Engine = Literal["auto", "torch", "faiss"]
Init = Literal["random", "k-means++"]

SEEDING_ROUNDS: Final = 128
"""k-means++ draws its rows in this many rounds: one row a round up to this k."""
SEEDING_ROWS_PER_CENTROID: Final = 64
"""k-means++ draws from a sample of this many rows a centroid, at most as many as `held_bytes` can hold."""


@dataclass(frozen=True)
class Fit:
    """The result of `fit`. Objectives are mean cosines of a row to its centroid: one an iteration and the final one."""

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
    held_bytes: int = HELD_BYTES,
) -> Fit:
    """Fit k unit centroids to rows (n, d), float16 or float32, each with a direction.

    Starts from k distinct rows, random ones or those of `plus_plus`; stops after `niter` updates, or when none changes
    anything. Both engines get the same start and give the same things; `auto` is torch, which reads mapped rows block
    by block and needs no second CUDA runtime on a GPU; faiss holds all rows in memory as float32
    (`tests/benchmarks/bench_kmeans.py` compares their speed). `held_bytes`: see `UnitRows`. Raises UserError where k is
    above n.
    """
    if k > len(rows):
        raise UserError(f"k is {k}, but only {amount(len(rows), 'row has', 'rows have')} a usable embedding: lower k")
    rng = np.random.default_rng(seed)
    if init == "k-means++":
        start = plus_plus(rows, k, rng, device, held_bytes=held_bytes)
    else:
        start = np.sort(rng.choice(len(rows), k, replace=False))
    if engine == "faiss":
        return _fit_faiss(rows, start, niter, seed, device)
    return _fit_torch(rows, start, niter, rng, device, held_bytes)


def plus_plus(
    rows: np.ndarray,
    k: int,
    rng: np.random.Generator,
    device: str = "cpu",
    *,
    rows_per_centroid: int = SEEDING_ROWS_PER_CENTROID,
    held_bytes: int = HELD_BYTES,
) -> np.ndarray:
    """Return k distinct rows that lie far apart: int64 (k,), ascending. k-means++ in at most `SEEDING_ROUNDS` rounds.

    Each round draws rows with a chance in proportion to their distance, 1 - cosine (half of the squared Euclidean one
    of unit vectors), to the nearest row drawn before; up to k = `SEEDING_ROUNDS` it is one row a round: k-means++
    itself. Together they cost as much as one pass of Lloyd's loop. Draws from a uniform sample of the rows where they
    are many (`rows_per_centroid`, `held_bytes`). No local trials: not the greedy variant.
    """
    most = max(k, min(rows_per_centroid * max(k, SEEDING_ROUNDS), held_bytes // (4 * rows.shape[1])))
    pool = np.arange(len(rows)) if len(rows) <= most else np.sort(rng.choice(len(rows), most, replace=False))
    unit = UnitRows(rows if len(pool) == len(rows) else gather(rows, pool), device, held_bytes)
    taken = np.zeros(len(pool), bool)
    distance = np.ones(len(pool), np.float32)
    left = k
    for rounds in range(min(k, SEEDING_ROUNDS), 0, -1):
        now = _draw(distance, taken, -(-left // rounds), rng)
        taken[now] = True
        left -= len(now)
        if left:
            centres = UnitRows(gather(rows, pool[now]), device)[0 : len(now)]
            cosines = np.concatenate([cosine.cpu().numpy() for _, _, cosine in nearest_blocks(unit, centres)])
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


def _fit_torch(
    rows: np.ndarray, start: np.ndarray, niter: int, rng: np.random.Generator, device: str, held_bytes: int
) -> Fit:
    import torch

    unit = UnitRows(rows, device, held_bytes)
    centroids = UnitRows(gather(rows, start), device)[0 : len(start)].clone()
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
    # CUDA adds in any order by default. Only here: the same switch makes cuBLAS require an environment variable.
    strict = centroids.is_cuda and not torch.are_deterministic_algorithms_enabled()
    for block, best, cosine in nearest_blocks(rows, centroids):
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
    """Return the module faiss. Raises UserError where it is missing, or installed twice: both provide that name."""
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
