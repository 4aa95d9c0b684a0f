"""A local folder and a real S3-protocol server on loopback, and small real parts."""

import os
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from catalog.dataset import Catalog, Dataset
from catalog.parts import PartFile, PartWriter
from catalog.schema import DECISIONS, IMAGES, SOURCE
from catalog.storage import Storage
from catalog.version import VersionFacts

WritePart = Callable[..., PartFile]


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
