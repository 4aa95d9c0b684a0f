"""A worker and its run are killed: the next worker marks the run as crashed, and the deployment can be run again."""

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import psutil
import pytest

from flows.build.spec import BuildSpec
from tests.flows.conftest import Web
from tests.helpers import wait_for

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::ResourceWarning")
WORKER = [sys.executable, "-m", "flows.cli", "worker", "--pool"]
QUIET: Any = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}


def test_a_worker_wants_a_lasting_server(tmp_path: Path) -> None:
    env = {n: v for n, v in os.environ.items() if not n.startswith("PREFECT_")} | {"ESPALIER_STATE": str(tmp_path)}
    asked = subprocess.run([*WORKER, "espalier"], env=env, capture_output=True, text=True, timeout=300, check=False)
    assert asked.returncode == 2
    assert "needs a Prefect server that keeps running" in asked.stderr
    assert asked.stderr.count("\n") == 1


@pytest.mark.slow
def test_a_killed_worker_and_run_give_their_slot_back(web: Web, prefect_server: str) -> None:
    from prefect import get_client

    from flows.schedule.deploy import deploy

    pool = "espalier-killed"
    slow = web.server.drips(b"\xff" * 4000, step=1, pause_s=0.2)
    web.add_file("slow", [slow])
    recipe = web.recipe()
    recipe.write_text(recipe.read_text().replace("timeout_s: 5", "timeout_s: 600"))
    list(deploy(BuildSpec.read(recipe, catalog=web.catalog, executor="inline"), "0 3 * * *", "UTC", pool, "killed"))
    command = [*WORKER, pool]
    env = os.environ | {"PREFECT_API_URL": prefect_server}
    with get_client(sync_client=True) as client:
        deployment = client.read_deployment_by_name("build/killed")

        def state(run: Any) -> str | None:
            found = client.read_flow_run(run.id).state
            return found.type.value if found else None

        with subprocess.Popen(command, env=env, start_new_session=True, **QUIET) as worker:
            doomed = client.create_flow_run_from_deployment(deployment.id)
            wait_for(lambda: state(doomed) == "RUNNING", 240)
            for process in [*psutil.Process(worker.pid).children(recursive=True), worker]:
                process.send_signal(signal.SIGKILL)
        assert state(doomed) == "RUNNING"
        with subprocess.Popen(command, env=env, start_new_session=True, **QUIET) as worker:
            wait_for(lambda: state(doomed) == "CRASHED", 240)
            following = client.create_flow_run_from_deployment(deployment.id)
            wait_for(lambda: state(following) in {"RUNNING", "CANCELLED"}, 240)
            assert state(following) == "RUNNING"
            for process in psutil.Process(worker.pid).children(recursive=True):
                process.kill()
            worker.kill()
    from flows.schedule.dead_runs import reap_dead_runs

    reap_dead_runs()
