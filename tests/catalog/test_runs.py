"""Runs: appended by many processes, read in the order in which they began."""

from datetime import UTC, datetime, timedelta

import pytest

from catalog.dataset import Dataset
from catalog.runs import RUNS, append, read


def test_runs_are_read_in_the_order_in_which_they_began(dataset: Dataset) -> None:
    assert dataset.runs().num_rows == 0
    started = datetime(2026, 1, 2, 3, 4, 5, 6, tzinfo=UTC)
    dataset.record_run({"run_id": "b", "started_at": started + timedelta(1)}, {"run_id": "a", "started_at": started})
    dataset.record_run({"run_id": "c", "started_at": started + timedelta(2), "rows": 5, "status": "failed"})
    rows = dataset.runs().to_pylist()
    assert [row["run_id"] for row in rows] == ["a", "b", "c"]
    assert (rows[0]["started_at"], rows[2]["rows"], rows[2]["status"]) == (started, 5, "failed")
    with pytest.raises(ValueError, match="no column 'row'; did you mean 'rows'"):
        dataset.record_run({"row": 1})


def test_the_table_has_every_column_before_anything_ran(dataset: Dataset) -> None:
    assert read(dataset.storage).schema == RUNS
    append(dataset.storage, [{"run_id": "a"}])
    assert read(dataset.storage).column_names == RUNS.names
