"""What orchestration costs: an empty stage over many parts on Ray, and a build in which everything is cached.

    python tests/benchmarks/bench_overhead.py [--parts 1000] [--cached 10000] [--json out.json]

The limit beside it is writing the same files without any of it: one Parquet file a part, through to the disk.
"""

import argparse
import json
import tempfile
import time
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from catalog.dataset import Catalog
from catalog.parts import PartWriter
from flows.build.build import publish, recipe_digest, run_stage
from flows.build.context import BuildContext
from flows.build.engine import Engine, InlineEngine
from flows.build.plan import NUMBERS, make_plan
from flows.build.ray_engine import open_engine
from tests.stages import Lengths, dataset_in, recipe_of, write_source


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--parts", type=int, default=1000)
    parser.add_argument("--cached", type=int, default=10_000)
    parser.add_argument("--json", type=Path)
    words = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        found = {
            "name": "overhead",
            "parts": words.parts,
            "ray_ms_per_part": with_engine(Path(folder, "ray"), words.parts, "ray"),
            "inline_ms_per_part": with_engine(Path(folder, "inline"), words.parts, "inline"),
            "limit_ms_per_part": plain(Path(folder, "plain"), min(words.parts, 300)),
            "goal_ms_per_part": 20,
            "cached_parts": words.cached,
            "cached_rebuild_s": cached(Path(folder, "cached"), words.cached),
            "goal_cached_s": 3,
        }
    print(json.dumps(found, indent=1))
    if words.json:
        words.json.write_text(json.dumps(found, indent=1))


def with_engine(folder: Path, parts: int, executor: str) -> float:
    """Return milliseconds a part of a stage that only counts letters, with its actors already started."""
    source = write_source(folder / "urls", files=1, rows=parts)
    plan = make_plan(recipe_of(source, Lengths(), rows_per_part=1), dataset_in(folder / "catalog"))
    with open_engine(executor) as engine:
        run_stage(plan, plan.stages[0], engine, BuildContext(run_id="warm-up"))
        began_s = time.perf_counter()
        run_stage(plan, plan.stages[1], engine, BuildContext(run_id="run"))
        return round(1000 * (time.perf_counter() - began_s) / parts, 2)


def plain(folder: Path, parts: int) -> float:
    """Return milliseconds of writing such a part, and nothing else."""
    dataset = Catalog(folder, create=True).dataset("plain")
    rows = pa.table({"sample_id": pa.array([1], pa.int64()), "length": pa.array([5], pa.int64())})
    began_s = time.perf_counter()
    for i in range(parts):
        with PartWriter(dataset.storage, "t", f"{i:032d}", rows.schema) as writer:
            writer.write(rows)
    return round(1000 * (time.perf_counter() - began_s) / parts, 2)


def cached(folder: Path, parts: int) -> float:
    """Return seconds to find that a dataset of `parts` parts in two stages is up to date."""
    source = write_source(folder / "urls", files=1, rows=parts // 2)
    recipe = recipe_of(source, rows_per_part=1)
    dataset = dataset_in(folder / "catalog")
    plan = make_plan(recipe, dataset)
    dataset.set_state(NUMBERS, plan.numbers)
    engine: Engine = InlineEngine()
    _write_quickly(plan.stages[0].paths(), Path(dataset.storage.uri), plan.stages[0].written, parts // 2)
    for planned in make_plan(recipe, dataset).stages[1:]:
        run_stage(plan, planned, engine, BuildContext(run_id="run"))
    publish(plan, "recipe")
    began_s = time.perf_counter()
    again = make_plan(recipe, dataset)
    assert again.is_cached
    assert dataset.version().recipe_sha256 == recipe_digest(again)
    return round(time.perf_counter() - began_s, 2)


def _write_quickly(paths: list[str], root: Path, schema: pa.Schema, parts: int) -> None:
    """Write the source's parts without going through to the disk: they are not what is measured."""
    (root / "source").mkdir(parents=True, exist_ok=True)
    for number, path in zip(range(parts), paths, strict=True):
        row = {name: [None] for name in schema.names} | {"sample_id": [number << 24]}
        pq.write_table(pa.table(row, schema=schema), root / path)


if __name__ == "__main__":
    main()
