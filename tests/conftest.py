"""What every test session shares: a state folder of its own, one Ray, one Prefect server."""

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

# Before anything imports Prefect: nothing of a test may touch the user's own server or settings.
_STATE = tempfile.mkdtemp(prefix="espalier-tests-")
os.environ["ESPALIER_STATE"] = _STATE
os.environ["PREFECT_HOME"] = str(Path(_STATE) / "prefect")
os.environ["ESPALIER_SERVER_IDLE_S"] = "5"
os.environ.pop("PREFECT_API_URL", None)
os.environ.pop("ESPALIER_CATALOG", None)


@pytest.fixture(scope="session")
def ray_started() -> Iterator[None]:
    """A Ray that engines join instead of starting one each: it takes seconds."""
    from flows.cluster import RayEngine

    with RayEngine.start():
        yield


@pytest.fixture(scope="session")
def prefect_server() -> Iterator[str]:
    """The URL of a Prefect API, which is also configured while the session lasts."""
    from flows.server import prefect_api

    with prefect_api() as url:
        yield url
