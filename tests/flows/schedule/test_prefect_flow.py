"""The build as a real Prefect flow against a real server: tasks, retries, artifacts, dead runs, deployments."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from catalog.dataset import Catalog
from catalog.lease import hold
from flows.build.build import run_stage
from flows.build.context import BuildContext
from flows.build.plan import PlannedStage
from flows.build.progress import Bar, Display
from flows.build.spec import BuildSpec
from tests.flows.conftest import Web
from tests.helpers import wait_for

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::ResourceWarning")


@pytest.fixture
def client(prefect_server: str) -> Any:
    from prefect import get_client

    with get_client(sync_client=True) as made:
        yield made


def spec_of(web: Web, stages: str = "") -> BuildSpec:
    return BuildSpec.read(web.recipe(stages), catalog=web.catalog, executor="inline")


def test_a_task_a_stage_and_what_it_leaves_behind(web: Web, client: Any) -> None:
    from prefect.client.schemas.filters import FlowRunFilter, FlowRunFilterId

    from flows.schedule.prefect_flow import build_flow

    outcome = build_flow(spec_of(web, "  - {use: prune, method: random, keep_rows: 3}\n"), BuildContext())
    assert outcome.version.tables["samples"].rows == 3
    run = max(client.read_flow_runs(), key=lambda r: r.created)
    assert (run.state.type.value, run.name) == ("COMPLETED", "web")
    tasks = client.read_task_runs(flow_run_filter=FlowRunFilter(id=FlowRunFilterId(any_=[run.id])))
    assert {t.name for t in tasks} == {"parquet", "download", "prune", "samples"}
    kinds = {a.type for a in client.read_artifacts()}
    assert {"progress", "table"} <= kinds


def test_a_held_version_is_a_state_of_its_own(web: Web, client: Any) -> None:
    """With the reasons in it, after one run of every stage; the error that a local command shows is the same."""
    from prefect.client.schemas.filters import FlowRunFilter, FlowRunFilterId

    from catalog.errors import HeldError
    from flows.schedule.prefect_flow import build_flow

    spec = BuildSpec.read(web.recipe("", "guards: {min_rows: 8}\n"), catalog=web.catalog, executor="inline")
    with pytest.raises(HeldError, match=r"web@1 is held, .* min_rows: 7 rows are kept") as caught:
        build_flow(spec, BuildContext())
    assert caught.value.facts["version"] == "web@1"
    run = max(client.read_flow_runs(), key=lambda r: r.created)
    assert (run.state.type.value, run.state.name, run.run_count) == ("FAILED", "Held", 1)
    assert run.state.message == str(caught.value)
    tasks = client.read_task_runs(flow_run_filter=FlowRunFilter(id=FlowRunFilterId(any_=[run.id])))
    assert [(t.state.type.value, t.run_count) for t in tasks] == [("COMPLETED", 1)] * 3


class Untraversable(Display, list[str]):
    """A display that fails where Prefect traverses it, copies it or records it; its items are what it was shown."""

    def __iter__(self) -> Iterator[str]:
        raise AssertionError("traversed")

    def __reduce__(self) -> Any:
        raise AssertionError("copied")

    def message(self, text: str) -> None:
        self.append(text)

    @contextmanager
    def stage(self, planned: PlannedStage) -> Iterator[Bar]:
        self.append(planned.stage.name)
        yield Bar()


def test_the_context_of_a_build_reaches_every_stage_and_no_argument_of_prefect(web: Web, client: Any) -> None:
    from flows.schedule.prefect_flow import build_flow

    display = Untraversable()
    context = BuildContext(display)
    outcome = build_flow(spec_of(web), context)
    assert [display[at] for at in range(3)] == ["parquet", "download", "samples"]
    assert len(display) > 3, "the line on failed rows"
    runs = Catalog(web.catalog).dataset("web").runs().to_pylist()
    assert {run["run_id"] for run in runs} == {context.run_id}
    recorded = max(client.read_flow_runs(), key=lambda r: r.created).parameters
    assert set(recorded) == {"recipe", "name", "catalog", "overrides", "executor", "wait_s", "is_resolved"}
    assert recorded["recipe"] == outcome.version.recipe


def test_an_infrastructure_fault_is_tried_again(web: Web, client: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    import flows.schedule.prefect_flow as module

    calls = []
    real = run_stage

    def flaky(plan: Any, planned: Any, engine: Any, context: Any) -> int:
        calls.append(planned.stage.name)
        if planned.stage.name == "download" and calls.count("download") == 1:
            raise ConnectionError("the node went away")
        return real(plan, planned, engine, context)

    monkeypatch.setattr(module, "run_stage", flaky)
    assert module.build_flow(spec_of(web), BuildContext()).version.number == 1
    assert calls.count("download") == 2


def test_a_fault_of_the_data_is_not(web: Web, client: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    import flows.schedule.prefect_flow as module
    from catalog.errors import PartError

    calls = []

    def broken(plan: Any, planned: Any, engine: Any, context: Any) -> int:
        calls.append(planned.stage.name)
        raise PartError("1 part failed 3 times")

    monkeypatch.setattr(module, "run_stage", broken)
    with pytest.raises(PartError):
        module.build_flow(spec_of(web), BuildContext())
    assert calls == ["parquet"]


def test_runs_of_dead_processes_are_marked_crashed(client: Any, tmp_path: Path) -> None:
    from flows.schedule.dead_runs import reap_dead_runs

    marker = tmp_path / "running"
    script = (
        "import sys, time, pathlib\nfrom prefect import flow, tags\nfrom flows.schedule.dead_runs import own_tags\n"
        "@flow(name='doomed')\ndef doomed():\n    pathlib.Path(sys.argv[1]).touch()\n    time.sleep(600)\n"
        "with tags(*own_tags()):\n    doomed()\n"
    )
    process = subprocess.Popen([sys.executable, "-c", script, str(marker)], env=os.environ | {"PYTHONPATH": "."})
    wait_for(marker.exists)
    process.send_signal(signal.SIGKILL)
    process.wait()
    run = wait_for(lambda: next((r for r in client.read_flow_runs() if r.state.type.value == "RUNNING"), None))
    assert reap_dead_runs() >= 1
    assert {r.state.type.value for r in client.read_flow_runs() if r.flow_id == run.flow_id} == {"CRASHED"}


def test_a_deployment_is_run_by_a_worker_and_only_once_at_a_time(web: Web, client: Any, prefect_server: str) -> None:
    from flows.schedule.deploy import deploy

    slow = web.server.drips(b"\xff" * 2000, step=1, pause_s=0.2)
    web.add_file("slow", [slow])
    lines = list(deploy(spec_of(web), "0 3 * * *", "UTC", "espalier-test", None))
    assert any("registered build/web" in line for line in lines)
    deployment = client.read_deployment_by_name("build/web")
    assert deployment.schedules[0].schedule.cron == "0 3 * * *"
    env = os.environ | {"PREFECT_API_URL": prefect_server}
    command = [sys.executable, "-m", "prefect", "worker", "start", "--pool", "espalier-test", "--type", "process"]
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    with subprocess.Popen([*command, "--limit", "4"], env=env, **quiet) as worker:  # type: ignore[call-overload]
        try:
            runs = [client.create_flow_run_from_deployment(deployment.id) for _ in range(2)]
            ended = {"COMPLETED", "CANCELLED", "FAILED", "CRASHED"}

            def finished() -> list[str] | None:
                states = [client.read_flow_run(r.id).state.type.value for r in runs]
                return states if set(states) <= ended else None

            assert sorted(wait_for(finished, 240)) == ["CANCELLED", "COMPLETED"]
        finally:
            worker.terminate()
    assert Catalog(web.catalog).dataset("web").version().tables["source"].rows == 9


def test_a_wrong_cron(web: Web, client: Any) -> None:
    from catalog.errors import RecipeError
    from flows.schedule.deploy import deploy

    with pytest.raises(RecipeError, match="--cron 'at noon'"):
        list(deploy(spec_of(web), "at noon", "UTC", "espalier-test", None))


def test_ctrl_c_stops_cleanly_and_says_how_to_go_on(web: Web, prefect_server: str) -> None:
    web.add_file("slow", [web.server.drips(b"\xff" * 2000, step=1, pause_s=0.2)])
    recipe = web.recipe()
    recipe.write_text(recipe.read_text().replace("timeout_s: 5", "timeout_s: 60"))
    env = os.environ | {"PREFECT_API_URL": prefect_server}
    command = build_command(web, recipe)
    images = Path(web.catalog) / "web" / "images"
    with subprocess.Popen(command, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as build:
        wait_for(lambda: images.is_dir() and any(images.glob("*.parquet")))
        build.send_signal(signal.SIGINT)
        _, err = build.communicate(timeout=60)
    assert build.returncode == 130, err
    assert err.splitlines()[-1].startswith("espalier: stopped; what is finished is kept")
    assert "Traceback" not in err
    assert "Crash detected" not in err
    assert Catalog(web.catalog).dataset("web").versions() == []


def build_command(web: Web, recipe: Path) -> list[str]:
    words = ["build", str(recipe), "--catalog", web.catalog, "--executor", "inline"]
    return [sys.executable, "-m", "flows.cli", *words]


def test_a_mistake_that_shows_in_the_run_is_one_line_too(web: Web, prefect_server: str) -> None:
    """Prefect would log it with a traceback, once for the stage and once for the flow."""
    env = os.environ | {"PREFECT_API_URL": prefect_server}
    one_left = "  - {use: prune, method: random, keep_rows: 1}\n  - {use: train_clip, model_name: tiny, steps: 1}\n"
    command = build_command(web, web.recipe(one_left))
    with hold(Catalog(web.catalog, create=True).dataset("web")):
        busy = subprocess.run(command, env=env, capture_output=True, text=True, timeout=120)
    assert (busy.returncode, busy.stderr.count("\n")) == (2, 1)
    assert busy.stderr.startswith(f"espalier: dataset 'web' is being built by process {os.getpid()}")
    failed = subprocess.run(command, env=env, capture_output=True, text=True, timeout=120)
    assert failed.returncode == 2
    assert failed.stderr.splitlines()[-1] == "espalier: train_clip: 1 usable image-caption pairs, at least 2 are needed"
    assert "Traceback" not in failed.stderr
    assert "ERROR" not in failed.stderr
