import pyarrow as pa

from catalog.inputs import Inputs
from catalog.schema import MODELS
from tasks.report._base import ReportTables
from tasks.report._models import models


def test_models_are_told_without_their_weights_and_broken_metrics_are_none() -> None:
    rows = [
        {"name": "b", "metrics": "{not json", "weights": b"x" * 100},
        {"name": "a", "metrics": '{"loss": [1, 2]}', "licence": "MIT"},
        {"name": "c", "metrics": None},
    ]
    inputs = Inputs.of(alive_only=False, models=pa.Table.from_pylist(rows, MODELS))
    found = [entry.content for entry in models(ReportTables(inputs))]
    assert [row["name"] for row in found] == ["a", "b", "c"]
    assert [row["metrics"] for row in found] == [{"loss": [1, 2]}, None, None]
    assert all("weights" not in row for row in found)
