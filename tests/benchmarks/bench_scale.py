"""Curation of millions of embeddings on this machine: cluster, assign, deduplicate, prune; time and memory by stage.

    python tests/benchmarks/bench_scale.py [--rows 1000000 4000000 10000000] [--json out.json]

The embeddings are made by a stage of the benchmark's own and written as a real table (float16, 512 numbers a row): a
mixture of concepts with a long tail, in which some rows are near-copies of others. Then the product's own stages run on
the spine, in one process on all cores, each size in a process of its own.

Limits beside: the machine's GEMM peak (a large float32 product by torch), and reading the embeddings once.
Memory is sampled every 50 ms: anonymous memory, which must fit, and all that was resident, with mapped files that the
system may drop at any time.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar, Final

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from catalog.dataset import Dataset
from catalog.schema import SAMPLE_BITS, SAMPLE_ID, vector
from flows.build.build import run_stage
from flows.build.context import BuildContext
from flows.build.engine import InlineEngine
from flows.build.plan import NUMBERS, make_plan
from tasks.cluster import Cluster
from tasks.deduplicate import Deduplicate
from tasks.prune import Density
from tasks.stage import Batches, Columns, MapStage, Resources, Stage, Step, Tables
from tests.stages import dataset_in, recipe_of

DIM = 512
PART_ROWS = 100_000
CONCEPTS = 2_000
COPIES = 0.1
"""Share of rows that are near-copies of the row before them (cosine about 0.98)."""
PAIRED: Final = COPIES * (1 - COPIES)
"""Share of rows whose original is still there: the row before was not made a copy itself."""
MEMORY_GB = 6.0
RATIO = 11.0


class Planted(MapStage):
    """Writes embeddings drawn from a mixture: 2,000 concepts of unequal size, and near-copies."""

    use: str = "planted"
    table: ClassVar[str] = "embeddings"

    def inputs(self, available: Tables) -> Columns:
        return {"source": ("url",)}

    def output(self, available: Tables) -> pa.Schema:
        return pa.schema([SAMPLE_ID, vector("clip", DIM, "planted")])

    def open(self, device: str, sides: Mapping[str, pa.Table]) -> Step:
        concepts = np.random.default_rng(0).standard_normal((CONCEPTS, DIM), np.float32)
        concepts /= np.linalg.norm(concepts, axis=1, keepdims=True)

        def step(batches: Iterator[pa.Table]) -> Batches:
            for batch in batches:
                ids = batch.column("sample_id").to_numpy()
                rng = np.random.default_rng([int(ids[0]) >> SAMPLE_BITS, int(ids[0]) & ((1 << SAMPLE_BITS) - 1)])
                values = pa.array(draw(rng, concepts, len(ids)).ravel())
                yield pa.table(
                    [pa.array(ids), pa.FixedSizeListArray.from_arrays(values, DIM)], names=["sample_id", "clip"]
                )

        return step


def draw(rng: np.random.Generator, concepts: np.ndarray, count: int) -> np.ndarray:
    """Return unit rows, float16 (count, DIM). Cosine to their concept: about 0.7, as CLIP's clusters have it."""
    concept = (CONCEPTS * rng.random(count) ** 2).astype(np.int64)  # the density falls as 1 / sqrt(rank)
    rows = concepts[concept] + rng.standard_normal((count, DIM), np.float32) * (1.0 / np.sqrt(DIM))
    copies = np.flatnonzero(rng.random(count) < COPIES)
    copies = copies[copies > 0]
    rows[copies] = rows[copies - 1] + rng.standard_normal((len(copies), DIM), np.float32) * (0.28 / np.sqrt(DIM))
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    return rows.astype(np.float16)


def stages() -> list[Stage]:
    """Return what is measured, all cores each."""
    cores = Resources(cpus=os.cpu_count() or 1)
    return [
        Planted(name="planted", resources=Resources(cpus=os.cpu_count() or 1, batch_rows=8192)),
        *Cluster(k=1000, resources=cores).expand(),
        Deduplicate(exact=False, semantic={"epsilon": 0.05}, resources=cores),
        Density(use="prune", method="density", keep=0.3, resources=cores),
    ]


class Memory(threading.Thread):
    """Samples this process's memory, in kB: anonymous, and all that is resident."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.anonymous = self.resident = 0
        self.stop = threading.Event()

    def run(self) -> None:
        while not self.stop.wait(0.05):
            words = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
            self.anonymous = max(self.anonymous, int(words["RssAnon"].split()[0]))
            self.resident = max(self.resident, int(words["VmRSS"].split()[0]))


@contextmanager
def measured(into: dict[str, Any], name: str) -> Iterator[None]:
    """Note wall seconds, CPU seconds and peak memory of a block."""
    memory = Memory()
    memory.start()
    wall, cpu = time.perf_counter(), time.process_time()
    try:
        yield
    finally:
        into[name] = {"s": round(time.perf_counter() - wall, 2), "cpu_s": round(time.process_time() - cpu, 2)}
        memory.stop.set()
        memory.join()
        into[name] |= {
            "peak_gb": round(memory.anonymous / 1e6, 3),
            "resident_gb": round(memory.resident / 1e6, 3),
        }


def one_size(rows: int, folder: Path) -> dict[str, Any]:
    """Build one size, stage by stage."""
    source = folder / "urls"
    source.mkdir()
    urls = pa.array([f"http://h/{i}" for i in range(PART_ROWS)])
    for part in range(rows // PART_ROWS):
        named = pa.array([part] * PART_ROWS, pa.int32())
        pq.write_table(pa.table({"url": urls, "part": named}), source / f"{part:05d}.parquet")
    dataset = dataset_in(folder / "catalog")
    recipe = recipe_of(source, *stages(), rows_per_part=PART_ROWS)
    plan = make_plan(recipe, dataset)
    dataset.set_state(NUMBERS, plan.numbers)
    found: dict[str, Any] = {"rows": rows}
    with InlineEngine() as engine:
        for planned in plan.stages[:-1]:  # without the published manifest: there are no images
            with measured(found, planned.stage.name):
                run_stage(plan, planned, engine, BuildContext(run_id="run"))
            print(rows, planned.stage.name, found[planned.stage.name], file=sys.stderr, flush=True)
    found |= limits(dataset)
    found |= outcome(dataset, rows)
    products_s = rows * 1000 * DIM * 2 / 1e9 / found["gemm_peak_gflops"]
    found["assign_share_of_gemm_peak"] = round(products_s / found["cluster"]["s"], 3)
    timed = [found[name] for name in ("cluster-centroids", "cluster", "deduplicate", "prune")]
    found["total_s"] = round(sum(t["s"] for t in timed), 1)
    found["peak_gb"] = max(t["peak_gb"] for t in timed)
    return found


def limits(dataset: Dataset) -> dict[str, float]:
    """Return seconds to read all embeddings with plain pyarrow, and the peak of a float32 product."""
    import torch

    began = time.perf_counter()
    for path in sorted((Path(dataset.storage.uri) / "embeddings").glob("*.parquet")):
        pq.read_table(path, columns=["clip"], memory_map=True)
    read_s = time.perf_counter() - began
    torch.set_num_threads(os.cpu_count() or 1)
    a = torch.rand(4096, 4096)
    best = min(_timed(lambda: a @ a) for _ in range(8))
    return {"read_s": round(read_s, 2), "gemm_peak_gflops": round(2 * 4096**3 / best / 1e9, 1)}


def _timed(function: Any) -> float:
    began = time.perf_counter()
    function()
    return time.perf_counter() - began


def outcome(dataset: Dataset, rows: int) -> dict[str, Any]:
    """Return what the decisions say: rows that were copies, rows kept, whether the total is exact."""
    import duckdb

    files = f"{dataset.storage.uri}/decisions/*.parquet"
    query = f"select stage, count(*) filter (where keep), count(*) from '{files}' group by stage"
    counts = {stage: (kept, seen) for stage, kept, seen in duckdb.default_connection().sql(query).fetchall()}
    kept, seen = counts["prune"]
    deduplicated = counts["deduplicate"]
    return {
        "copies_found_share_of_planted": round((deduplicated[1] - deduplicated[0]) / (rows * PAIRED), 4),
        "pruned_to": kept,
        "pruned_of": seen,
    }


def main() -> None:
    """Measure each size in a process of its own; print, and write the results."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, nargs="+", default=[1_000_000, 4_000_000, 10_000_000])
    parser.add_argument("--folder", type=Path, help="where the dataset is built (10 million rows need 25 GB)")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--one", type=int, help=argparse.SUPPRESS)
    words = parser.parse_args()
    if words.one:
        print(json.dumps(one_size(words.one, words.folder)))
        return
    found: list[dict[str, Any]] = []
    for rows in words.rows:
        with tempfile.TemporaryDirectory(dir=words.folder) as folder:
            command = [sys.executable, __file__, "--one", str(rows), "--folder", folder]
            done = subprocess.run(command, stdout=subprocess.PIPE, check=True)
            found.append(json.loads(done.stdout))
    result = {"name": "scale", "sizes": found, "goal_memory_gb": MEMORY_GB, "goal_ratio": RATIO}
    if len(found) > 1:
        result["ratio"] = round(found[-1]["total_s"] / found[0]["total_s"], 2)
    print(json.dumps(result, indent=1))
    if words.json:
        words.json.write_text(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
