"""Estimates from earlier runs: time grows with the work of a stage, and what was never measured is unknown."""

from collections.abc import Mapping
from typing import Any

import pytest

from catalog.dataset import Catalog
from flows.build.build import build_here
from flows.build.plan import Plan, make_plan
from flows.build.spec import BuildSpec
from flows.forecast.history import Estimate, estimate
from tests.flows.conftest import Web

TRAINED = "  - {{use: train_clip, steps: {steps}, batch_size: 4}}\n"


def spec_of(web: Web, steps: int) -> BuildSpec:
    path = web.recipe(TRAINED.format(steps=steps), "prices: {cpu_hour: 0.05}\n")
    return BuildSpec.read(path, catalog=web.catalog, executor="inline")


def plan_of(spec: BuildSpec) -> Plan:
    return make_plan(spec.checked, spec.dataset(create=None))


def by_stage(plan: Plan) -> dict[str, Estimate]:
    return {e.stage: e for e in estimate(plan)}


def runs_of(web: Web) -> dict[str, Mapping[str, Any]]:
    return {run["stage"]: run for run in Catalog(web.catalog).dataset("web").runs().to_pylist()}


def test_ten_times_the_steps_take_ten_times_as_long(web: Web) -> None:
    spec = spec_of(web, 3)
    assert by_stage(plan_of(spec))["train_clip"].seconds is None
    build_here(spec)
    run = runs_of(web)["train_clip"]
    assert run["work"] == 8 + 3 * 4 * 3  # 8 rows are decoded; training on a picture is 3 times as much work
    assert by_stage(plan_of(spec))["train_clip"].seconds == 0
    plan = plan_of(spec_of(web, 30))
    longer = by_stage(plan)["train_clip"]
    assert longer.seconds == pytest.approx(run["seconds"] * (8 + 30 * 4 * 3) / (8 + 3 * 4 * 3))
    assert longer.rows == 1
    assert longer.cost is not None
    assert by_stage(plan)["download"].seconds == 0


def test_new_rows_are_estimated_at_the_rate_of_the_old_ones(web: Web) -> None:
    spec = BuildSpec.read(web.recipe(), catalog=web.catalog, executor="inline")
    build_here(spec)
    run = runs_of(web)["download"]
    web.add_file("b", web.pictures(range(10, 14)))
    found = by_stage(plan_of(spec))["download"]
    assert (run["work"], found.parts_to_run, found.rows) == (8, 1, 4)
    assert found.seconds == pytest.approx(run["seconds"] / 2)


def test_runs_that_recorded_no_work_count_for_stages_that_grow_with_rows(web: Web) -> None:
    """Runs of older releases: their rows are known, and what a training took for a number of steps is not."""
    spec = spec_of(web, 3)
    dataset = Catalog(web.catalog, create=True).dataset("web")
    for stage, use, rows in (("download", "download", 8), ("train_clip", "train_clip", 1)):
        facts = {"run_id": "old", "stage": stage, "use": use, "seconds": 4.0, "rows": rows, "bytes": 80}
        dataset.record_run(facts | {"status": "completed", "parts_made": 1})
    found = by_stage(plan_of(spec))
    assert found["download"].seconds == pytest.approx(4.0)
    assert (found["train_clip"].seconds, found["train_clip"].cost) == (None, None)
