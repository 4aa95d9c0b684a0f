"""A Prefect worker for scheduled builds, which also marks runs as crashed whose process was killed.

Prefect's own worker reports the death of a run that it started, but nobody reports it where the worker was killed as
well: the run would keep the only concurrency slot of its deployment, and every later build would be dropped.
"""

import contextlib
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Final

from catalog.wording import amount
from flows.schedule.deploy import lasting_api
from flows.schedule.prefect_server import quiet_environment

REAP_S: Final = 15.0
"""How often dead runs are looked for, in seconds."""


def work(pool: str, limit: int | None, on_message: Callable[[str], Any]) -> int:
    """Run a worker for the work pool until it ends or is interrupted; return its exit code.

    Raises UserError where no lasting Prefect API is configured.
    """
    quiet_environment()
    lasting_api()
    from flows.schedule.dead_runs import reap_dead_runs

    def reap() -> None:
        # The server may be restarting: the worker waits for it as well.
        with contextlib.suppress(Exception):
            if count := reap_dead_runs():
                on_message(f"marked {amount(count, 'run')} as crashed whose process was gone")

    command = [sys.executable, "-m", "prefect", "worker", "start", "--type", "process", "--pool", pool]
    command += [] if limit is None else ["--limit", str(limit)]
    reap()
    with subprocess.Popen(command) as worker, _signals_passed_to(worker):  # noqa: S603  # Prefect's own command
        while True:
            try:
                return worker.wait(REAP_S)
            except subprocess.TimeoutExpired:
                reap()


@contextmanager
def _signals_passed_to(worker: "subprocess.Popen[bytes]") -> Iterator[None]:
    """Let the worker stop in its own time on SIGTERM and Ctrl-C: it waits for the runs that it started."""

    def forward(number: int, _frame: Any) -> None:
        worker.send_signal(number)

    before = {number: signal.signal(number, forward) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
