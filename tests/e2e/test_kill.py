"""Killed at random moments, a build goes on from its finished parts, and ends where an undisturbed one does."""

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil
import pytest

from catalog.dataset import Catalog, Dataset
from tests.stages import content, write_source

pytestmark = [pytest.mark.slow]
ROUNDS = int(os.environ.get("ESPALIER_KILLS", "20"))
# It ends as the command line does (flows/cli/app.py): at once, without taking the interpreter and its libraries apart.
SCRIPT = """
import os, sys
from flows.build.build import build_here, publish, run_stage
from flows.build.context import BuildContext
from flows.build.spec import BuildSpec
from flows.build.ray_engine import open_engine
from flows.build.plan import make_plan, NUMBERS
from catalog.lease import hold
from tests.stages import DropOdd, Slow, dataset_in, recipe_of
from pathlib import Path
source, catalog, executor = sys.argv[1:]
recipe = recipe_of(Path(source), Slow(pause_s=0.15), DropOdd())
dataset = dataset_in(Path(catalog))
with hold(dataset, 30):
    plan = make_plan(recipe, dataset)
    dataset.set_state(NUMBERS, plan.numbers)
    if not plan.is_cached:
        with open_engine(executor) as engine:
            print("engine", flush=True)
            for planned in plan.stages:
                run_stage(plan, planned, engine, BuildContext(run_id="run"))
    publish(plan, "recipe")
print("done", flush=True)
os._exit(0)
"""


def start(source: Path, catalog: Path, executor: str = "ray", **env: str) -> "subprocess.Popen[str]":
    return subprocess.Popen(
        [sys.executable, "-c", SCRIPT, str(source), str(catalog), executor],
        env=os.environ | {"PYTHONPATH": "."} | env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


def finish(process: "subprocess.Popen[str]") -> None:
    out, err = process.communicate(timeout=300)
    assert process.returncode == 0, err[-3000:]
    assert out.endswith("done\n")


@pytest.fixture(scope="module")
def expected(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    folder = tmp_path_factory.mktemp("undisturbed")
    source = write_source(folder / "urls", files=12)
    finish(start(source, folder / "catalog", "inline"))
    return source, content(Catalog(folder / "catalog").dataset("tiny"))


def parts(dataset: Dataset) -> dict[str, int]:
    """Return the inode of every finished part: a part that is made again gets a new one."""
    folder = Path(dataset.storage.uri)
    return {
        str(p.relative_to(folder)): p.stat().st_ino
        for t in ("source", "lengths", "decisions", "samples")
        for p in (folder / t).glob("*.parquet")
        if (folder / t).is_dir()
    }


def check(dataset: Dataset, before: dict[str, int], expected: dict[str, Any]) -> None:
    assert content(dataset) == expected
    after = parts(dataset)
    assert {p: after.get(p) for p in before} == before, "a finished part was made again"


@pytest.mark.parametrize("round_", range(ROUNDS))
def test_the_driver_is_killed(round_: int, tmp_path: Path, expected: tuple[Path, dict[str, Any]]) -> None:
    source, rows = expected
    dataset = Catalog(tmp_path / "catalog", create=True).dataset("tiny")
    process = start(source, tmp_path / "catalog", "inline")
    time.sleep(random.Random(round_).uniform(0.5, 4.5))
    process.send_signal(signal.SIGKILL)
    process.communicate()
    before = parts(dataset)
    finish(start(source, tmp_path / "catalog", "inline"))
    check(dataset, before, rows)


@pytest.mark.parametrize("round_", range(ROUNDS))
def test_an_actor_is_killed(round_: int, tmp_path: Path, expected: tuple[Path, dict[str, Any]]) -> None:
    source, rows = expected
    process = start(source, tmp_path / "catalog")
    assert process.stdout is not None
    assert process.stdout.readline() == "engine\n"
    chance = random.Random(round_)
    while not _workers(process):
        assert process.poll() is None, "it ended before there was anything to kill"
        time.sleep(0.05)
    time.sleep(chance.uniform(0, 1.5))
    while not (workers := _workers(process)):  # between two stages
        assert process.poll() is None, "it ended before there was anything to kill"
    chance.choice(workers).kill()
    finish(process)
    check(Catalog(tmp_path / "catalog").dataset("tiny"), {}, rows)


def _workers(driver: "subprocess.Popen[str]") -> list[psutil.Process]:
    """Return the Ray workers that make parts. Not Ray's own helpers: without them its node is dead."""
    found = psutil.Process(driver.pid).children(recursive=True)
    return [p for p in found if " ".join(_command(p)).startswith(("ray::_Actor", "ray::_run_table", "ray::_apply"))]


def _command(process: psutil.Process) -> list[str]:
    try:
        return process.cmdline()
    except psutil.Error:
        return []


@pytest.mark.parametrize("round_", range(ROUNDS))
def test_a_node_is_killed(round_: int, tmp_path: Path, expected: tuple[Path, dict[str, Any]], cluster: Any) -> None:
    source, rows = expected
    doomed = cluster.add_node(num_cpus=1)
    process = start(source, tmp_path / "catalog", RAY_ADDRESS=cluster.address)
    assert process.stdout is not None
    assert process.stdout.readline() == "engine\n"
    time.sleep(random.Random(round_).uniform(0.5, 4))
    cluster.remove_node(doomed, allow_graceful=False)
    finish(process)
    check(Catalog(tmp_path / "catalog").dataset("tiny"), {}, rows)


@pytest.fixture(scope="module")
def cluster() -> Any:
    from ray.cluster_utils import Cluster

    with pytest.MonkeyPatch.context() as patched:  # other tests of this process start a Ray that asks for a token
        patched.setenv("RAY_AUTH_MODE", "disabled")
        patched.setenv("RAY_USAGE_STATS_ENABLED", "0")
        made = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
        yield made
        made.shutdown()


def test_one_two_and_four_actors_give_the_same(tmp_path: Path, expected: tuple[Path, dict[str, Any]]) -> None:
    import ray

    from flows.build.build import publish, run_stage
    from flows.build.context import BuildContext
    from flows.build.plan import make_plan
    from flows.build.ray_engine import open_engine
    from tests.stages import DropOdd, Slow, dataset_in, recipe_of

    source, rows = expected
    ray.init("local", num_cpus=4, include_dashboard=False, log_to_driver=False)
    try:
        for actors in (1, 2, 4, 4):
            stage = Slow.model_validate({"pause_s": 0.15, "resources": {"actors": actors}})
            dataset = dataset_in(tmp_path / f"{actors}-{time.monotonic()}")
            plan = make_plan(recipe_of(source, stage, DropOdd()), dataset)
            with open_engine("ray") as engine:
                for planned in plan.stages:
                    run_stage(plan, planned, engine, BuildContext(run_id="run"))
            publish(plan, "recipe")
            assert content(dataset) == rows
    finally:
        ray.shutdown()
