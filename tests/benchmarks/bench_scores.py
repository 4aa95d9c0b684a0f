"""All heads on stored 768-d float16 embeddings, against reading the files alone, and against one head after the other.

    python tests/benchmarks/bench_scores.py [--rows 1000000] [--json out.json]
    python tests/benchmarks/bench_scores.py --stage --rows 10000000 --folder /where/15/GB/are/free

Heads: aesthetic V1 and V2, NSFW L/14, violence, and 100 zero-shot labels; weights are random, as their values change no
time. The embeddings are the product's own parts (zstd, no dictionary). For every part four arms take turns, each with
the whole part: `limit` streams it with plain pyarrow, which costs less than reading it whole; `read` is our own reader
alone; `ours` reads it as a stage does and computes every column; `peer` reads it and runs each head by itself, layered
and in torch, as the published code does (V2 unfolded, rows scaled for every head, batches of 1,024). The figures are
rows a second of CPU time, medians over parts, by default of one thread, as the machine may be busy. Random vectors do
not compress; real ones do by about 8 %.

`--stage` measures the real stage on two cores, as the cluster runs it: two processes with one actor's work each, which
read parts and write the parts of `scores`. `limit` is the same two processes reading the same files with plain pyarrow.
Both arms take turns on every ten parts, which were read before; figures are rows a second of wall time, and of CPU.
"""

import argparse
import json
import multiprocessing
import os
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from torch import nn

sys.path.insert(0, str(Path(__file__).parents[2]))

from catalog.inputs import Inputs, as_matrix
from catalog.parts import PartWriter
from catalog.pieces import Piece, Pieces
from catalog.schema import SAMPLE_BITS, SAMPLE_ID, vector
from catalog.storage import Storage
from flows.build.plan import PlannedPart
from flows.build.worker import Job, PartMaker, Work
from tasks.score import Score
from tasks.score.prompts import SCHEMA
from tasks.stage import MapStage, Step
from tests.tasks.score.embeddings import linear_layers, saved

DIM = 768
PART_ROWS = 100_000
LABELS = 100
V2 = (DIM, 1024, 128, 64, 16, 1)
NSFW = (DIM, 64, 512, 256, 1)
EMBEDDINGS = pa.schema([SAMPLE_ID, vector("clip", DIM, "")])
WORKERS = 2
TURN_PARTS = 10

Net = Callable[[Any], Any]


def write_part(storage: Storage, number: int, rows: int) -> Piece:
    """Write unit vectors as one part of a table; the same 20,000 over and over, rotated: drawing takes minutes."""
    pool = _pool()
    with PartWriter(storage, "embeddings", f"part{number}", EMBEDDINGS, number) as writer:
        for offset in range(0, rows, len(pool)):
            rolled = np.roll(pool, number + offset, axis=1)[: rows - offset]
            ids = pa.array((number << SAMPLE_BITS) + offset + np.arange(len(rolled)), pa.int64())
            column = pa.FixedSizeListArray.from_arrays(pa.array(rolled.ravel()), DIM)
            writer.write(pa.table([ids, column], schema=EMBEDDINGS))
    return Piece(writer.path, number)


@cache
def _pool() -> np.ndarray:
    pool = np.random.default_rng(0).normal(size=(20_000, DIM)).astype(np.float32)
    return (pool / np.linalg.norm(pool, axis=1, keepdims=True)).astype(np.float16)


def part_sizes(rows: int) -> list[tuple[int, int]]:
    """Return (number, rows) of every part."""
    return [(number, min(PART_ROWS, rows - start)) for number, start in enumerate(range(0, rows, PART_ROWS))]


def make_heads(folder: Path, linear_only: bool) -> tuple[MapStage, dict[str, pa.Table], list[Net]]:
    """Return (our stage, its sides, the peer's nets), with the same weights."""
    v1 = linear_layers((DIM, 1), [""])
    v2 = linear_layers(V2, [f"layers.{n}." for n in (0, 2, 4, 6, 7)])
    nsfw = linear_layers(NSFW, [f"linear_{n}." for n in (1, 2, 3, 4)])
    norm = {"norm.mean": torch.zeros(DIM), "norm.variance": torch.full((DIM,), 1 / DIM)}
    prompts = torch.randn(2, DIM)
    labels = nn.functional.normalize(torch.randn(LABELS, DIM))
    scorers: list[dict[str, Any]] = [
        {"use": "aesthetic_v1", "weights": saved(v1, folder / "v1.pt")},
        {"use": "aesthetic_v2", "weights": saved(v2, folder / "v2.pt")},
        {"use": "violence", "weights": saved({"prompts": prompts}, folder / "violence.pt"), "logit_scale": 1},
        {"use": "zero_shot", "labels": [str(i) for i in range(LABELS)]},
    ]
    peers: list[Net] = [
        partial(nn.functional.linear, weight=v1["weight"], bias=v1["bias"]),
        _layered(v2),
        lambda x: (x @ prompts.T).softmax(1)[:, 1],
        lambda x: (100 * x @ labels.T).softmax(1).max(1),
    ]
    if not linear_only:
        scorers.append({"use": "nsfw", "weights": saved(nsfw | norm, folder / "nsfw.pt")})
        batch_norm, net = nn.BatchNorm1d(DIM, eps=0).eval(), _layered(nsfw, relu=True)
        batch_norm.running_var = norm["norm.variance"]
        peers.append(lambda x: net(batch_norm(x)).sigmoid())
    stage = Score.model_validate({"scorers": scorers}).expand()[-1]
    assert isinstance(stage, MapStage)
    rows = [["zero_shot"] * LABELS, [str(i) for i in range(LABELS)], pa.array(list(labels.numpy()), SCHEMA.types[2])]
    return stage, {"prompts": pa.table(rows, schema=SCHEMA)}, peers


def _layered(state: dict[str, Any], relu: bool = False) -> Net:
    modules: list[nn.Module] = []
    for key in [key for key in state if key.endswith("weight")]:
        after, before = state[key].shape
        layer = nn.Linear(before, after)
        layer.load_state_dict({"weight": state[key], "bias": state[key.replace("weight", "bias")]})
        modules += [layer, nn.ReLU()] if relu else [layer]
    return nn.Sequential(*(modules[:-1] if relu else modules)).eval()


def run_ours(step: Step, storage: Storage, piece: Piece) -> int:
    inputs = Inputs({"embeddings": Pieces(EMBEDDINGS, (piece,))}, (), storage)
    return sum(rows.num_rows for rows in step(inputs.batches({"embeddings": ("clip",)}, 1024)))


def run_peer(nets: list[Net], path: Path) -> int:
    matrix = as_matrix(pq.read_table(path, columns=["clip"])["clip"])
    with torch.inference_mode():
        for net in nets:
            for start in range(0, len(matrix), 1024):
                x = torch.from_numpy(matrix[start : start + 1024].copy()).float()
                net(nn.functional.normalize(x))
    return len(matrix)


def run_limit(path: Path) -> int:
    with pq.ParquetFile(path, memory_map=True) as file:
        batches = file.iter_batches(8192, columns=["sample_id", "clip"], use_threads=False)
        return sum(batch.num_rows for batch in batches)


def run_read(storage: Storage, piece: Piece) -> int:
    inputs = Inputs({"embeddings": Pieces(EMBEDDINGS, (piece,))}, (), storage)
    return sum(rows.num_rows for rows in inputs.batches({"embeddings": ("clip",)}, 1024))


@contextmanager
def peak_memory() -> Iterator[dict[str, float]]:
    """Yield a dict that has `gb` afterwards: the most memory, without mapped files, above what there was before."""
    process, found, stop = psutil.Process(), {"gb": 0.0}, threading.Event()

    def anonymous() -> int:
        info = process.memory_info()
        return int(info.rss - info.shared)

    before = anonymous()

    def watch() -> None:
        while not stop.wait(0.005):
            found["gb"] = max(found["gb"], (anonymous() - before) / 1e9)

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        yield found
    finally:
        stop.set()
        watcher.join()


def compare(storage: Storage, folder: Path, pieces: list[Piece], linear_only: bool) -> dict[str, Any]:
    stage, sides, nets = make_heads(folder, linear_only)
    step = stage.open("cpu", sides)
    arms: list[tuple[str, Callable[[Piece], int]]] = [
        ("limit", lambda piece: run_limit(Path(str(storage.local(piece.path))))),
        ("read", lambda piece: run_read(storage, piece)),
        ("ours", lambda piece: run_ours(step, storage, piece)),
        ("peer", lambda piece: run_peer(nets, Path(str(storage.local(piece.path))))),
    ]
    with peak_memory() as memory:
        run_ours(step, storage, pieces[0])
    seconds: dict[str, list[float]] = {name: [] for name, _ in arms}
    rows = 0
    for turn, piece in enumerate(pieces):
        for name, arm in arms[turn % 4 :] + arms[: turn % 4]:
            start = time.process_time()
            count = arm(piece)
            seconds[name].append((time.process_time() - start) / count)
        rows += count
    rate = {name: 1 / statistics.median(times) for name, times in seconds.items()}
    return {
        "name": f"scores: {_what(linear_only)} on {rows:,} x {DIM} float16",
        "unit": "rows a CPU second",
        "ours": round(rate["ours"]),
        "peer": round(rate["peer"]),
        "ratio": round(rate["ours"] / rate["peer"], 2),
        "limit": round(rate["limit"]),  # reading the files alone, with pyarrow
        "of_limit": round(rate["ours"] / rate["limit"], 3),
        "read": round(rate["read"]),  # with our reader
        "peak_gb": round(memory["gb"], 2),  # one part is 0.15 GB
        "load": os.getloadavg()[0],
    }


def _what(linear_only: bool) -> str:
    return "linear heads (V1, V2, violence, 100 labels)" if linear_only else "all heads (with NSFW L/14)"


class Worker:
    """What one of the processes of `--stage` holds: the maker of parts of both stages, as an actor does."""

    def __init__(self, storage: Storage, folder: Path) -> None:
        self._storage = storage
        self._makers: dict[bool, PartMaker] = {}
        folder.mkdir()
        for linear_only in (True, False):
            stage, sides, _ = make_heads(folder, linear_only)
            columns: dict[str, tuple[str, ...]] = {"embeddings": ("clip",)}
            tables = {"embeddings": Pieces(EMBEDDINGS, ())} | {name: Pieces.of(side) for name, side in sides.items()}
            schema = stage.output({"embeddings": EMBEDDINGS})
            self._makers[linear_only] = PartMaker(Work(stage, schema, columns, tables, (), storage, "cpu", 0))

    def limit(self, piece: Piece) -> int:
        return run_limit(Path(str(self._storage.local(piece.path))))

    def linear(self, piece: Piece) -> int:
        return self._make(piece, linear_only=True)

    def all_heads(self, piece: Piece) -> int:
        return self._make(piece, linear_only=False)

    def _make(self, piece: Piece, linear_only: bool) -> int:
        part = PlannedPart(f"{'linear' if linear_only else 'all'}{piece.number}", piece.number)
        return self._makers[linear_only].make(Job(part, {"embeddings": (piece,)}, ())).rows


_worker: list[Worker] = []
"""The worker of a process of the pool."""


def _start(storage: Storage, folder: Path) -> None:
    _worker.append(Worker(storage, folder / f"weights{os.getpid()}"))


def _timed(arm: str, piece: Piece) -> tuple[int, float]:
    """Return (rows, CPU seconds)."""
    start = time.process_time()
    return getattr(_worker[0], arm)(piece), time.process_time() - start


def compare_stage(storage: Storage, folder: Path, rows: int) -> list[dict[str, Any]]:
    arms = ["limit", "linear", "all_heads"]
    wall, cpu = dict.fromkeys(arms, 0.0), dict.fromkeys(arms, 0.0)
    with multiprocessing.get_context("spawn").Pool(WORKERS, _start, (storage, folder)) as pool:
        pieces = pool.starmap(partial(write_part, storage), part_sizes(rows), chunksize=1)
        pool.starmap(_timed, [(arm, piece) for arm in arms for piece in pieces[:TURN_PARTS]], chunksize=1)  # to warm up
        for turn, start in enumerate(range(0, len(pieces), TURN_PARTS)):
            mine = pieces[start : start + TURN_PARTS]
            for piece in mine:  # from the disk into the page cache, for all arms alike
                Path(str(storage.local(piece.path))).read_bytes()
            for arm in arms[turn % 3 :] + arms[: turn % 3]:
                began = time.perf_counter()
                done = pool.starmap(_timed, [(arm, piece) for piece in mine], chunksize=1)
                wall[arm] += time.perf_counter() - began
                cpu[arm] += sum(seconds for _, seconds in done)
                assert sum(count for count, _ in done) == min(rows - start * PART_ROWS, len(mine) * PART_ROWS)
    return [
        {
            "name": f"scores as a stage, {WORKERS} processes: {_what(arm == 'linear')} on {rows:,} x {DIM} float16",
            "unit": "rows a second of wall time",
            "ours": round(rows / wall[arm]),
            "limit": round(rows / wall["limit"]),  # the same processes, reading the files with pyarrow
            "of_limit": round(wall["limit"] / wall[arm], 3),
            "of_limit_cpu": round(cpu["limit"] / cpu[arm], 3),
            "cpu_us_a_row": round(cpu[arm] / rows * 1e6, 2),
            "load": os.getloadavg()[0],
        }
        for arm in arms[1:]
    ]


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--json", type=Path)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--folder", type=Path, help="where the embeddings are written: 1.5 GB a million rows")
    parser.add_argument("--stage", action="store_true", help="the real stage on two cores, by wall time")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    with tempfile.TemporaryDirectory(dir=options.folder) as name:
        storage = Storage.open(f"{name}/catalog", create=True)
        if options.stage:
            results = compare_stage(storage, Path(name), options.rows)
        else:
            pieces = [write_part(storage, *size) for size in part_sizes(options.rows)]
            results = [compare(storage, Path(name), pieces, linear_only) for linear_only in (True, False)]
    print(json.dumps(results, indent=1))
    if options.json:
        options.json.write_text(json.dumps(results, indent=1))


if __name__ == "__main__":
    main()
