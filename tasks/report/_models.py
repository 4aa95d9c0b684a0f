"""The models that a dataset was made with."""

import json
from collections.abc import Iterator
from typing import Any, Final

from catalog.duck import identifier
from tasks.report._base import Entry, ReportTables

MODELS: Final = 100
"""Maximum number of models on the card, in the order of their names."""
LOSSES: Final = 1000
"""Losses of a model on the card, at equal steps."""
METRICS_CHARS: Final = 20_000
"""Longer metrics are reduced to `loss`."""
SHOWN: Final = ("name", "family", "sha256", "licence", "metrics")


def models(tables: ReportTables) -> Iterator[Entry]:
    """Yield the section `model`: the columns of each model, without its weights. `metrics.loss` is a list, by step."""
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
