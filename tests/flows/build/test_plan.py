"""What is made again, and what is not, follows from fingerprints alone."""

import os
import shutil
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from catalog.errors import RecipeError
from flows.build.plan import Plan, make_plan
from tasks.filter import Filter
from tasks.stage import Stage
from tests.stages import DropOdd, Lengths, dataset_in, recipe_of, write_source


def plan_of(tmp_path: Path, *stages: Stage, source: str = "urls", seed: int = 0) -> Plan:
    return make_plan(recipe_of(tmp_path / source, *stages, seed=seed), dataset_in(tmp_path / "catalog"))


def prints(plan: Plan) -> dict[str, list[str]]:
    return {s.stage.name: [p.fingerprint for p in s.parts] for s in plan.stages}


def test_the_same_recipe_gives_the_same_parts(tmp_path: Path) -> None:
    write_source(tmp_path / "urls")
    assert prints(plan_of(tmp_path, Lengths(), DropOdd())) == prints(plan_of(tmp_path, Lengths(), DropOdd()))


def test_a_changed_parameter_makes_new_parts_from_that_stage_on(tmp_path: Path) -> None:
    write_source(tmp_path / "urls")
    one, other = prints(plan_of(tmp_path, Lengths(), DropOdd())), prints(plan_of(tmp_path, Lengths(times=2), DropOdd()))
    assert one["parquet"] == other["parquet"]
    for stage in ("lengths", "drop_odd", "samples"):
        assert not set(one[stage]) & set(other[stage])


def test_a_table_that_was_read_and_then_written_again_is_another(tmp_path: Path) -> None:
    """Stage `second` reads `decisions` (it judges), then writes it: what comes after reads both stages' parts."""
    write_source(tmp_path / "urls")
    stages = [Lengths(), DropOdd(name="first"), DropOdd(name="second"), DropOdd(name="third")]
    one = prints(plan_of(tmp_path, *stages))
    stages[2] = DropOdd(name="second", odd_is=2)
    other = prints(plan_of(tmp_path, *stages))
    assert one["first"] == other["first"]
    for stage in ("second", "third", "samples"):
        assert not set(one[stage]) & set(other[stage]), stage


def test_resources_and_an_unused_seed_change_nothing(tmp_path: Path) -> None:
    write_source(tmp_path / "urls")
    hungry = Lengths.model_validate({"resources": {"cpus": 2, "batch_rows": 3}})
    assert prints(plan_of(tmp_path, Lengths())) == prints(plan_of(tmp_path, hungry, seed=9))


def test_a_new_file_makes_only_its_own_parts(tmp_path: Path) -> None:
    write_source(tmp_path / "urls", files=2)
    plan = plan_of(tmp_path, Lengths(), DropOdd())
    plan.dataset.set_state("numbers", plan.numbers)
    before = prints(plan)
    write_source(tmp_path / "urls", files=1, first=0, rows=4)  # also: a changed file makes new parts
    write_source(tmp_path / "urls", files=2, first=1)
    write_source(tmp_path / "urls", files=1, first=7)
    after = prints(plan_of(tmp_path, Lengths(), DropOdd()))
    assert len(after["lengths"]) == 4
    assert set(before["lengths"]) & set(after["lengths"]) == {before["lengths"][1]}
    assert before["drop_odd"] != after["drop_odd"]


def test_a_file_that_sorts_first_renumbers_nothing(tmp_path: Path) -> None:
    write_source(tmp_path / "urls", files=2, first=5)
    plan = plan_of(tmp_path, Lengths())
    plan.dataset.set_state("numbers", plan.numbers)
    write_source(tmp_path / "urls", files=1, first=0)
    after = plan_of(tmp_path, Lengths())
    assert set(prints(plan)["lengths"]) < set(prints(after)["lengths"])
    assert sorted(p.number for p in after.stages[0].parts if p.number is not None) == [0, 1, 2]


def test_touching_or_moving_a_source_makes_nothing_new(tmp_path: Path) -> None:
    write_source(tmp_path / "urls")
    before = prints(plan_of(tmp_path, Lengths()))
    os.utime(tmp_path / "urls" / "0000.parquet", (1, 1))
    assert prints(plan_of(tmp_path, Lengths())) == before
    shutil.move(tmp_path / "urls", tmp_path / "elsewhere")
    assert prints(plan_of(tmp_path, Lengths(), source="elsewhere")) == before


def test_the_same_file_twice_is_two_parts(tmp_path: Path) -> None:
    write_source(tmp_path / "urls", files=1)
    shutil.copy(tmp_path / "urls" / "0000.parquet", tmp_path / "urls" / "0001.parquet")
    numbers = [p.number for p in plan_of(tmp_path, Lengths()).stages[0].parts]
    assert numbers == [0, 1]


def test_a_table_that_nothing_writes(tmp_path: Path) -> None:
    write_source(tmp_path / "urls")
    with pytest.raises(
        RecipeError, match="stage 'drop_odd' reads the table 'lengths', which no stage before it writes"
    ):
        plan_of(tmp_path, DropOdd())


def test_status_is_that_of_the_files(tmp_path: Path) -> None:
    write_source(tmp_path / "urls")
    plan = plan_of(tmp_path, Lengths())
    assert {s.status for s in plan.stages} == {"to run"}
    folder = tmp_path / "catalog" / "tiny" / "lengths"
    folder.mkdir(parents=True)
    (folder / f"{plan.stages[1].parts[0].fingerprint}.parquet").touch()
    assert [s.status for s in plan_of(tmp_path, Lengths()).stages] == ["to run", "partly", "to run"]


def test_a_file_with_other_columns_makes_nothing_anew_that_does_not_read_them(tmp_path: Path) -> None:
    """The source's parts get the column, as any reader of the table expects; downloads and the like are kept."""
    write_source(tmp_path / "urls", files=2)
    reads_width = Filter(name="wide", where="width is null or width >= 0")
    before_plan = plan_of(tmp_path, Lengths(), DropOdd())
    before_plan.dataset.set_state("numbers", before_plan.numbers)
    before = prints(before_plan)
    urls, texts = ["http://h/9/9.jpg"], ["caption"]
    pq.write_table(pa.table({"URL": urls, "TEXT": texts, "width": [640]}), tmp_path / "urls" / "0009.parquet")
    plan = plan_of(tmp_path, Lengths(), DropOdd(), reads_width)
    plan.dataset.set_state("numbers", plan.numbers)
    after = prints(plan)
    assert {p.number for p in before_plan.stages[0].parts} <= {p.number for p in plan.stages[0].parts}
    assert not set(before["parquet"]) & set(after["parquet"])
    assert set(before["lengths"]) < set(after["lengths"])
    assert "width" in plan.stages[0].schema.names
    assert [str(note) for note in plan.notes] == [
        f"files without column 'width', which is null in their rows: 2 (e.g. {tmp_path}/urls/0000.parquet)"
    ]
    # Another type of a column that one stage reads: that stage sees other values.
    pq.write_table(pa.table({"URL": urls, "TEXT": ["b"], "width": [0.5]}), tmp_path / "urls" / "0010.parquet")
    widened = prints(plan_of(tmp_path, Lengths(), DropOdd(), reads_width))
    assert set(after["lengths"]) < set(widened["lengths"])
    assert not set(after["wide"]) & set(widened["wide"])
    # The same columns again: nothing at all.
    plan = plan_of(tmp_path, Lengths(), DropOdd(), reads_width)
    plan.dataset.set_state("numbers", plan.numbers)
    pq.write_table(pa.table({"URL": urls, "TEXT": ["c"], "width": [1.5]}), tmp_path / "urls" / "0011.parquet")
    same = prints(plan_of(tmp_path, Lengths(), DropOdd(), reads_width))
    assert set(widened["parquet"]) < set(same["parquet"])
    assert set(widened["lengths"]) < set(same["lengths"])


def test_which_column_is_the_caption_changes_what_reads_it(tmp_path: Path) -> None:
    folder = tmp_path / "urls"
    folder.mkdir()
    pq.write_table(pa.table({"url": ["u"], "caption": ["a"], "text": ["b"], "n": [1]}), folder / "a.parquet")

    def planned(**options: object) -> dict[str, list[str]]:
        recipe = recipe_of(folder, Lengths(), Filter(name="n", where="n > 0"))
        source = recipe.source.model_copy(update=options)
        return prints(make_plan(recipe.model_copy(update={"source": source}), dataset_in(tmp_path / "catalog")))

    default, other = planned(), planned(caption="text")
    assert default == planned(caption="CAPTION", url="url")  # what is found by itself, named
    assert default["lengths"] != other["lengths"]
    assert default["n"] == other["n"]
