"""Runs whose process has ended are marked as crashed, and no others."""

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any
from uuid import UUID

import psutil
import pytest

from tests.helpers import wait_for

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::ResourceWarning")


def state_of(client: Any, run: UUID) -> str:
    return str(client.read_flow_run(run).state.type.value)


def running(client: Any, *tags: str) -> UUID:
    """Record a run with some tags that is running; return its id."""
    from prefect import flow
    from prefect.states import Running

    @flow(name="tagged")
    def tagged() -> None: ...

    made: UUID = client.create_flow_run(tagged, state=Running(), tags=["espalier", *tags]).id
    return made


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


def test_only_runs_of_this_host_whose_process_has_ended_are_marked(client: Any) -> None:
    """Also if there are more of them than the API returns at once, and if another process has their number by now."""
    import flows.schedule.dead_runs as module

    module.reap_dead_runs()
    _, host, pid, started = module.own_tags()
    with subprocess.Popen([sys.executable, "-c", ""]) as ended:
        wait_for(lambda: psutil.Process(ended.pid).status() == psutil.STATUS_ZOMBIE)
        zombie = [f"pid:{ended.pid}", f"started:{psutil.Process(ended.pid).create_time():.0f}"]
        alive = [
            running(client, host, pid, started),
            running(client, "host:elsewhere", *zombie),
            running(client),  # it names no process
        ]
        dead = [
            running(client, host, *zombie),
            running(client, host, pid, "started:1"),
            running(client, host, pid),
            running(client, host, "pid:none", started),
            running(client, host, f"pid:{2**22 + 1}", started),
        ]
        assert module.reap_dead_runs(page=2) == len(dead)
    assert {state_of(client, run) for run in alive} == {"RUNNING"}
    assert {state_of(client, run) for run in dead} == {"CRASHED"}
    assert "process" in client.read_flow_run(dead[0]).state.message
    assert module.reap_dead_runs() == 0
    for run in alive:
        client.delete_flow_run(run)


def test_a_run_that_a_worker_claimed_and_never_started(client: Any) -> None:
    """It is marked only after the time that a worker may take to start a process."""
    from prefect import flow
    from prefect.states import Pending

    import flows.schedule.dead_runs as module

    @flow(name="claimed")
    def claimed() -> None: ...

    module.reap_dead_runs()
    deployment = client.create_deployment(client.create_flow(claimed), "claimed", tags=["espalier"])
    run = client.create_flow_run_from_deployment(deployment, state=Pending(), tags=["espalier"]).id
    by_hand = client.create_flow_run(claimed, state=Pending(), tags=["espalier"]).id
    assert module.reap_dead_runs() == 0
    assert module.reap_dead_runs(submission_s=0.0) == 1
    assert [state_of(client, one) for one in (run, by_hand)] == ["CRASHED", "PENDING"]


def test_a_run_that_a_worker_started_is_tagged_once(client: Any) -> None:
    from prefect import flow, runtime, tags

    from flows.schedule.dead_runs import own_tags, tag_own_run

    @flow(name="tagging")
    def tagging() -> tuple[str, list[str]]:
        tag_own_run()
        found = client.read_flow_run(UUID(runtime.flow_run.id)).tags
        return str(runtime.flow_run.id), list(found)

    tag_own_run()  # outside of a run, there is nothing to tag
    with tags("dataset:web"):
        assert set(tagging()[1]) == {"dataset:web", *own_tags()}
    with tags("pid:1"):  # as a local command tags its run
        assert tagging()[1] == ["pid:1"]
