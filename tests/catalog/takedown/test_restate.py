"""Versions have the row counts of the files as they are now, after files were replaced in place."""

from collections.abc import Callable, Mapping
from typing import Any

from catalog.dataset import Dataset
from catalog.parts import PartFile
from catalog.schema import DECISIONS, SOURCE
from catalog.takedown.amend import amend
from catalog.takedown.restate import restate
from catalog.version import TableState, VersionFacts

WritePart = Callable[..., PartFile]


def test_stages_that_share_a_table_are_counted_apart(local_dataset: Dataset, write_part: WritePart) -> None:
    rows = [{"sample_id": i, "stage": stage, "keep": True} for i in range(3) for stage in ("filter", "prune")]
    source = write_part(local_dataset, "source", 0, [{"sample_id": i} for i in range(3)])
    judged = write_part(local_dataset, "decisions", 0, rows)
    stages: list[Mapping[str, Any]] = [
        {"name": "source", "table": "source", "rows": 3, "bytes": source.bytes},
        {"name": "filter", "table": "decisions", "rows": 3, "bytes": 1},
        {"name": "prune", "table": "decisions", "rows": 3, "bytes": 1},
        {"name": "note"},
    ]
    facts = VersionFacts("", "0" * 64, "1", stages=stages)
    tables = {"source": TableState(SOURCE, [source]), "decisions": TableState(DECISIONS, [judged])}
    local_dataset.publish(tables, facts)
    now = write_part(local_dataset, "decisions", 0, [row for row in rows if row != rows[-1]])
    amend(local_dataset.storage, "decisions", [now.path])
    assert restate(local_dataset, ["decisions"]) == [1]
    version = local_dataset.version()
    assert version.tables["decisions"].rows == 5
    assert version.tables["source"].rows == 3
    assert [stage.get("rows") for stage in version.stages] == [3, 3, 2, None]
    assert restate(local_dataset, ["decisions"]) == []
