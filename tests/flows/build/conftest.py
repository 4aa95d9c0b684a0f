"""Fixtures for the tests of builds: an engine on Ray, and a dataset without stages."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from flows.build.engine import Engine
from flows.build.ray_engine import RayEngine
from tests.flows.shelf import Shelf


@pytest.fixture
def ray_engine(ray_started: None) -> Iterator[Engine]:
    with RayEngine.start() as engine:
        yield engine


@pytest.fixture
def shelf(tmp_path: Path) -> Shelf:
    return Shelf(tmp_path / "catalog")
