"""Both engines make the same parts; what fails is reported, and nothing else is lost."""

from pathlib import Path

import pytest

from catalog.errors import PartError
from flows.build.engine import Engine, InlineEngine
from flows.build.worker import work_of
from tests.stages import (
    DropOdd,
    Lengths,
    Misbehaving,
    Reporting,
    make_parts,
    plan_of,
)


@pytest.fixture(params=["inline", "ray"])
def engine(request: pytest.FixtureRequest) -> Engine:
    return request.getfixturevalue("ray_engine") if request.param == "ray" else InlineEngine()


def test_parts_and_tables(engine: Engine, tmp_path: Path) -> None:
    plan = plan_of(tmp_path, Lengths(), DropOdd())
    assert {n: f.rows for n, f in make_parts(engine, plan, plan.stages[0]).items()} == {0: 5, 1: 5, 2: 5, 3: 5}
    make_parts(engine, plan, plan.stages[1])
    table = make_parts(engine, plan, plan.stages[2])[None]
    # every caption is "caption I J": 11 letters, so all are odd
    assert table.rows == 20
    assert dict(table.notes) == {"total": 220, "squares": [0, 1, 4, 9, 16]}
    assert {f.rows for f in make_parts(engine, plan, plan.stages[3]).values()} == {0}


def test_a_table_stage_shows_its_progress(engine: Engine, tmp_path: Path) -> None:
    plan = plan_of(tmp_path, Reporting())
    make_parts(engine, plan, plan.stages[0])
    planned, shown = plan.stages[1], list[tuple[int, int, str]]()
    work = work_of(planned, plan.dataset.storage, "cpu", 0)
    engine.run_once(work, planned.parts[0], lambda *progress: shown.append(progress))
    assert shown[-1] == (4, 4, "steps")


def test_a_failing_part_is_reported_and_the_others_are_made(engine: Engine, tmp_path: Path) -> None:
    plan = plan_of(tmp_path, Misbehaving(fault="raise"))
    make_parts(engine, plan, plan.stages[0])
    with pytest.raises(
        PartError, match=r"1 part failed 3 times .*part 1: RuntimeError: a fault of the stage"
    ) as caught:
        make_parts(engine, plan, plan.stages[1])
    assert "in _spoilt" in caught.value.traceback
    assert len(plan.dataset.finished("lengths")) == 3


@pytest.mark.parametrize("fault", ["lose", "double", "swap"])
def test_rows_must_balance(engine: Engine, tmp_path: Path, fault: str) -> None:
    plan = plan_of(tmp_path, Misbehaving.model_validate({"fault": fault}))
    make_parts(engine, plan, plan.stages[0])
    with pytest.raises(PartError, match=r"part 1: BalanceError: part 1 of 'misbehaving'"):
        make_parts(engine, plan, plan.stages[1])
