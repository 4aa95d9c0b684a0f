"""Spherical k-means: the torch engine against faiss, same rows, same start, and the matrix product that bounds both.

python tests/benchmarks/bench_kmeans.py --json out.json
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from tasks import kmeans


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
    """The multiplications alone, in the same blocks."""
    step = kmeans.block_rows(len(centroids))
    for _ in range(passes):
        for start in range(0, len(rows), step):
            rows[start : start + step] @ centroids.T


def compare(rows: int, k: int, dim: int, niter: int, repeats: int) -> dict[str, Any]:
    data = mixture(rows, k, dim)
    unit = torch.from_numpy(data).float()
    kmeans.fit(data[: 4 * k], k, niter=1, engine="faiss")  # both libraries loaded and warm
    kmeans.fit(data[: 4 * k], k, niter=1, engine="torch")
    runs = []
    for seed in range(repeats):
        ours = timed(lambda s=seed: kmeans.fit(data, k, niter=niter, seed=s, engine="torch"))
        peer = timed(lambda s=seed: kmeans.fit(data, k, niter=niter, seed=s, engine="faiss"))
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
    results = [compare(options.rows, options.k, options.dim, options.niter, options.repeats)]
    print(json.dumps(results, indent=1))
    if options.json:
        options.json.write_text(json.dumps(results, indent=1))


if __name__ == "__main__":
    main()
