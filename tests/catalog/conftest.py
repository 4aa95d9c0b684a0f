"""A local folder and a real S3-protocol server on loopback, and small real parts."""

import os
import subprocess
import sys
import urllib.request
import uuid
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from catalog.dataset import Catalog, Dataset, VersionFacts
from catalog.parts import PartFile, PartWriter
from catalog.schema import DECISIONS, IMAGES, SOURCE
from catalog.storage import Storage

WritePart = Callable[..., PartFile]


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


@pytest.fixture
def bucket(s3: Callable[[], str]) -> str:
    return s3()


@pytest.fixture(params=["local", "s3"])
def uri(request: pytest.FixtureRequest) -> str:
    if request.param == "local":
        return str(request.getfixturevalue("tmp_path") / "catalog")
    return f"{request.getfixturevalue('s3')()}/some/prefix"


@pytest.fixture
def storage(uri: str) -> Storage:
    return Storage.open(uri, create=True)


@pytest.fixture
def catalog(uri: str) -> Catalog:
    return Catalog(uri, create=True)


@pytest.fixture
def dataset(catalog: Catalog) -> Dataset:
    return catalog.dataset("birds")


@pytest.fixture
def local_dataset(tmp_path: Path) -> Dataset:
    return Catalog(tmp_path / "catalog", create=True).dataset("birds")


SCHEMAS: Mapping[str, pa.Schema] = {"source": SOURCE, "images": IMAGES, "decisions": DECISIONS}


@pytest.fixture
def write_part() -> WritePart:
    """Return a function that writes rows (dicts) as a part: (dataset, table, number, rows[, schema]) -> PartFile."""

    def write(
        dataset: Dataset, table: str, number: int, rows: list[dict[str, Any]], schema: pa.Schema | None = None
    ) -> PartFile:
        chosen = schema or SCHEMAS[table]
        with PartWriter(dataset.storage, table, f"{number:032x}", chosen, number) as writer:
            writer.write(pa.Table.from_pylist(rows, schema=chosen))
        return writer.part()

    return write


@pytest.fixture
def builder() -> Callable[..., "subprocess.Popen[str]"]:
    """Return a function that starts a builder process: see builder.py for its arguments."""

    def start(*arguments: object) -> "subprocess.Popen[str]":
        return subprocess.Popen(
            [sys.executable, Path(__file__).with_name("builder.py"), *map(str, arguments)],
            env=os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    return start


@pytest.fixture
def facts() -> VersionFacts:
    return VersionFacts("dataset: birds\n", "0" * 64, "0.1.0", [{"path": "x.csv"}], [{"name": "download"}], 7)


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
