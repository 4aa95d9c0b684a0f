"""One small web for all tests of the demo: planted once, served once."""

from collections.abc import Iterator

import pytest

from flows.demo.corpus import Plan, plant
from flows.demo.server import serve


@pytest.fixture(scope="session")
def web(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Plan]:
    folder = tmp_path_factory.mktemp("web")
    with serve(folder, port=0) as url:
        yield plant(folder, rows=400, seed=3, base_url=url)
