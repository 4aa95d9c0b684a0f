"""The top fraction of many scores: our streaming selection against a full sort and numpy's partition, in one process.

    python tests/benchmarks/bench_quantile.py --json out.json [--rows 100_000_000]

The scores (float32) lie in a file. Ours reads them in pieces and holds 65,536 counters; the peers read all of them,
then sort or partition. All three give the same rows: the n highest, exactly. Peak memory is what is allocated (numpy
and all), measured in runs of their own; the file's pages are not in it.
"""

import argparse
import json
import statistics
import tempfile
import time
import tracemalloc
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from tasks.prune._order import Cut, Digit, Taker, find_cut, keys, value_of

PIECE = 1 << 20
KEEP = 0.3


def write(path: Path, rows: int) -> None:
    """Scores as CLIP gives them: about 0.25, many of them alike."""
    rng = np.random.default_rng(0)
    scores = np.lib.format.open_memmap(path, "w+", np.float32, (rows,))
    for start in range(0, rows, PIECE):
        scores[start : start + PIECE] = rng.normal(0.25, 0.06, len(scores[start : start + PIECE]))
    scores.flush()


def pieces(path: Path) -> Iterator[np.ndarray]:
    """Yield the scores, each piece read into memory of its own."""
    scores = np.load(path, mmap_mode="r")
    for start in range(0, len(scores), PIECE):
        yield np.array(scores[start : start + PIECE])


def cut_of(path: Path, wanted: int) -> Cut:
    """Return where the `wanted` highest end."""

    def count(digit: Digit) -> np.ndarray:
        state = digit.init()
        for piece in pieces(path):
            state = digit.count(state, piece)
        return state

    return find_cut("score", False, 32, lambda rows: wanted, count)


def streaming(path: Path, wanted: int) -> tuple[float, int]:
    """The threshold, and the rows by name: two passes that count, one that takes."""
    cut = cut_of(path, wanted)
    taker = Taker(cut)
    taken = sum(int(taker(keys(piece, False)).sum()) for piece in pieces(path))
    return float(value_of(cut.key, np.dtype(np.float32), False)), taken


def counting(path: Path, wanted: int) -> tuple[float, int]:
    """The threshold alone, as the peers find it: two passes that count."""
    return float(value_of(cut_of(path, wanted).key, np.dtype(np.float32), False)), wanted


def sorting(path: Path, wanted: int) -> tuple[float, int]:
    scores = np.load(path)
    scores.sort()
    return float(scores[-wanted]), wanted


def partitioning(path: Path, wanted: int) -> tuple[float, int]:
    scores = np.load(path)
    scores.partition(len(scores) - wanted)
    return float(scores[-wanted]), wanted


def reading(path: Path, wanted: int) -> tuple[float, int]:
    """The limit: read the scores once, and compare them with one number."""
    return 0.0, sum(int((piece >= 0.28).sum()) for piece in pieces(path))


ARMS: dict[str, Callable[[Path, int], tuple[float, int]]] = {
    "streaming, threshold": counting,
    "streaming, threshold and rows": streaming,
    "sort, threshold": sorting,
    "partition, threshold": partitioning,
    "read once": reading,
}


def peak_mb(function: Callable[[Path, int], tuple[float, int]], path: Path, wanted: int) -> float:
    tracemalloc.start()
    function(path, wanted)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return peak / 1e6


def compare(rows: int, repeats: int) -> list[dict[str, Any]]:
    wanted = int(rows * KEEP)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "scores.npy")
        write(path, rows)
        seconds: dict[str, list[float]] = {name: [] for name in ARMS}
        found = {}
        for _ in range(repeats):
            for name, function in ARMS.items():
                start = time.process_time()
                found[name] = function(path, wanted)
                seconds[name].append(time.process_time() - start)
        peaks = {name: peak_mb(function, path, wanted) for name, function in ARMS.items()}
    assert len({found[name] for name in list(ARMS)[:4]}) == 1, found  # the same threshold, and exactly so many rows
    cost = {name: statistics.median(taken) for name, taken in seconds.items()}
    ours, limit = cost["streaming, threshold"], cost["read once"]
    return [
        {
            "name": f"top {KEEP:.0%} of {rows:,} scores, beside {peer.split(',')[0]}",
            "unit": "CPU s",
            "ours": round(ours, 3),
            "peer": round(cost[peer], 3),
            "ratio": round(cost[peer] / ours, 2),
            "limit": round(limit, 3),
            "ours_with_rows": round(cost["streaming, threshold and rows"], 3),
            "ours_peak_mb": round(peaks["streaming, threshold and rows"], 1),
            "peer_peak_mb": round(peaks[peer], 1),
        }
        for peer in ("sort, threshold", "partition, threshold")
    ]


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--json", type=Path)
    parser.add_argument("--rows", type=int, default=100_000_000)
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args()
    results = compare(options.rows, options.repeats)
    print(json.dumps(results, indent=1))
    if options.json:
        options.json.write_text(json.dumps(results, indent=1))


if __name__ == "__main__":
    main()
