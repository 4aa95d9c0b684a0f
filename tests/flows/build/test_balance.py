"""What is published is what every stage keeps; else nothing is, and the stage is named."""

from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from catalog.errors import BalanceError
from catalog.parts import PartWriter
from flows.build.balance import check_balance
from flows.build.build import publish, run_stage
from flows.build.context import BuildContext
from flows.build.engine import InlineEngine
from flows.build.plan import NUMBERS, Plan, make_plan
from tasks.stage import Stage
from tests.stages import DropOdd, Lengths, content, dataset_in, recipe_of, write_source


def built(tmp_path: Path, *stages: Stage, files: int = 3, rows: int = 5) -> Plan:
    """Make all parts of a plan, and publish nothing."""
    recipe = recipe_of(write_source(tmp_path / "urls", files, rows), *stages, rows_per_part=rows)
    plan = make_plan(recipe, dataset_in(tmp_path / "catalog"))
    plan.dataset.set_state(NUMBERS, plan.numbers)
    for planned in plan.stages:
        run_stage(plan, planned, InlineEngine(), BuildContext(run_id="run"))
    return plan


def stitched(plan: Plan, other: Plan, *names: str) -> Plan:
    """Return a plan with some stages of another, as a plan with wrong fingerprints would have them."""
    stale = {s.stage.name: s for s in other.stages}
    return replace(plan, stages=tuple(stale[s.stage.name] if s.stage.name in names else s for s in plan.stages))


def counts(plan: Plan) -> dict[int, int]:
    return {p.number: p.rows or 0 for p in plan.stages[0].parts if p.number is not None}


def test_stale_samples_are_not_published(tmp_path: Path) -> None:
    plan = built(tmp_path, Lengths(), DropOdd())
    publish(plan, "recipe")
    longer = built(tmp_path, Lengths(times=2), DropOdd())  # every length is even: no row is rejected
    wrong = stitched(longer, plan, "samples")
    with pytest.raises(BalanceError, match=r"stage 'samples' did not see .* of part 0, 5 are missing \(sample 0 is "):
        publish(wrong, "recipe")
    assert [v.number for v in plan.dataset.versions()] == [1]
    assert publish(longer, "recipe").number == 2
    assert len(content(plan.dataset)["samples"]) == 15


def test_the_first_stage_that_broke_it_is_named(tmp_path: Path) -> None:
    stages = DropOdd(name="first"), DropOdd(name="second")
    plan = built(tmp_path, Lengths(), *stages)
    changed = built(tmp_path, Lengths(times=2), *stages)
    for names, message in (
        (("second", "samples"), "stage 'second' did not see .* 5 are missing"),
        (("samples",), "stage 'samples' did not see .* 5 are missing"),
        (("first",), "stage 'second' did not see .* 5 that the stages before it reject"),
    ):
        with pytest.raises(BalanceError, match=message) as caught:
            publish(stitched(changed, plan, *names), "recipe")
        assert ".parquet away and build again" in str(caught.value)
        assert "\n" not in str(caught.value)
    assert plan.dataset.versions() == []


def test_rows_of_no_part_are_noticed(tmp_path: Path) -> None:
    plan = built(tmp_path, Lengths(), DropOdd())
    decisions = plan.stages[2]
    rows = plan.dataset.storage.local(decisions.paths()[0])
    assert rows is not None
    before = pq.read_table(rows)
    more = before.slice(0, 1).set_column(0, "sample_id", pa.array([99 << 24]))
    with PartWriter(plan.dataset.storage, "decisions", decisions.parts[0].fingerprint, decisions.schema) as writer:
        writer.write(pa.concat_tables([before.select(decisions.schema.names), more.cast(before.schema)]))
    with pytest.raises(BalanceError, match=r"stage 'drop_odd': .* has 1 row of no part of the source"):
        check_balance(plan, counts(plan))


def test_only_what_is_new_is_compared(tmp_path: Path) -> None:
    plan = built(tmp_path, Lengths(), files=3)
    assert check_balance(plan, counts(plan)) == 15
    known = frozenset(path for s in plan.stages for path in s.paths())
    assert check_balance(plan, counts(plan), known) == 0
    grown = built(tmp_path, Lengths(), files=5)
    assert check_balance(grown, counts(grown), known) == 10
    judged = built(tmp_path, Lengths(), DropOdd(), files=5)
    assert check_balance(judged, counts(judged), known) == 25, "a judgement of the whole table may change any row"


def test_nothing_is_compared_where_nothing_changed(tmp_path: Path) -> None:
    """Comparing would find the row that the file of decisions has lost."""
    plan = built(tmp_path, Lengths(), DropOdd())
    version = publish(plan, "recipe")
    path = Path(str(plan.dataset.storage.local(plan.stages[2].paths()[0])))
    pq.write_table(pq.read_table(path).slice(1), path)
    with pytest.raises(
        BalanceError, match=r"stage .drop_odd. did not see .* of part 0, 1 are missing \(sample 0 is one\)"
    ):
        check_balance(plan, counts(plan))
    assert publish(plan, "recipe").number == version.number


@pytest.mark.parametrize("size", [1, 4, 7, 1000])
def test_row_groups_may_end_anywhere(tmp_path: Path, size: int) -> None:
    plan = built(tmp_path, Lengths(), DropOdd(), files=9, rows=6)
    decisions = plan.stages[2]
    path = Path(str(plan.dataset.storage.local(decisions.paths()[0])))
    pq.write_table(pq.read_table(path), path, row_group_size=size)
    assert pq.ParquetFile(path).num_row_groups == -(-54 // size)
    assert check_balance(plan, counts(plan)) == 54
