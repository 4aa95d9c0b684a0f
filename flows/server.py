"""The Prefect API that a build talks to: the configured one, or a quiet server of our own on loopback.

Our own server keeps its database in the user's state folder, is shared by all builds of the user, and stops when
none has needed it for a while. Each build holds a shared lock on one file; the keeper (`python -m flows.server`) ends
the server once it can have the lock alone. The kernel frees the lock of a build that is killed.
"""

import contextlib
import fcntl
import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, Final

from catalog.errors import BuildError

IDLE_S: Final = 300
_START_S: Final = 180
_QUIET: Final = {
    "DO_NOT_TRACK": "1",
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
    "PREFECT_LOGGING_LEVEL": "ERROR",
    "PREFECT_SERVER_LOGGING_LEVEL": "ERROR",
    "PREFECT_LOGGING_TO_API_ENABLED": "false",
    "PREFECT_CLI_PROMPT": "false",
}
"""No telemetry leaves the machine, and no log disturbs the progress bars."""


def state_folder() -> Path:
    """Return the user's state folder of Espalier: ESPALIER_STATE, or the XDG one."""
    base = os.environ.get("ESPALIER_STATE")
    if base:
        return Path(base)
    return Path(os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state") / "espalier"


def quiet_environment() -> None:
    """Set Prefect's environment before it is imported: quiet, no telemetry, its files in our state folder."""
    for name, value in _QUIET.items():
        os.environ.setdefault(name, value)
    os.environ.setdefault("PREFECT_HOME", str(state_folder() / "prefect"))
    Path(os.environ["PREFECT_HOME"]).mkdir(parents=True, exist_ok=True)


@contextmanager
def prefect_api(on_message: Callable[[str], Any] = print) -> Iterator[str]:
    """Give the URL of the API, started if need be. It is also set in PREFECT_API_URL while the block runs."""
    quiet_environment()
    configured = _configured()
    if configured:
        yield configured
        return
    folder = state_folder()
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "server.lock").open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_SH)
        url = _running(folder) or _start(folder, on_message)
        os.environ["PREFECT_API_URL"] = url
        try:
            with _settings(url):
                yield url
        finally:
            del os.environ["PREFECT_API_URL"]


def _configured() -> str | None:
    """Return the API that the environment or the active Prefect profile names."""
    if os.environ.get("PREFECT_API_URL"):
        return os.environ["PREFECT_API_URL"]
    from prefect.settings import PREFECT_API_URL

    url: str | None = PREFECT_API_URL.value()
    return url


@contextmanager
def _settings(url: str) -> Iterator[None]:
    """Tell a Prefect that is already imported."""
    from prefect.settings import PREFECT_API_URL, temporary_settings

    with temporary_settings({PREFECT_API_URL: url}):
        yield


def _running(folder: Path) -> str | None:
    """Return the URL of the server that is there, if it answers."""
    with contextlib.suppress(OSError, ValueError, KeyError):
        url = str(json.loads((folder / "server.json").read_text())["url"])
        return url if _answers(url) else None
    return None


def _answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(f"{url}/health", timeout=5) as response:  # noqa: S310  # our own loopback URL
            return bool(response.status == 200)
    except OSError:
        return False


def _start(folder: Path, on_message: Callable[[str], Any]) -> str:
    """Start the keeper in a session of its own, so that it outlives this build; wait until the server answers."""
    on_message("starting a Prefect server on loopback (kept for the next builds)")
    with (folder / "start.lock").open("a") as starting:
        fcntl.flock(starting, fcntl.LOCK_EX)  # of two builds that start at once, one waits for the other's server
        if url := _running(folder):
            return url
        with (folder / "server.log").open("ab") as log:
            command = [sys.executable, "-m", "flows.server", str(folder)]
            keeper = subprocess.Popen(  # noqa: S603  # ourselves
                command, stdout=log, stderr=log, stdin=subprocess.DEVNULL, start_new_session=True, close_fds=True
            )
        deadline = time.monotonic() + _START_S
        while time.monotonic() < deadline:
            if url := _running(folder):
                return url
            if keeper.poll() is not None:
                break
            time.sleep(0.2)
    raise BuildError(f"the Prefect server did not start within {_START_S} s: see {folder / 'server.log'}")


def keep(folder: Path, idle_s: float) -> None:
    """Run a server until no build has held the lock for `idle_s`."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    url = f"http://127.0.0.1:{port}/api"
    command = [
        sys.executable,
        "-m",
        "uvicorn",
        "--app-dir",
        str(folder),
        "--factory",
        "prefect.server.api.server:create_app",
    ]
    server = subprocess.Popen(  # noqa: S603  # Prefect's own application
        [*command, "--host", "127.0.0.1", "--port", str(port), "--log-level", "error"], env=os.environ | _QUIET
    )
    for name in (signal.SIGTERM, signal.SIGINT):
        signal.signal(name, lambda *_: sys.exit(0))
    try:
        while not _answers(url):
            if server.poll() is not None:
                sys.exit("the server ended while it started")
            time.sleep(0.2)
        temporary = folder / f".server.json.{os.getpid()}"
        temporary.write_text(json.dumps({"url": url, "pid": os.getpid()}))
        temporary.replace(folder / "server.json")
        with (folder / "server.lock").open("a") as lock:
            _wait_until_idle(lock, idle_s, server)
            (folder / "server.json").unlink(missing_ok=True)
    finally:
        (folder / "server.json").unlink(missing_ok=True)
        server.terminate()
        try:
            server.wait(20)
        except subprocess.TimeoutExpired:
            server.kill()


def _wait_until_idle(lock: IO[Any], idle_s: float, server: "subprocess.Popen[bytes]") -> None:
    """Return with the lock held alone: a build that comes now waits for it, and then starts a server of its own."""
    since_s = time.monotonic()
    while server.poll() is None:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            since_s = time.monotonic()
        else:
            if time.monotonic() - since_s > idle_s:
                return
            fcntl.flock(lock, fcntl.LOCK_UN)
        time.sleep(min(1.0, idle_s / 5))


if __name__ == "__main__":
    quiet_environment()
    keep(Path(sys.argv[1]), float(os.environ.get("ESPALIER_SERVER_IDLE_S", IDLE_S)))
