"""Indexes by kind: build, bytes, recall and a query's time, beside faiss alone, exact search, and autofaiss.

    python tests/benchmarks/bench_search.py --json out.json [--rows 200000] [--kinds flat,ivf,hnsw,ivfpq,opq]
        [--autofaiss PYTHON]

Ours reads float16 vectors from the parts of a dataset, learns lists, adds, keeps exact neighbours of held-out queries
and tunes; faiss alone gets a float32 matrix in memory, the same factory string and the same training rows, and is
asked with the same effort. Recall is measured here, against numpy, with queries that neither has seen. `--autofaiss`
names a Python that has it: it gets the same vectors as a file and the same memory. Last: what it takes to say url and
caption of 1,000 hits, by DuckDB over the source's parts, and row by row out of an Arrow table.
"""

import argparse
import json
import os
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import faiss
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from catalog.database import connect
from catalog.dataset import Catalog, Dataset, TableState, Version, VersionFacts
from catalog.parts import PartFile, PartWriter
from catalog.schema import SAMPLE_ID, SOURCE, vector
from flows.index import Kept, budget_of, update
from flows.search import _described

PART_ROWS = 20_000
GROUPS = 200
PEERED = ("flat", "ivf", "hnsw")
"""Kinds that faiss alone builds too by default: product quantisation takes it many minutes."""

AUTOFAISS = """
import json, sys, time, os, numpy as np
from autofaiss import build_index
folder, memory = sys.argv[1:]
start, cpu = time.perf_counter(), time.process_time()
index, _ = build_index(folder, index_path=folder + "/../knn.index", index_infos_path=folder + "/../knn.json",
    metric_type="ip", max_index_memory_usage=memory, current_memory_available="8GB", verbose=40)
built, cpu = time.perf_counter() - start, time.process_time() - cpu
queries = np.load(folder + "/../queries.npy")
index.search(queries[:5], 10)
times = []
for q in queries:
    start = time.perf_counter(); index.search(q[None], 10); times.append(time.perf_counter() - start)
np.save(folder + "/../found.npy", index.search(queries, 10)[1])
print(json.dumps({"built": built, "cpu": cpu, "ms": 1e3 * float(np.median(times)),
    "bytes": os.path.getsize(folder + "/../knn.index"), "kind": json.load(open(folder + "/../knn.json"))["index_key"]}))
"""


def planted(start: int, rows: int, dim: int) -> np.ndarray:
    """Return float16 unit rows: overlapping groups in 48 of the dimensions, and noise in all, as embeddings are."""
    world = np.random.default_rng(1)
    centres, spread = world.standard_normal((GROUPS, 48)), world.standard_normal((48, dim)).astype(np.float32)
    rng = np.random.default_rng([2, start])
    latent = centres[rng.integers(0, GROUPS, rows)] + rng.standard_normal((rows, 48))
    found = latent.astype(np.float32) @ spread + 2 * rng.standard_normal((rows, dim), dtype=np.float32)
    return (found / np.linalg.norm(found, axis=1, keepdims=True)).astype(np.float16)


def write(catalog: Catalog, rows: int, dim: int) -> Version:
    """Publish a dataset of planted vectors."""
    dataset = catalog.dataset("birds")
    schemas = {"source": SOURCE, "embeddings": pa.schema([SAMPLE_ID, vector("clip", dim, "planted")])}
    parts: dict[str, list[PartFile]] = {name: [] for name in schemas}
    for number, start in enumerate(range(0, rows, PART_ROWS)):
        count = min(PART_ROWS, rows - start)
        ids = pa.array((number << 24) + np.arange(count))
        vectors = pa.FixedSizeListArray.from_arrays(pa.array(planted(start, count, dim).ravel()), dim)
        told = [
            [f"https://example.org/{start + i}/{i}.jpg" for i in range(count)],
            [f"a bird {i}" for i in range(count)],
        ]
        content = {
            "source": pa.table([ids, *told, pa.nulls(count, pa.string())], schema=SOURCE),
            "embeddings": pa.table([ids, vectors], schema=schemas["embeddings"]),
        }
        for name, table in content.items():
            with PartWriter(dataset.storage, name, f"{number:032x}", schemas[name]) as writer:
                writer.write(table)
            parts[name].append(writer.part())
    states = {name: TableState(schemas[name], parts[name]) for name in schemas}
    return dataset.publish(states, VersionFacts("", "bench", "bench"))


def recall(found: np.ndarray, exact: np.ndarray) -> float:
    return float(np.mean([len(set(f) & set(e)) / 10 for f, e in zip(found.tolist(), exact.tolist(), strict=True)]))


def ms_per_query(ask: Callable[[np.ndarray], Any], queries: np.ndarray) -> float:
    """The median of one query alone."""
    taken = []
    for query in queries:
        start = time.perf_counter()
        ask(query[None])
        taken.append(time.perf_counter() - start)
    return round(statistics.median(taken) * 1e3, 3)


def timed(function: Callable[[], Any]) -> tuple[Any, float, float]:
    """Return (result, seconds, CPU seconds)."""
    start, cpu = time.perf_counter(), time.process_time()
    result = function()
    return result, round(time.perf_counter() - start, 2), round(time.process_time() - cpu, 2)


def faiss_alone(made: Kept, rows: np.ndarray) -> Any:
    """Build the same factory by faiss."""
    index = faiss.index_factory(made.choice.dim, made.choice.factory, faiss.METRIC_INNER_PRODUCT)
    step = max(len(rows) // max(made.facts["training"]["rows"], 1), 1)
    index.train(rows[::step])
    index.add(rows)
    effort = made.facts["effort"]
    if effort["name"]:
        faiss.ParameterSpace().set_index_parameter(index, effort["name"], effort["value"])
    return index


def compare(
    dataset: Dataset,
    version: Version,
    kind: str,
    memory_mb: float,
    rows: np.ndarray,
    queries: np.ndarray,
    exact: np.ndarray,
) -> dict[str, Any]:
    made, seconds, cpu = timed(lambda: update(dataset, version, "clip", budget_of(kind, memory_mb, 0.95)))
    index, effort = made.load(mapped=True), made.facts["effort"]["value"]
    places = np.concatenate([(n << 24) + np.arange(PART_ROWS) for n in range(-(-len(rows) // PART_ROWS))])[: len(rows)]
    k = 40 if made.choice.is_lossy else 10
    found = np.searchsorted(places, index.search(queries, k, effort)[1])
    result = {
        "name": f"search {made.choice.factory} {len(rows)}x{rows.shape[1]}",
        "unit": "CPU s to build",
        "ours": cpu,
        "ours_seconds": seconds,
        "ours_bytes_per_vector": round(made.facts["bytes"] / len(rows)),
        "ours_recall": recall(found, exact),  # of a lossy index: among the 40 that are scored anew
        "ours_recall_written": made.facts["recall_at_10_rescored"]["image"]["mean"],
        "ours_ms_per_query": ms_per_query(lambda q: index.search(q, 10, effort), queries),
        "ours_effort": effort,
    }
    if kind in PEERED:
        peer, seconds, cpu = timed(lambda: faiss_alone(made, rows))
        result |= {
            "peer": cpu,
            "peer_seconds": seconds,
            "peer_recall": recall(peer.search(queries, 10)[1], exact),
            "peer_ms_per_query": ms_per_query(lambda q: peer.search(q, 10), queries),
            "ratio": round(cpu / max(result["ours"], 1e-3), 2),
        }
    return result


def metadata(catalog: Catalog, dataset: Dataset, version: Version) -> dict[str, Any]:
    """1,000 hits anywhere: url and caption."""
    parts = dataset.files(version, "source")
    ids = np.concatenate([(n << 24) + np.arange(p.rows) for n, p in enumerate(parts)])
    table = pa.concat_tables([pq.read_table(str(dataset.storage.local(p.path))) for p in parts])
    ours, peer = [], []
    with connect(catalog, None, ["birds"]) as connection:
        for seed in range(7):
            at = np.random.default_rng(seed).choice(len(ids), 1000, replace=False)
            start = time.perf_counter()
            told = _described(connection, dataset, version, ids[at])
            ours.append(time.perf_counter() - start)
            start = time.perf_counter()
            loop = [table.slice(i, 1).to_pylist()[0] for i in at.tolist()]
            peer.append(time.perf_counter() - start)
            assert told[int(ids[at[0]])][0] == loop[0]["url"]
    mine, theirs = (round(statistics.median(taken) * 1e3, 2) for taken in (ours, peer))
    return {
        "name": f"metadata of 1,000 hits, {len(ids)} rows",
        "unit": "ms",
        "ours": mine,
        "peer": theirs,
        "ratio": round(theirs / mine, 2),
        "note": "peer: one slice a hit of a table that is in memory already; ours reads Parquet",
    }


def autofaiss(python: str, folder: Path, memory_mb: float, rows: np.ndarray, exact: np.ndarray) -> dict[str, Any]:
    (folder / "vectors").mkdir()
    np.save(folder / "vectors" / "0.npy", rows)
    command = [python, "-c", AUTOFAISS, str(folder / "vectors"), f"{memory_mb:g}MB"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=os.environ | {"PYTHONPATH": ""})
    if done.returncode:
        return {"name": f"autofaiss, {memory_mb:g} MB", "error": done.stderr.strip().splitlines()[-1][:300]}
    told = json.loads(done.stdout.splitlines()[-1])
    found = np.load(folder / "found.npy")
    return {
        "name": f"autofaiss, {memory_mb:g} MB: {told['kind']}",
        "unit": "CPU s to build",
        "peer": round(told["cpu"], 2),
        "peer_seconds": round(told["built"], 2),
        "peer_bytes_per_vector": round(told["bytes"] / len(rows)),
        "peer_recall": recall(found, exact),
        "peer_ms_per_query": round(told["ms"], 3),
    }


def run(options: argparse.Namespace, folder: Path) -> list[dict[str, Any]]:
    catalog = Catalog(folder / "catalog", create=True)
    version = write(catalog, options.rows, options.dim)
    dataset = catalog.dataset("birds")
    starts = range(0, options.rows, PART_ROWS)
    rows = np.concatenate([planted(s, min(PART_ROWS, options.rows - s), options.dim) for s in starts]).astype(
        np.float32
    )
    queries = planted(1 << 40, options.queries, options.dim).astype(np.float32)
    np.save(folder / "queries.npy", queries)
    exact = np.argpartition(-(queries @ rows.T), 10, axis=1)[:, :10]
    budgets = {"ivfpq": 0.4 * rows.nbytes / 4 / 1e6 + 30, "opq": 0.13 * rows.nbytes / 4 / 1e6 + 10}
    found = []
    for kind in options.kinds.split(","):
        memory_mb = budgets.get(kind, 10 * rows.nbytes / 1e6)
        found.append(compare(dataset, version, kind, memory_mb, rows, queries, exact))
        print(json.dumps(found[-1]), flush=True)
    found.append(metadata(catalog, dataset, version))
    if options.autofaiss:
        for share, name in ((1.5, "big"), (0.2, "small")):
            (folder / name / "x").mkdir(parents=True)
            np.save(folder / name / "queries.npy", queries)
            found.append(autofaiss(options.autofaiss, folder / name, round(rows.nbytes * share / 1e6), rows, exact))
    return found


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--json", type=Path)
    parser.add_argument("--rows", type=int, default=50_000)
    parser.add_argument("--dim", type=int, default=512)
    parser.add_argument("--queries", type=int, default=100)
    parser.add_argument("--kinds", default="flat,ivf,ivfpq")
    parser.add_argument("--autofaiss", help="a Python that has autofaiss")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        results = run(options, Path(folder))
    print(json.dumps(results, indent=1))
    if options.json:
        options.json.write_text(json.dumps(results, indent=1))


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", str(os.cpu_count()))
    main()
