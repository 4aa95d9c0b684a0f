"""The build as a real Prefect flow against a real server: tasks, retries, artifacts, and how it ends."""

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from catalog.dataset import Catalog
from catalog.lease import hold
from flows.build.build import run_stage
from flows.build.context import BuildContext
from flows.build.spec import BuildSpec
from tests.flows.conftest import Web
from tests.helpers import wait_for

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::ResourceWarning")


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
