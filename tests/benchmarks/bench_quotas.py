"""Quotas by water-filling against the quadratic solver that the paper used: time, and rows by which the total is off.

    python tests/benchmarks/bench_quotas.py --json out.json

OSQP gets its default settings, as there, but a sparse identity, which is kinder to it than the dense one there.
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import osqp
import scipy.sparse

from tasks.prune.density import quotas, softmax


def solver(target: np.ndarray, lower: np.ndarray, upper: np.ndarray, total: int) -> np.ndarray:
    """The same problem, solved by OSQP and rounded."""
    k = len(target)
    rows = scipy.sparse.vstack([np.ones((1, k)), scipy.sparse.eye(k)], format="csc")
    low, high = np.r_[total, lower].astype(float), np.r_[total, upper].astype(float)
    problem = osqp.OSQP()
    problem.setup(scipy.sparse.eye(k, format="csc"), -target, rows, low, high, verbose=False)
    return np.rint(problem.solve(raise_error=False).x).astype(np.int64)


def timed(function: Callable[[], np.ndarray]) -> tuple[float, np.ndarray]:
    start = time.process_time()
    result = function()
    return time.process_time() - start, result


def compare(k: int, repeats: int) -> dict[str, Any]:
    """One size, both alternated: medians of CPU milliseconds."""
    rng = np.random.default_rng(k)
    upper = rng.geometric(1 / 5_000, k)
    total = int(upper.sum() * 0.3)
    target, lower = softmax(rng.uniform(0.05, 0.5, k) / 0.1) * total, np.minimum(1, upper)
    runs = [
        (timed(lambda: quotas(target, lower, upper, total)), timed(lambda: solver(target, lower, upper, total)))
        for _ in range(repeats)
    ]
    ours, peer = (statistics.median(run[arm][0] for run in runs) * 1e3 for arm in (0, 1))
    found, solved = runs[0][0][1], runs[0][1][1]
    sort_ms = (
        statistics.median(timed(lambda: np.sort(np.r_[lower - target, upper - target]))[0] for _ in range(5)) * 1e3
    )
    return {
        "name": f"quotas k={k}",
        "unit": "CPU ms",
        "ours": round(ours, 3),
        "peer": round(peer, 3),
        "ratio": round(peer / ours, 1),
        "limit": round(sort_ms, 3),  # the sort of the 2k breakpoints
        "ours_total_off": int(found.sum() - total),
        "peer_total_off": int(solved.sum() - total),
        "peer_rows_out_of_bounds": int((np.maximum(lower - solved, 0) + np.maximum(solved - upper, 0)).sum()),
    }


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--json", type=Path)
    parser.add_argument("--repeats", type=int, default=5)
    options = parser.parse_args()
    results = [compare(k, options.repeats) for k in (500, 5_000, 10_000, 100_000)]
    print(json.dumps(results, indent=1))
    if options.json:
        options.json.write_text(json.dumps(results, indent=1))


if __name__ == "__main__":
    main()
