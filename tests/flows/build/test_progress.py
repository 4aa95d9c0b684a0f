"""The progress display of a build; sizes count the images."""

import re
from pathlib import Path

import pytest

from flows.build.build import build_here
from flows.build.context import BuildContext
from flows.build.progress import RichDisplay
from flows.build.spec import BuildSpec
from tests.flows.conftest import Web


def test_the_line_of_a_stage_counts_its_images(web: Web, capsys: pytest.CaptureFixture[str]) -> None:
    build_here(BuildSpec.read(web.recipe(), catalog=web.catalog, executor="inline"), BuildContext(RichDisplay()))
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("download")]
    dataset = Path(web.catalog) / "web"
    files = [*(dataset / "images").glob("*.parquet"), *(dataset / "shards").iterdir()]
    size = sum(path.stat().st_size for path in files)
    assert sum(path.stat().st_size for path in (dataset / "shards").glob("*.tar")) > size / 2
    found = re.search(r"([\d,.]+) MB", line)
    assert found
    assert float(found[1]) == pytest.approx(size / 1e6, abs=0.051)
