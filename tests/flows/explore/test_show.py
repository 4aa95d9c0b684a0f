"""How one version, and the difference between two, are shown: as JSON values and as text."""

import io
import json
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import pytest
from rich.console import Console, RenderableType

from catalog.diff import Change, Diff, Example, Rows, diff
from catalog.version import Version
from flows.explore.show import describe, describe_diff, render, render_diff
from tests.flows.vectors import Planted


def text_of(shown: RenderableType, width: int = 200) -> str:
    console = Console(file=io.StringIO(), width=width)
    console.print(shown)
    return str(console.file.getvalue())  # type: ignore[attr-defined]  # it is the buffer above


@pytest.fixture
def version(tmp_path: Path) -> Version:
    made = Planted(tmp_path).publish([0, 1], held=["min_rows: 600 rows are kept", "outage: no network"])
    stages = [{"name": "embed", "table": "embeddings"}, {"name": "again", "table": "embeddings"}]
    inputs = [{"uri": f"/urls/[bold]{n}.parquet", "rows": 1000 + n, "sha256": f"{n:064x}"} for n in range(23)]
    return replace(made, stages=stages, inputs=inputs, created_at=datetime(2024, 5, 1, 12, 30, 7, tzinfo=UTC))


def test_a_version_as_json(version: Version) -> None:
    found = describe(version)
    assert json.loads(json.dumps(found)) == found
    assert (found["version"], found["created_at"]) == ("birds@1", "2024-05-01T12:30:07+00:00")
    assert (found["held"], found["approved_at"]) == (list(version.held), None)
    assert found["tables"]["samples"] == {"rows": 600, "bytes": version.tables["samples"].bytes, "parts": 2}
    assert (len(found["inputs"]), found["recipe"]) == (23, "dataset: birds\n")
    approved = replace(version, approved_at=datetime(2024, 5, 2, 8, 0, tzinfo=UTC))
    assert describe(approved)["approved_at"] == "2024-05-02T08:00:00+00:00"


def test_a_version_as_text(version: Version) -> None:
    """Markup in the names of inputs is text; after 20 inputs their number is shown."""
    shown = text_of(render(version))
    assert "birds@1  published 2024-05-01 12:30 UTC by espalier test" in shown
    assert "held: min_rows: 600 rows are kept\nheld: outage: no network" in shown
    rows = {line.split()[0]: line.split() for line in shown.splitlines() if line.split()}
    assert rows["samples"][1:4:2] == ["600", "2"]
    assert rows["embeddings"][-2:] == ["embed,", "again"]
    assert rows["/urls/[bold]0.parquet"] == ["/urls/[bold]0.parquet", "1,000", "0" * 12]
    assert "/urls/[bold]19.parquet" in shown
    assert "/urls/[bold]20.parquet" not in shown
    assert "and 3 more" in shown
    assert "dataset: birds" in shown
    approved = replace(version, approved_at=datetime(2024, 5, 2, 8, 0, tzinfo=UTC))
    assert "approved 2024-05-02 08:00 UTC; held: outage: no network" in text_of(render(approved))


def test_a_difference(tmp_path: Path) -> None:
    birds = Planted(tmp_path)
    birds.publish([0])
    birds.publish([0, 1], without=frozenset({7}), attempt=1)
    found = diff(birds.catalog, "birds@1", "birds@2", 3)
    facts = describe_diff(found)
    assert json.loads(json.dumps(facts)) == facts | {"rows": json.loads(json.dumps(facts["rows"]))}
    assert (facts["a"], facts["b"], facts["key"], facts["decisions"]) == ("birds@1", "birds@2", "sample_id", [])
    assert {row["table"]: (row["added"], row["removed"]) for row in facts["rows"]} == {
        "source": (300, 1),
        "samples": (300, 1),
    }
    shown = text_of(render_diff(found))
    assert shown.startswith("birds@1 -> birds@2  (rows are the same where their sample_id is)\n")
    assert "http://h/16777216.jpg" in shown
    assert "no decision changed" in shown


def test_changes_of_decisions(version: Version) -> None:
    """Two examples of each are shown, by their URL or else their id, with markup as text."""
    examples = [Example(1, "http://h/[red]1.jpg"), Example(2, None), Example(3, "http://h/3.jpg")]
    found = Diff(
        version,
        replace(version, number=2),
        "url",
        [Rows("source", 1234, 0, [], [])],
        [Change("filter", "kept", "too_small", 5678, examples)],
    )
    assert describe_diff(found)["decisions"][0]["examples"][1] == {"sample_id": 2, "url": None}
    shown = text_of(render_diff(found))
    assert "1,234" in shown
    (line,) = [line for line in shown.splitlines() if "filter" in line]
    assert line.split() == ["filter", "kept", "too_small", "5,678", "http://h/[red]1.jpg,", "2"]
    assert "no decision changed" not in shown
