"""The Ray engine: what a killed worker was making is made again; resources that do not exist are refused."""

from pathlib import Path

import pytest

from catalog.errors import UserError
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
