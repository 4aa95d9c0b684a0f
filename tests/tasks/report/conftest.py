"""One small gallery, and the card of it, for every test of the report."""

import json
from typing import Any

import pyarrow as pa
import pytest

from tasks.report import Report
from tests.helpers import LocalRun
from tests.tasks.report.gallery import Gallery, gallery


@pytest.fixture(scope="session")
def photos() -> Gallery:
    return gallery(rows=120, edge_px=60)


@pytest.fixture(scope="session")
def card(photos: Gallery, tmp_path_factory: pytest.TempPathFactory) -> pa.Table:
    (table,) = Report(description="Twelve photographs, cut up.").run(
        photos.inputs, LocalRun(tmp_path_factory.mktemp("run"))
    )
    return table


@pytest.fixture(scope="session")
def sections(card: pa.Table) -> dict[str, list[dict[str, Any]]]:
    """The content of every section of the card, in order."""
    found: dict[str, list[dict[str, Any]]] = {}
    for row in card.to_pylist():
        found.setdefault(row["section"], []).append(json.loads(row["content"]))
    return found
