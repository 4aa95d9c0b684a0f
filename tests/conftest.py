"""What every test session shares: a state folder of its own, one Ray, one Prefect server, one S3 server."""

import os
import signal
import subprocess
import sys
import tempfile
import urllib.request
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from tests.flows.conftest import Web

# Before anything imports Prefect: nothing of a test may touch the user's own server or settings.
_STATE = tempfile.mkdtemp(prefix="espalier-tests-")
os.environ["ESPALIER_STATE"] = _STATE
os.environ["PREFECT_HOME"] = str(Path(_STATE) / "prefect")
os.environ["ESPALIER_SERVER_IDLE_S"] = "5"
os.environ.pop("PREFECT_API_URL", None)
os.environ.pop("ESPALIER_CATALOG", None)

# A shell ignores Ctrl-C on behalf of what it runs in the background, and children inherit that: builds and workers that
# the tests start could not be interrupted.
if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session")
def ray_started() -> Iterator[None]:
    """A Ray that engines join instead of starting one each: it takes seconds."""
    from flows.build.ray_engine import RayEngine

    with RayEngine.start():
        yield


@pytest.fixture(scope="session")
def prefect_server() -> Iterator[str]:
    """The URL of a Prefect API, which is also configured while the session lasts."""
    from flows.schedule.prefect_server import prefect_api

    with prefect_api() as url:
        yield url


_SERVE = """
import logging, time
from moto.server import ThreadedMotoServer
logging.disable()
server = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
server.start()
print(*server.get_host_and_port(), flush=True)
time.sleep(3600)
"""


@pytest.fixture(scope="session")
def s3() -> Iterator[Callable[[], str]]:
    """Return a function that makes a bucket and returns its URI.

    The server is a process of its own: delta-rs and DuckDB may keep Python's lock while they wait for an answer.
    """
    pytest.importorskip("moto.server", reason="moto[s3] is not installed")
    with subprocess.Popen([sys.executable, "-c", _SERVE], stdout=subprocess.PIPE, text=True) as server:
        assert server.stdout is not None
        host, port = server.stdout.readline().split()
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("AWS_ENDPOINT_URL", f"http://{host}:{port}")
            patch.setenv("AWS_ALLOW_HTTP", "true")
            patch.setenv("AWS_REGION", "us-east-1")
            patch.setenv("AWS_ACCESS_KEY_ID", "test")
            patch.setenv("AWS_SECRET_ACCESS_KEY", "test")

            def bucket() -> str:
                name = f"espalier-{uuid.uuid4().hex[:12]}"
                request = urllib.request.Request(f"http://{host}:{port}/{name}", method="PUT")
                urllib.request.urlopen(request, timeout=20).close()
                return f"s3://{name}"

            yield bucket
        server.kill()


@pytest.fixture(scope="session")
def published_web(tmp_path_factory: pytest.TempPathFactory) -> Iterator["Web"]:
    """A published dataset of three parts that no test changes: `tests.damage.copy_of` copies its catalog."""
    from tests.damage import published

    with published(tmp_path_factory.mktemp("published")) as web:
        yield web


@pytest.fixture
def full_disk(tmp_path: Path) -> Iterator[Path]:
    """Return a folder on a file system of 1 MiB. Needs the right to mount; skipped without it."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(folder)], capture_output=True, text=True, check=False
    )
    if mounted.returncode:
        pytest.skip(f"cannot mount a small disk: {mounted.stderr.strip()}")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)
