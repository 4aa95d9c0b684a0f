"""Semantic deduplication of one cluster: blocked products against the whole n x n matrix of the published code.

    python tests/benchmarks/bench_semdedup.py --json out.json

Each arm runs in a process of its own, so that its peak memory is its own. Beside them: half of the n x n product, which
the rule would cost if no pair were ruled out first (`tasks/deduplicate/_near.py`).
"""

import argparse
import json
import multiprocessing
import resource
import statistics
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch

from tasks.deduplicate._semantic import judge

EPSILON = 0.05


def cluster(rows: int, dim: int) -> np.ndarray:
    """Rows about one direction; every fifth a near-copy of an earlier one."""
    rng = np.random.default_rng(0)
    data = rng.normal(size=(1, dim)).astype(np.float32) + rng.normal(size=(rows, dim)).astype(np.float32)
    copies = np.arange(5, rows, 5)
    noise = 0.2 * rng.normal(size=(len(copies), dim)).astype(np.float32)
    data[copies] = data[rng.integers(0, copies)] + noise
    return data.astype(np.float16)


def whole(rows: np.ndarray) -> np.ndarray:
    """The rule as published: all similarities, the upper triangle, the largest of each column."""
    unit = torch.nn.functional.normalize(torch.from_numpy(rows).float(), dim=1)
    similarity = unit @ unit.T
    similarity.fill_diagonal_(0)
    return (torch.triu(similarity, diagonal=1).max(dim=0).values <= 1 - EPSILON).numpy()


def half_product(rows: np.ndarray) -> np.ndarray:
    """Half of the multiplications, in blocks, and nothing else."""
    unit = torch.nn.functional.normalize(torch.from_numpy(rows).float(), dim=1)
    for stop in range(1024, len(rows) + 1024, 1024):
        for start in range(0, min(stop, len(rows)), 1024):
            unit[stop - 1024 : stop] @ unit[start : start + 1024].T
    return np.empty(0, bool)


def arm(name: str, rows: int, dim: int) -> dict[str, Any]:
    """Run one arm once, warm: CPU seconds, what its peak memory grew by (MB), rows kept."""
    functions = {"whole": whole, "half product": half_product}
    rules = {"ours": "order", "greedy": "greedy", "components": "components"}
    data = cluster(rows, dim)

    def run(part: np.ndarray) -> np.ndarray:
        return judge(part, rules[name], EPSILON).keep if name in rules else functions[name](part)  # type: ignore[arg-type]

    run(data[:512])
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    start = time.process_time()
    keep = run(data)
    seconds = time.process_time() - start
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    return {"cpu_s": seconds, "mb": grown / 1024, "kept": int(keep.sum())}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--json", type=Path)
    parser.add_argument("--rows", type=int, default=16_000)
    parser.add_argument("--dim", type=int, default=512)
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args()
    names = ("ours", "whole", "half product", "greedy", "components")
    runs: dict[str, list[dict[str, Any]]] = {name: [] for name in names}
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=context, max_tasks_per_child=1) as pool:
        for _ in range(options.repeats):
            for name in names:
                runs[name].append(pool.submit(arm, name, options.rows, options.dim).result())
    cpu = {name: round(statistics.median(run["cpu_s"] for run in runs[name]), 2) for name in names}
    results = [
        {
            "name": f"semantic deduplication of one cluster, {options.rows} x {options.dim}",
            "unit": "CPU s",
            "ours": cpu["ours"],
            "peer": cpu["whole"],
            "ratio": round(cpu["whole"] / cpu["ours"], 2),
            "half_product": cpu["half product"],
            "other_rules": {name: cpu[name] for name in ("greedy", "components")},
            "ours_mb": round(max(run["mb"] for run in runs["ours"])),
            "peer_mb": round(max(run["mb"] for run in runs["whole"])),
            "kept": {name: runs[name][0]["kept"] for name in names if name != "half product"},
        }
    ]
    print(json.dumps(results, indent=1))
    if options.json:
        options.json.write_text(json.dumps(results, indent=1))


if __name__ == "__main__":
    main()
