"""Parts are made by the same code on every engine: rows balance, and scratch files and checkpoints are cleaned up."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pyarrow as pa
import pytest
from threadpoolctl import threadpool_info

from catalog import work as work_files
from catalog.errors import BalanceError, PartError
from catalog.inputs import Inputs
from catalog.pieces import Pieces
from catalog.schema import SOURCE
from catalog.storage import Storage
from flows.build.build import publish
from flows.build.engine import InlineEngine
from flows.build.plan import NUMBERS, make_plan
from flows.build.worker import (
    PartMaker,
    check_balance,
    clear_scratch,
    jobs_of,
    limit_threads,
    make_table,
    one_by_one,
    reduce_parts,
    work_of,
)
from tasks.stage import Batches, Columns, Run, Step
from tests.stages import DropOdd, Lengths, Views, content, make_parts, plan_of


class Interrupted(DropOdd):
    """Fails once, after it has written a checkpoint and a scratch file; continues from the checkpoint."""

    def run(self, inputs: Inputs, run: Run) -> Batches:
        (run.scratch / "partial").touch()
        checkpoint = run.checkpoints / "step"
        if not checkpoint.exists():
            checkpoint.touch()
            raise RuntimeError("interrupted")
        yield from super().run(inputs, run)


def test_a_table_stage_that_loses_rows(tmp_path: Path) -> None:
    class Losing(DropOdd):
        def run(self, inputs: Inputs, run: Run) -> Iterator[pa.Table]:
            for piece in super().run(inputs, run):
                yield piece.slice(1)

    plan = plan_of(tmp_path, Lengths(), Losing())
    for planned in plan.stages[:2]:
        make_parts(InlineEngine(), plan, planned)
    with pytest.raises(BalanceError, match="20 rows went in and 19 came out: 1 lost"):
        make_parts(InlineEngine(), plan, plan.stages[2])
    assert plan.dataset.finished("decisions") == {}


def test_checkpoints_remain_after_a_failure_and_scratch_files_do_not(tmp_path: Path) -> None:
    plan = plan_of(tmp_path, Lengths(), Interrupted())
    for planned in plan.stages[:2]:
        make_parts(InlineEngine(), plan, planned)
    planned, folder = plan.stages[2], work_files.folder(plan.dataset.storage)
    work = work_of(planned, plan.dataset.storage, "cpu", 0)
    shown = list[tuple[int, int, str]]()
    with pytest.raises(RuntimeError, match="interrupted"):
        make_table(work, planned.parts[0], one_by_one, lambda *progress: shown.append(progress))
    assert [path.name for path in folder.rglob("*") if path.is_file()] == ["step"]
    (folder / "scratch-killed").mkdir()
    clear_scratch(plan.dataset.storage)
    assert [path.name for path in folder.rglob("*") if path.is_file()] == ["step"]
    assert not (folder / "scratch-killed").exists()
    part = make_table(work, planned.parts[0], one_by_one, lambda *progress: shown.append(progress))
    assert (part.rows, shown) == (20, [(20, 20, "rows")])
    assert list(folder.iterdir()) == []
    clear_scratch(Storage.open(tmp_path / "new", create=True))  # a dataset without any


def test_jobs_are_the_parts_that_do_not_exist_with_their_own_pieces(tmp_path: Path) -> None:
    plan = plan_of(tmp_path, Lengths())
    make_parts(InlineEngine(), plan, plan.stages[0])
    jobs = list(jobs_of(plan.stages[1]))
    assert [[piece.number for piece in job.tables["source"]] for job in jobs] == [[0], [1], [2], [3]]
    work = work_of(plan.stages[1], plan.dataset.storage, "cpu", 0)
    assert work.tables["source"].pieces == (), "every job has its own"
    assert (work.sides, work.seed) == ((), work_of(plan.stages[1], plan.dataset.storage, "cpu", 0).seed)
    assert work.seed != work_of(plan.stages[1], plan.dataset.storage, "cpu", 1).seed
    make_parts(InlineEngine(), plan, plan.stages[1])
    plan.dataset.set_state(NUMBERS, plan.numbers)
    again = make_plan(plan.recipe, plan.dataset)
    assert [list(jobs_of(planned)) for planned in again.stages[1:2]] == [[]]


@pytest.mark.parametrize(
    ("made", "message"),
    [
        ([[1, 2], [3]], None),
        ([[1, 2]], "part 0: 3 rows went in and 2 came out: 1 lost, 0 made up, 0 doubled"),
        ([[1, 2, 3, 4]], "3 rows went in and 4 came out: 0 lost, 1 made up, 0 doubled"),
        ([[1, 2, 3, 3]], "3 rows went in and 4 came out: 0 lost, 0 made up, 1 doubled"),
        ([[3, 2, 1]], "0 lost, 0 made up, 0 doubled, or out of order"),
        ([], "3 rows went in and 0 came out: 3 lost"),
    ],
)
def test_rows_that_come_out_are_those_that_went_in(made: list[list[int]], message: str | None) -> None:
    before, after = [np.array([1]), np.array([2, 3])], [np.array(ids) for ids in made]
    if message is None:
        check_balance("part 0", before, after)
        check_balance("part 0", [], [])
        return
    with pytest.raises(BalanceError, match=message):
        check_balance("part 0", before, after)


class InOrder:
    """A reducer whose result depends on the order in which states are merged."""

    def init(self) -> list[int]:
        return []

    def update(self, state: list[int], batch: pa.Table) -> list[int]:
        return [*state, *batch.column("sample_id").to_pylist()]

    def merge(self, one: list[int], other: list[int]) -> list[int]:
        return [*one, *other]

    def compute(self, state: list[int]) -> list[int]:
        return state


def last_first(function: Callable[[Any], Any], items: Iterable[Any]) -> Iterator[Any]:
    """Apply a function to the last item first, as tasks may end in any order."""
    waiting = list(items)
    return reversed([function(item) for item in reversed(waiting)])


def test_a_statistic_is_merged_in_the_order_of_the_parts(tmp_path: Path) -> None:
    plan = plan_of(tmp_path, Lengths())
    make_parts(InlineEngine(), plan, plan.stages[0])
    inputs = Inputs(plan.stages[1].reads, (), plan.dataset.storage)
    columns: Columns = {"source": ("caption",)}
    found = reduce_parts(inputs, InOrder(), columns, one_by_one)
    assert found == [part << 24 | row for part in range(4) for row in range(5)]
    assert reduce_parts(inputs, InOrder(), columns, last_first) == found
    nothing = Inputs({"source": Pieces(SOURCE, ())})
    assert reduce_parts(nothing, InOrder(), columns, one_by_one) == []


class Opened(Lengths):
    """Counts how often it was opened."""

    use: str = "opened"
    times_opened: ClassVar[list[str]] = []

    def open(self, device: str, sides: Mapping[str, pa.Table]) -> Step:
        self.times_opened.append(device)
        return super().open(device, sides)


def test_a_maker_opens_its_stage_once_and_makes_only_the_missing_parts(tmp_path: Path) -> None:
    plan = plan_of(tmp_path, Opened())
    make_parts(InlineEngine(), plan, plan.stages[0])
    planned = plan.stages[1]
    Opened.times_opened.clear()
    maker = PartMaker(work_of(planned, plan.dataset.storage, "cpu", 0))
    assert Opened.times_opened == []
    jobs = list(jobs_of(planned))
    assert [job.part.number for job in jobs] == [0, 1, 2, 3]
    made = [maker.make(job) for job in (jobs[0], jobs[2])]
    assert [(file.rows, file.path) for file in made] == [
        (5, f"lengths/{job.part.fingerprint}.parquet") for job in (jobs[0], jobs[2])
    ]
    assert Opened.times_opened == ["cpu"]
    plan.dataset.set_state(NUMBERS, plan.numbers)
    again = make_plan(plan.recipe, plan.dataset).stages[1]
    assert [job.part.number for job in jobs_of(again)] == [1, 3]


@pytest.mark.parametrize(("cpus", "threads"), [(2, 2), (1.9, 1), (0.25, 1)])
def test_numeric_libraries_have_as_many_threads_as_the_stage_asks_for(cpus: float, threads: int) -> None:
    limit_threads(cpus)
    libraries = threadpool_info()
    assert libraries, "numpy has a BLAS"
    assert {library["num_threads"] for library in libraries} == {threads}


def test_several_rows_a_sample_balance_by_sample_and_do_not_join_the_samples(tmp_path: Path) -> None:
    plan = plan_of(tmp_path, Lengths(), Views(times=3))
    for planned in plan.stages:
        make_parts(InlineEngine(), plan, planned)
    version = publish(plan, "a recipe")
    assert {name: table.rows for name, table in version.tables.items()} == {
        "source": 20, "lengths": 20, "views": 60, "samples": 20,
    }  # fmt: skip
    assert "view" not in plan.dataset.schema(version, "samples").names
    views = content(plan.dataset)["views"]
    assert [row["view"] for row in views] == [0, 1, 2] * 20
    lost = plan_of(tmp_path / "lost", Lengths(), Views(times=2, fault=True))
    for planned in lost.stages[:2]:
        make_parts(InlineEngine(), lost, planned)
    with pytest.raises(PartError, match=r"5 rows went in and 4 came out: 1 lost"):
        make_parts(InlineEngine(), lost, lost.stages[2])


def test_a_table_with_several_rows_a_sample_cannot_be_joined() -> None:
    one = pa.table({"sample_id": [1, 2], "caption": ["a", "b"]})
    several = pa.table({"sample_id": [1, 1, 2], "view": [0, 1, 0]})
    inputs = Inputs.of(source=one, views=several)
    assert inputs.table({"views": ["view"]}).num_rows == 3
    with pytest.raises(ValueError, match="'views' has several rows a sample: it cannot be joined"):
        inputs.table({"source": ["caption"], "views": ["view"]})
