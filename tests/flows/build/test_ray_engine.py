"""The Ray engine: what a killed worker was making is made again; resources that do not exist are refused."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from catalog.errors import BuildError, PartError, UserError
from flows.build.engine import Engine, InlineEngine
from flows.build.ray_engine import RayEngine, open_engine, pool_size
from flows.build.worker import work_of
from tasks.stage import Resources
from tests.stages import (
    Misbehaving,
    Reporting,
    make_parts,
    plan_of,
)


def test_a_table_stage_that_is_killed_is_run_again_and_shows_its_progress(ray_engine: Engine, tmp_path: Path) -> None:
    plan = plan_of(tmp_path, Reporting(marker=str(tmp_path / "killed")))
    make_parts(ray_engine, plan, plan.stages[0])
    planned, shown = plan.stages[1], list[tuple[int, int, str]]()
    work = work_of(planned, plan.dataset.storage, "cpu", 0)
    file = ray_engine.run_once(work, planned.parts[0], lambda *progress: shown.append(progress))
    assert (tmp_path / "killed").exists()
    assert (file.rows, shown[-1]) == (0, (4, 4, "steps"))


def test_a_killed_actor_costs_nothing_but_its_part(ray_engine: Engine, tmp_path: Path) -> None:
    plan = plan_of(tmp_path, Misbehaving(fault="die_once", marker=str(tmp_path / "died")))
    make_parts(ray_engine, plan, plan.stages[0])
    assert {f.rows for f in make_parts(ray_engine, plan, plan.stages[1]).values()} == {5}
    assert (tmp_path / "died").exists()


def test_a_part_that_always_kills_its_worker_ends_the_build(ray_started: None, tmp_path: Path) -> None:
    plan = plan_of(tmp_path, Misbehaving(fault="die", marker=str(tmp_path / "died")))
    make_parts(InlineEngine(), plan, plan.stages[0])
    message = "part 1 of 'misbehaving' lost its worker 2 times: "
    with RayEngine(owns_ray=False, lost_limit=2) as engine, pytest.raises(BuildError, match=message) as caught:
        make_parts(engine, plan, plan.stages[1])
    assert "\n" not in str(caught.value)


class UnpicklableError(RuntimeError):
    """An error that cannot be made again from its arguments."""

    def __init__(self, one: str, other: str) -> None:
        super().__init__(f"{one} and {other}")


class RaisingUnpicklable(Reporting):
    """A table stage of somebody who wrote an error class of their own."""

    use: str = "raising_unpicklable"

    def run(self, *_: object) -> None:  # type: ignore[override]
        raise UnpicklableError("this", "that")


def test_an_error_that_cannot_be_pickled_is_reported_with_its_message(ray_engine: Engine, tmp_path: Path) -> None:
    plan = plan_of(tmp_path, RaisingUnpicklable())
    make_parts(InlineEngine(), plan, plan.stages[0])
    with pytest.raises(PartError, match="UnpicklableError: this and that") as caught:
        make_parts(ray_engine, plan, plan.stages[1])
    assert "in run" in caught.value.traceback


def test_a_pool_has_the_actors_that_fit_or_those_asked_for(ray_engine: Engine) -> None:
    import ray

    cpus = int(ray.cluster_resources()["CPU"])
    assert pool_size(Resources(cpus=1)) == cpus
    assert pool_size(Resources(cpus=cpus + 1)) == 1, "a stage that wants more cores than there are still runs"
    assert pool_size(Resources(cpus=1, actors=3)) == 3


def test_gpus_that_the_cluster_lacks_are_refused(ray_engine: Engine) -> None:
    assert ray_engine.device(Resources(gpus=0)) == "cpu"
    with pytest.raises(UserError, match=r"a stage asks for 99 GPUs an actor, the cluster has .*: write `gpus: auto`"):
        ray_engine.device(Resources(gpus=99))


def test_an_engine_of_a_command_joins_the_ray_of_the_process_and_leaves_it_running(ray_started: None) -> None:
    import ray

    with open_engine("ray") as engine:
        assert isinstance(engine, RayEngine)
        engine.map_parts(None, [], lambda part, file: None)  # type: ignore[arg-type]  # no part needs no work
    assert ray.is_initialized()
    assert isinstance(open_engine("inline"), InlineEngine)


def test_a_build_goes_on_in_this_process_where_ray_does_not_start(tmp_path: Path) -> None:
    """Here because the paths of its sockets would be too long. One message says why; the user need not do anything."""
    folder = tmp_path / ("x" * 100)
    folder.mkdir()
    code = "from flows.build.ray_engine import open_engine; print(open_engine('ray', print).name)"
    without_address = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
    environment = without_address | {"TMPDIR": str(folder)}
    out = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    message, name = out.stdout.splitlines()
    assert message.startswith("Ray did not start (")
    assert message.endswith("); this process makes the parts, one after the other")
    assert name == "inline"
