"""Mark runs as crashed whose process has ended: a killed process reports nothing, and Prefect would wait forever.

Every run is tagged with its process. Only runs of this host are checked, and runs that a worker claimed and never
started, which belong to no host. Marking a run as crashed also frees the concurrency slot of its deployment.
"""

import contextlib
import socket
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any, Final
from uuid import UUID

import psutil
from prefect import get_client
from prefect.client.schemas.filters import (
    FlowRunFilter,
    FlowRunFilterState,
    FlowRunFilterStateType,
    FlowRunFilterTags,
)
from prefect.client.schemas.objects import FlowRun, StateType
from prefect.states import Crashed

SUBMISSION_S: Final = 60.0
"""How long a worker may take from claiming a run to starting its process, in seconds."""
_UNFINISHED: Final = [StateType.PENDING, StateType.RUNNING, StateType.CANCELLING]
_PAGE: Final = 200


def own_tags() -> list[str]:
    """Return the tags by which a run of this process can be recognised."""
    me = psutil.Process()
    return ["espalier", f"host:{socket.gethostname()}", f"pid:{me.pid}", f"started:{me.create_time():.0f}"]


def tag_own_run() -> None:
    """Tag the current run with its process, if a worker started it: Prefect records neither its host nor its start."""
    from prefect.runtime import flow_run

    if flow_run.id is None or any(tag.startswith("pid:") for tag in flow_run.tags):
        return
    with get_client(sync_client=True) as client:
        client.update_flow_run(UUID(flow_run.id), tags=[*flow_run.tags, *own_tags()])


def reap_dead_runs(submission_s: float = SUBMISSION_S, page: int = _PAGE) -> int:
    """Mark unfinished runs of this host whose process has ended as crashed; return how many.

    `submission_s`: how long a worker may take from claiming a run to starting its process; `page`: runs per request.
    """
    with get_client(sync_client=True) as client:
        dead = [run for run in _unfinished(client, page) if _is_dead(run, submission_s)]
        for run in dead:
            client.set_flow_run_state(run.id, Crashed(message="its process has ended"), force=True)
    return len(dead)


def _unfinished(client: Any, page: int) -> Iterator[FlowRun]:
    """Yield all unfinished runs that Espalier started: the API returns at most one page at a time."""
    wanted = FlowRunFilter(
        state=FlowRunFilterState(type=FlowRunFilterStateType(any_=_UNFINISHED)),
        tags=FlowRunFilterTags(any_=["espalier", f"host:{socket.gethostname()}"]),
    )
    offset = 0
    while runs := client.read_flow_runs(flow_run_filter=wanted, limit=page, offset=offset):
        yield from runs
        offset += len(runs)


def _is_dead(run: FlowRun, submission_s: float) -> bool:
    """Return whether a run's process has certainly ended. False for runs whose process is on another host."""
    facts = dict(tag.split(":", 1) for tag in run.tags if ":" in tag)
    if "pid" in facts:
        return facts.get("host") == socket.gethostname() and not _is_started_at(facts)
    return _is_unclaimed(run, submission_s)


def _is_started_at(facts: dict[str, str]) -> bool:
    """Return whether the tagged process still runs, and is not a later process with the same number."""
    with contextlib.suppress(psutil.Error, ValueError):
        process = psutil.Process(int(facts["pid"]))
        return f"{process.create_time():.0f}" == facts.get("started") and process.status() != psutil.STATUS_ZOMBIE
    return False


def _is_unclaimed(run: FlowRun, submission_s: float) -> bool:
    """Return whether a worker claimed a run and then died before it started a process."""
    if run.state is None or run.state.type != StateType.PENDING or run.deployment_id is None or run.infrastructure_pid:
        return False
    return (datetime.now(UTC) - run.state.timestamp).total_seconds() > submission_s
