"""Both engines make the same parts; what fails is reported, and nothing else is lost."""

from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pytest

from catalog.errors import BalanceError, PartError
from catalog.inputs import Inputs
from catalog.parts import PartFile
from flows.build.engine import Engine, InlineEngine
from flows.build.plan import Plan, PlannedPart, PlannedStage, make_plan
from flows.build.ray_engine import RayEngine
from flows.build.worker import jobs_of, work_of
from tasks.stage import Run, Stage
from tests.stages import DropOdd, Lengths, Misbehaving, Reporting, dataset_in, recipe_of, write_source


@pytest.fixture
def ray_engine(ray_started: None) -> Iterator[Engine]:
    with RayEngine.start() as engine:
        yield engine


@pytest.fixture(params=["inline", "ray"])
def engine(request: pytest.FixtureRequest) -> Engine:
    return request.getfixturevalue("ray_engine") if request.param == "ray" else InlineEngine()


def plan_of(tmp_path: Path, *stages: Stage) -> Plan:
    write_source(tmp_path / "urls", files=4)
    return make_plan(recipe_of(tmp_path / "urls", *stages), dataset_in(tmp_path / "catalog"))


def run(engine: Engine, plan: Plan, planned: PlannedStage) -> dict[int | None, PartFile]:
    made: dict[int | None, PartFile] = {}

    def on_part(part: PlannedPart, file: PartFile) -> None:
        made[part.number] = file

    work = work_of(planned, plan.dataset.storage, engine.device(planned.stage.resources), 0)
    if planned.parts[0].number is None:
        on_part(planned.parts[0], engine.run_once(work, planned.parts[0], lambda *_: None))
    else:
        engine.map_parts(work, jobs_of(planned), on_part)
    return made


def test_parts_and_tables(engine: Engine, tmp_path: Path) -> None:
    plan = plan_of(tmp_path, Lengths(), DropOdd())
    assert {n: f.rows for n, f in run(engine, plan, plan.stages[0]).items()} == {0: 5, 1: 5, 2: 5, 3: 5}
    run(engine, plan, plan.stages[1])
    table = run(engine, plan, plan.stages[2])[None]
    # every caption is "caption I J": 11 letters, so all are odd
    assert table.rows == 20
    assert dict(table.notes) == {"total": 220, "squares": [0, 1, 4, 9, 16]}
    assert {f.rows for f in run(engine, plan, plan.stages[3]).values()} == {0}


def test_a_table_stage_shows_its_progress(engine: Engine, tmp_path: Path) -> None:
    plan = plan_of(tmp_path, Reporting())
    run(engine, plan, plan.stages[0])
    planned, shown = plan.stages[1], list[tuple[int, int, str]]()
    work = work_of(planned, plan.dataset.storage, "cpu", 0)
    engine.run_once(work, planned.parts[0], lambda *progress: shown.append(progress))
    assert shown[-1] == (4, 4, "steps")


def test_a_table_stage_that_is_killed_is_run_again_and_shows_its_progress(ray_engine: Engine, tmp_path: Path) -> None:
    plan = plan_of(tmp_path, Reporting(marker=str(tmp_path / "killed")))
    run(ray_engine, plan, plan.stages[0])
    planned, shown = plan.stages[1], list[tuple[int, int, str]]()
    work = work_of(planned, plan.dataset.storage, "cpu", 0)
    file = ray_engine.run_once(work, planned.parts[0], lambda *progress: shown.append(progress))
    assert (tmp_path / "killed").exists()
    assert (file.rows, shown[-1]) == (0, (4, 4, "steps"))


def test_a_failing_part_is_reported_and_the_others_are_made(engine: Engine, tmp_path: Path) -> None:
    plan = plan_of(tmp_path, Misbehaving(fault="raise"))
    run(engine, plan, plan.stages[0])
    with pytest.raises(
        PartError, match=r"1 part failed 3 times .*part 1: RuntimeError: a fault of the stage"
    ) as caught:
        run(engine, plan, plan.stages[1])
    assert "in _spoilt" in caught.value.traceback
    assert len(plan.dataset.finished("lengths")) == 3


@pytest.mark.parametrize("fault", ["lose", "double", "swap"])
def test_rows_must_balance(engine: Engine, tmp_path: Path, fault: str) -> None:
    plan = plan_of(tmp_path, Misbehaving.model_validate({"fault": fault}))
    run(engine, plan, plan.stages[0])
    with pytest.raises(PartError, match=r"part 1: BalanceError: part 1 of 'misbehaving'"):
        run(engine, plan, plan.stages[1])


def test_a_killed_actor_costs_nothing_but_its_part(ray_engine: Engine, tmp_path: Path) -> None:
    plan = plan_of(tmp_path, Misbehaving(fault="die_once", marker=str(tmp_path / "died")))
    run(ray_engine, plan, plan.stages[0])
    assert {f.rows for f in run(ray_engine, plan, plan.stages[1]).values()} == {5}
    assert (tmp_path / "died").exists()


def test_a_table_stage_that_loses_rows(tmp_path: Path) -> None:
    class Losing(DropOdd):
        def run(self, inputs: Inputs, run: Run) -> Iterator[pa.Table]:
            for piece in super().run(inputs, run):
                yield piece.slice(1)

    plan = plan_of(tmp_path, Lengths(), Losing())
    for planned in plan.stages[:2]:
        run(InlineEngine(), plan, planned)
    with pytest.raises(BalanceError, match="20 rows went in and 19 came out: 1 lost"):
        run(InlineEngine(), plan, plan.stages[2])
    assert plan.dataset.finished("decisions") == {}
