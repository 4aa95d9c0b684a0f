"""The Prefect API that a build talks to: the configured one, or a quiet server of our own on loopback.

Our own server keeps its database in the user's state folder, is shared by all builds of the user, and stops when
none has needed it for a while. Each build holds a shared lock on one file; the keeper (`python -m
flows.schedule.prefect_server`) ends
the server once it can have the lock alone. The kernel frees the lock of a build that is killed.

It answers this user alone: it listens on loopback, asks for a secret that is in a file which only the user can read,
and refuses requests whose Host or Origin is not its own, so that no web page in a browser can reach it.
"""

import contextlib
import fcntl
import json
import os
import secrets
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Awaitable, Callable, Iterator, MutableMapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Final
from urllib.parse import urlsplit

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
_SECRET: Final = "PREFECT_API_AUTH_STRING"  # noqa: S105  # the name of a variable
_SERVER_SECRET: Final = "PREFECT_SERVER_API_AUTH_STRING"  # noqa: S105

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
Application = Callable[[Message, Receive, Send], Awaitable[None]]


@dataclass(frozen=True)
class Api:
    """A Prefect server of our own."""

    url: str
    secret: str
    """`user:password`, which every request must carry."""


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
    """Give the URL of the API, started if need be. While the block runs, Prefect is configured to use it."""
    quiet_environment()
    configured = _configured()
    if configured:
        yield configured
        return
    folder = _private_folder(state_folder())
    with (folder / "server.lock").open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_SH)
        api = _running(folder) or _start(folder, on_message)
        with _settings(api):
            yield api.url


def _private_folder(folder: Path) -> Path:
    """Return a folder that only this user can read, made if need be."""
    folder.mkdir(parents=True, exist_ok=True)
    folder.chmod(0o700)
    return folder


def _configured() -> str | None:
    """Return the API that the environment or the active Prefect profile names."""
    if os.environ.get("PREFECT_API_URL"):
        return os.environ["PREFECT_API_URL"]
    from prefect.settings import PREFECT_API_URL

    url: str | None = PREFECT_API_URL.value()
    return url


@contextmanager
def _settings(api: Api) -> Iterator[None]:
    """Configure Prefect to use a server: by its environment, and where it is already imported by its settings."""
    from prefect.settings import PREFECT_API_AUTH_STRING, PREFECT_API_URL, temporary_settings

    values = {"PREFECT_API_URL": api.url, _SECRET: api.secret}
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        with temporary_settings({PREFECT_API_URL: api.url, PREFECT_API_AUTH_STRING: api.secret}):
            yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def _running(folder: Path) -> Api | None:
    """Return the server that is there, if it answers.

    A file that a killed server left may name a port that belongs to somebody else by now, who must not get the
    secret: so it counts only while the server holds its lock.
    """
    if not _is_held(folder / "serving.lock"):
        return None
    with contextlib.suppress(OSError, ValueError, KeyError):
        facts = json.loads((folder / "server.json").read_text())
        api = Api(str(facts["url"]), str(facts["secret"]))
        return api if _answers(api.url) else None
    return None


def _is_held(path: Path) -> bool:
    """Return whether some process holds a lock on a file."""
    with path.open("a") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False


def _answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(f"{url}/health", timeout=5) as response:  # noqa: S310  # our own loopback URL
            return bool(response.status == 200)
    except OSError:
        return False


def _start(folder: Path, on_message: Callable[[str], Any]) -> Api:
    """Start the keeper in a session of its own, so that it outlives this build; wait until the server answers."""
    on_message("starting a Prefect server on loopback (kept for the next builds)")
    with (folder / "start.lock").open("a") as starting:
        fcntl.flock(starting, fcntl.LOCK_EX)  # of two builds that start at once, one waits for the other's server
        if api := _running(folder):
            return api
        with (folder / "server.log").open("ab") as log:
            command = [sys.executable, "-m", "flows.schedule.prefect_server", str(folder)]
            keeper = subprocess.Popen(  # noqa: S603  # ourselves
                command, stdout=log, stderr=log, stdin=subprocess.DEVNULL, start_new_session=True, close_fds=True
            )
        deadline = time.monotonic() + _START_S
        while time.monotonic() < deadline:
            if api := _running(folder):
                return api
            if keeper.poll() is not None:
                break
            time.sleep(0.2)
    raise BuildError(f"the Prefect server did not start within {_START_S} s: see {folder / 'server.log'}")


def keep(folder: Path, idle_s: float) -> None:
    """Run a server until no build has held the lock for `idle_s`."""
    for name in (signal.SIGTERM, signal.SIGINT):
        signal.signal(name, lambda *_: sys.exit(0))
    with (folder / "serving.lock").open("a") as serving:
        fcntl.flock(serving, fcntl.LOCK_EX)  # a server whose keeper was killed may hold it: this one waits for its end
        os.set_inheritable(serving.fileno(), True)
        api = Api(f"http://127.0.0.1:{_free_port()}/api", f"espalier:{secrets.token_urlsafe(32)}")
        server = _serve(api, serving.fileno())
        try:
            _announce(folder, api, server)
            with (folder / "server.lock").open("a") as lock:
                _wait_until_idle(lock, idle_s, server)
                (folder / "server.json").unlink(missing_ok=True)
        finally:
            (folder / "server.json").unlink(missing_ok=True)
            _end(server)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _serve(api: Api, lock: int) -> "subprocess.Popen[bytes]":
    """Start the server. It inherits the descriptor `lock`, so the lock is held for as long as it lives."""
    command = [
        sys.executable,
        "-m",
        "uvicorn",
        "--factory",
        "flows.schedule.prefect_server:application",
        "--host",
        "127.0.0.1",
    ]
    command += ["--port", str(urlsplit(api.url).port), "--log-level", "error"]
    environment = os.environ | _QUIET | {_SERVER_SECRET: api.secret, _SECRET: api.secret}
    return subprocess.Popen(command, env=environment, pass_fds=(lock,))  # noqa: S603  # Prefect's own application


def _announce(folder: Path, api: Api, server: "subprocess.Popen[bytes]") -> None:
    """Write where the server is, once it answers, into a file that only this user can read."""
    while not _answers(api.url):
        if server.poll() is not None:
            sys.exit("the server ended while it started")
        time.sleep(0.2)
    temporary = folder / f".server.json.{os.getpid()}"
    temporary.unlink(missing_ok=True)
    with os.fdopen(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
        json.dump({"url": api.url, "pid": os.getpid(), "secret": api.secret}, file)
    temporary.replace(folder / "server.json")


def _end(server: "subprocess.Popen[bytes]") -> None:
    server.terminate()
    try:
        server.wait(20)
    except subprocess.TimeoutExpired:
        server.kill()


def application() -> Application:
    """Return Prefect's server behind `own_requests_only`. What uvicorn runs."""
    from prefect.server.api.server import create_app

    return own_requests_only(create_app())


def own_requests_only(app: Application) -> Application:
    """Return an ASGI application that refuses requests (400) whose Host or Origin is not the server's own.

    A web page that a browser shows can send requests to loopback, under a name of its own that DNS resolves to
    127.0.0.1, or as a form or a WebSocket from its own origin. Neither gets an answer here.
    """

    async def guarded(scope: Message, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan" or _is_own(scope):
            await app(scope, receive, send)
        elif scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": 1008})
        else:
            headers = [(b"content-type", b"text/plain")]
            await send({"type": "http.response.start", "status": 400, "headers": headers})
            await send({"type": "http.response.body", "body": b"foreign Host or Origin\n"})

    return guarded


def _is_own(scope: Message) -> bool:
    """Return whether a request names this server, and comes from no page but its own."""
    port = scope["server"][1]
    hosts = {f"{name}:{port}".encode() for name in ("127.0.0.1", "localhost")}
    named = [value.lower() for key, value in scope["headers"] if key == b"host"]
    origins = [value.lower() for key, value in scope["headers"] if key == b"origin"]
    return len(named) == 1 and named[0] in hosts and all(o.removeprefix(b"http://") in hosts for o in origins)


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
