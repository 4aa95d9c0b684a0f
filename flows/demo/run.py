"""The `demo` command: plant a small web, serve it, build a dataset from it, and compare the result with the truth."""

import json
import os
import sys
import time
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from catalog.database import sql
from catalog.dataset import DEFAULT_CATALOG, Catalog
from catalog.version import Version
from flows.build.build import up_to_date
from flows.build.context import BuildContext
from flows.build.progress import RichDisplay
from flows.build.report import timings
from flows.build.spec import BuildSpec
from flows.demo.corpus import check_rows, plant
from flows.demo.scoreboard import Check, render, score
from flows.demo.server import serve
from flows.recipe.shipped import SHIPPED
from flows.schedule.local_run import build_under_prefect
from flows.schedule.prefect_server import state_folder

RECIPE = SHIPPED / "demo.yaml"
KEEP = 0.5


def run(catalog: str | None, rows: int, executor: str, as_json: bool, recipe: Path = RECIPE) -> int:
    """Run the demo by a recipe; return the exit code: 0 if every check passed."""
    check_rows(rows)
    began_s = time.monotonic()
    show = RichDisplay()
    uri = catalog or DEFAULT_CATALOG
    opened = Catalog(uri, create=True)
    folder = opened.storage.local("_demo") or state_folder() / "demo"
    folder.mkdir(parents=True, exist_ok=True)
    with serve(folder) as base_url:
        show.message(f"planting {rows:,} pictures and every hazard of a crawl, served at {base_url}")
        plan = plant(folder, rows, base_url=base_url)
        os.environ |= {"ESPALIER_DEMO_URLS": str(plan.urls), "ESPALIER_DEMO_HOST": base_url.removeprefix("http://")}
        spec = BuildSpec.read(recipe, catalog=uri, executor=executor)
        outcome = up_to_date(spec)
        if outcome is None:
            outcome = build_under_prefect(spec, BuildContext(show))
    checks = check(opened, outcome.version, pq.read_table(plan.truth))
    costs = timings(opened.dataset(outcome.version.dataset), outcome.version)
    if as_json:
        print(json.dumps([vars(c) for c in checks], indent=1, default=str))
    else:
        _tell(show, checks, costs, outcome.report, uri, time.monotonic() - began_s)
    return 0 if all(c.passed for c in checks) else 1


def check(catalog: Catalog, version: Version, truth: pa.Table) -> list[Check]:
    """Return the checks of a version of the demo's dataset against the planted truth."""

    def read(table: str, columns: str = "*") -> pa.Table:
        return sql(catalog, f"select {columns} from {version.dataset}.{table}", {version.dataset: version.number})

    return score(
        truth,
        source=read("source", "sample_id, url, caption"),
        images=read("images", "sample_id, status, reason"),
        decisions=read("decisions"),
        clusters=read("clusters", "sample_id, cluster"),
        embeddings=read("embeddings", "sample_id, clip_score"),
        samples=read("samples", "sample_id"),
        keep=KEEP,
    )


def _tell(
    show: RichDisplay, checks: list[Check], costs: list[dict[str, Any]], report: str | None, uri: str, seconds: float
) -> None:
    from rich.console import Console

    Console(width=None if sys.stdout.isatty() else 110).print(render(checks, costs))
    passed = sum(c.passed for c in checks)
    where = "" if uri == DEFAULT_CATALOG else f" --catalog {uri}"
    print(f"\n{passed} of {len(checks)} checks passed in {seconds:.0f} s. Look at the report: {report}")
    print("Then try:")
    print(f'  .venv/bin/espalier sql{where} "select reason, count(*) from demo.images group by 1 order by 2 desc"')
    print(f"  .venv/bin/espalier errors demo{where}")
    print(f"  .venv/bin/espalier show demo{where}")
