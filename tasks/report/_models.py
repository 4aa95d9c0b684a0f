"""The models that a dataset was made with."""

import json
from collections.abc import Iterator
from typing import Any, Final

from catalog.duck import identifier
from tasks.report._base import Entry, ReportTables

MODELS: Final = 100
"""Models that the card tells, in the order of their names."""
LOSSES: Final = 1000
"""Losses of a model that the card keeps, at equal steps."""
METRICS_CHARS: Final = 20_000
"""Metrics of more characters are cut to `loss`."""
SHOWN: Final = ("name", "family", "sha256", "licence", "metrics")


def models(tables: ReportTables) -> Iterator[Entry]:
    """Yield the section `model`: what is said of each model, without its weights. `metrics.loss` is a list, by step."""
    if not tables.has("models", "name"):
        return
    columns = ", ".join(identifier(name) for name in SHOWN if tables.has("models", name))
    for row in tables.rows(f"select {columns} from models order by name limit {MODELS}"):
        yield Entry("model", row | {"metrics": _parsed(row.get("metrics"))})


def _parsed(text: str | None) -> Any:
    try:
        metrics = json.loads(text or "null")
    except (json.JSONDecodeError, RecursionError):
        return None
    if len(text or "") <= METRICS_CHARS:
        return metrics
    losses = metrics.get("loss") if isinstance(metrics, dict) else None
    return {"loss": losses[:: -(-len(losses) // LOSSES)]} if isinstance(losses, list) and losses else None
