"""Spherical k-means: the torch engine against faiss, same rows, same start, and the matrix product that bounds both.

    python tests/benchmarks/bench_kmeans.py --json out.json

The last results are about the machine's peak, on all cores and on one: that of a square matrix product, measured in
the same run, beside the rate of the products of rows and centroids in our blocks, of the assignment (float16 to unit
rows, products, maxima), and of a whole fit, rows read from a memory map and converted block by block, as they are where
they are many. Run it without OPENBLAS_CORETYPE: it would choose faiss's kernels (`blas` says which ran).
"""

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from threadpoolctl import threadpool_info

from tasks.streams.ordered_map import ordered_map
from tasks.vectors import kmeans
from tasks.vectors.nearest_centroid import BLOCK, Assigner


def timed(function: Callable[[], Any]) -> tuple[float, float, Any]:
    """Return (CPU seconds of all threads, wall seconds, result)."""
    cpu, wall = time.process_time(), time.perf_counter()
    result = function()
    return time.process_time() - cpu, time.perf_counter() - wall, result


def mixture(rows: int, k: int, dim: int) -> np.ndarray:
    rng = np.random.default_rng(0)
    centres = rng.normal(size=(k, dim)).astype(np.float32)
    return (centres[rng.integers(0, k, rows)] + rng.normal(size=(rows, dim)).astype(np.float32)).astype(np.float16)


def products(rows: torch.Tensor, centroids: torch.Tensor, passes: int) -> None:
    """The multiplications alone, in the same blocks on the same threads."""
    threads = torch.get_num_threads()
    starts = [start for _ in range(passes) for start in range(0, len(rows), BLOCK)]
    torch.set_num_threads(1)
    try:
        for _ in ordered_map(lambda start: tiles(rows[start : start + BLOCK], centroids), starts, threads):
            pass
    finally:
        torch.set_num_threads(threads)


def tiles(block: torch.Tensor, centroids: torch.Tensor) -> None:
    for start in range(0, len(centroids), BLOCK):
        torch.mm(block, centroids[start : start + BLOCK].T)


def compare(rows: int, k: int, dim: int, niter: int, repeats: int) -> dict[str, Any]:
    data = mixture(rows, k, dim)
    unit = torch.from_numpy(data).float()
    kmeans.fit(data[: 4 * k], k, niter=1, engine="faiss")  # both libraries loaded and warm
    kmeans.fit(data[: 4 * k], k, niter=1, engine="torch")
    runs = []
    for seed in range(repeats):
        ours = timed(partial(kmeans.fit, data, k, niter=niter, seed=seed, engine="torch"))
        peer = timed(partial(kmeans.fit, data, k, niter=niter, seed=seed, engine="faiss"))
        limit = timed(lambda: products(unit, unit[:k], niter + 1))
        runs.append((ours, peer, limit))
    cpu = [statistics.median(run[arm][0] for run in runs) for arm in range(3)]
    wall = [statistics.median(run[arm][1] for run in runs) for arm in range(3)]
    return {
        "name": f"k-means {rows} x {dim}, k={k}, {niter} iterations",
        "unit": "CPU s",
        "ours": round(cpu[0], 2),
        "peer": round(cpu[1], 2),
        "ratio": round(cpu[1] / cpu[0], 2),
        "limit": round(cpu[2], 2),  # its matrix products alone
        "wall_s": [round(value, 2) for value in wall],
        "ours_objective": round(statistics.mean(run[0][2].objective[-1] for run in runs), 5),
        "peer_objective": round(statistics.mean(run[1][2].objective[-1] for run in runs), 5),
        "threads": torch.get_num_threads(),
        "blas": {
            Path(b["filepath"]).parent.name: b["architecture"] for b in threadpool_info() if b["user_api"] == "blas"
        },
    }


def peak(rows: int, k: int, dim: int, niter: int, repeats: int, threads: int, side: int = 4096) -> dict[str, Any]:
    """Rates in GFLOP a CPU second, the four alternated; medians."""
    torch.set_num_threads(threads)
    data = mixture(rows, k, dim)
    unit, square = torch.from_numpy(data).float(), torch.randn(side, side)
    into = torch.empty(side, side)
    work = 2 * rows * k * dim * 1e-9
    rates = []
    with tempfile.TemporaryDirectory() as folder:
        np.save(Path(folder, "rows.npy"), data)
        mapped = np.load(Path(folder, "rows.npy"), mmap_mode="r")
        assigner = Assigner(kmeans.fit(mapped[: 4 * k], k, niter=1, held_bytes=0).centroids)
        for seed in range(repeats):
            gemm = 2 * side**3 * 1e-9 / timed(lambda: torch.mm(square, square, out=into))[0]
            bare = work * (niter + 1) / timed(lambda: products(unit, unit[:k], niter + 1))[0]
            cpu, _, fit = timed(partial(kmeans.fit, mapped, k, niter=niter, seed=seed, held_bytes=0))
            nearest = work / timed(lambda: assigner(data))[0]
            rates.append((gemm, bare, nearest, work * len(fit.objective) / cpu))
    limit, bare, nearest, whole = (statistics.median(rate[arm] for rate in rates) for arm in range(4))
    return {
        "name": f"k-means {rows} x {dim} from a map, k={k}, threads={threads}: share of the machine's product",
        "unit": "GFLOP / CPU s",
        "ours": round(whole, 1),
        "products": round(bare, 1),
        "assign": round(nearest, 1),
        "limit": round(limit, 1),
        "products_of_limit": round(bare / limit, 3),
        "assign_of_limit": round(nearest / limit, 3),
        "ours_of_limit": round(whole / limit, 3),
        "threads": threads,
    }


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--json", type=Path)
    parser.add_argument("--rows", type=int, default=50_000)
    parser.add_argument("--k", type=int, default=1024)
    parser.add_argument("--dim", type=int, default=512)
    parser.add_argument("--niter", type=int, default=5)
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args()
    sizes = (options.rows, options.k, options.dim, options.niter, options.repeats)
    larger = (options.rows * 4, options.k, *sizes[2:])
    cores = torch.get_num_threads()
    results = [compare(*sizes), compare(*larger), peak(*sizes, threads=cores), peak(*sizes, threads=1)]
    print(json.dumps(results, indent=1))
    if options.json:
        options.json.write_text(json.dumps(results, indent=1))


if __name__ == "__main__":
    main()
