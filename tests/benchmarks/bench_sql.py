"""SQL over a catalog's views against DuckDB on the same plain Parquet files, alternated; and what opening costs.

python tests/benchmarks/bench_sql.py --json out.json
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

import duckdb
import numpy as np
import pyarrow as pa

from catalog import database
from catalog.dataset import Catalog, Dataset
from catalog.parts import PartWriter
from catalog.schema import DECISIONS, IMAGES, SOURCE
from catalog.version import TableState, VersionFacts

QUERIES = {
    "filter and group": "select reason, count(*) from {decisions} where not keep group by 1 order by 1",
    "join three tables": (
        "select d.stage, avg(i.width), max(length(s.url)) from {source} s join {images} i using (sample_id) "
        "join {decisions} d using (sample_id) where i.width > 300 and d.keep group by 1"
    ),
    "one sample": "select * from {images} where sample_id = 16777217",
}


def columns(table: str, ids: np.ndarray, rng: np.random.Generator) -> dict[str, Any]:
    n = len(ids)
    if table == "source":
        return {"url": [f"http://images.example.org/{i}.jpg" for i in ids]}
    if table == "images":
        return {"status": ["success"] * n, "width": rng.integers(64, 1024, n), "blur": rng.random(n, np.float32)}
    keep = rng.random(n) < 0.7
    return {"stage": ["filter"] * n, "keep": keep, "reason": [None if k else "small" for k in keep]}


def publish(dataset: Dataset, files: int, rows: int) -> None:
    """Publish three tables of `files` parts of `rows` rows."""
    rng = np.random.default_rng(0)
    tables = {}
    for table, schema in (("source", SOURCE), ("images", IMAGES), ("decisions", DECISIONS)):
        parts = []
        for number in range(files):
            ids = (number << 24) + np.arange(rows)
            given = columns(table, ids, rng)
            arrays = [
                ids
                if f.name == "sample_id"
                else pa.array(given[f.name], f.type)
                if f.name in given
                else pa.nulls(rows, f.type)
                for f in schema
            ]
            with PartWriter(dataset.storage, table, f"{number:032x}", schema) as writer:
                writer.write(pa.table(arrays, schema=schema))
            parts.append(writer.part())
        tables[table] = TableState(schema, parts)
    dataset.publish(tables, VersionFacts("", str(files), "bench"))


def plain(dataset: Dataset, table: str) -> str:
    """Return the table as DuckDB's users write it."""
    folder = dataset.storage.local(table)
    assert folder is not None
    files = ", ".join(f"'{path}'" for path in sorted(folder.glob("*.parquet")))
    return f"read_parquet([{files}])"


def read(peer: duckdb.DuckDBPyConnection, query: str) -> pa.Table:
    return peer.sql(query).to_arrow_table()


def timed(function: Callable[[], Any]) -> tuple[float, float]:
    """Return (CPU seconds of all threads, wall seconds)."""
    cpu, wall = time.process_time(), time.perf_counter()
    function()
    return time.process_time() - cpu, time.perf_counter() - wall


def read_anew(query: str) -> None:
    """Run a query on a new connection."""
    with duckdb.connect() as connection:
        connection.sql(query).to_arrow_table()


def compare(catalog: Catalog, files: int, rows: int, repeats: int) -> list[dict[str, Any]]:
    dataset = catalog.dataset(f"bench_{files}")
    publish(dataset, files, rows)
    peer = duckdb.connect()
    names = {table: plain(dataset, table) for table in ("source", "images", "decisions")}
    results = []
    with database.connect(catalog, datasets=[dataset.name]) as ours:
        for title, query in QUERIES.items():
            mine, theirs = query.format(**{t: f"{dataset.name}.{t}" for t in names}), query.format(**names)
            assert database.query(ours, mine).to_pylist() == peer.sql(theirs).to_arrow_table().to_pylist()
            runs = [
                (timed(partial(database.query, ours, mine)), timed(partial(read, peer, theirs))) for _ in range(repeats)
            ]
            results.append(summary(f"SQL, {title}, {files} files x {rows} rows", runs))
        runs = [
            (
                timed(lambda: database.connect(catalog, datasets=[dataset.name]).close()),
                timed(lambda: duckdb.connect().close()),
            )
            for _ in range(repeats)
        ]
        results.append(summary(f"SQL, open a dataset of 3 x {files} files (peer: an empty connection)", runs))
    mine, theirs = (QUERIES["one sample"].format(images=name) for name in (f"{dataset.name}.images", names["images"]))
    assert database.sql(catalog, mine).num_rows == 1
    runs = [(timed(partial(database.sql, catalog, mine)), timed(partial(read_anew, theirs))) for _ in range(repeats)]
    results.append(summary(f"SQL, one sample of {files} files, with opening (peer: the same, all files)", runs))
    return results


def summary(name: str, runs: list[tuple[tuple[float, float], tuple[float, float]]]) -> dict[str, Any]:
    cpu = [statistics.median(run[arm][0] for run in runs) for arm in range(2)]
    wall = [statistics.median(run[arm][1] for run in runs) for arm in range(2)]
    return {
        "name": name,
        "unit": "CPU s",
        "ours": round(cpu[0], 4),
        "peer": round(cpu[1], 4),
        "ratio": round(cpu[1] / cpu[0], 2),
        "ours_wall_s": round(wall[0], 4),
        "peer_wall_s": round(wall[1], 4),
        "repeats": len(runs),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--files", type=int, nargs="*", default=[100, 2_000])
    parser.add_argument("--rows", type=int, default=1_000_000, help="rows of a table, over all of its files")
    arguments = parser.parse_args()
    results = []
    with tempfile.TemporaryDirectory() as folder:
        catalog = Catalog(folder)
        for files in arguments.files:
            results += compare(catalog, files, arguments.rows // files, arguments.repeats)
    for result in results:
        print(json.dumps(result))
    if arguments.json:
        arguments.json.write_text(json.dumps(results, indent=1))


if __name__ == "__main__":
    main()
