"""The models that a dataset was made with."""

import json
from collections.abc import Iterator
from typing import Any, Final

from tasks.report._base import Entry, Evidence, quoted

SHOWN: Final = ("name", "family", "sha256", "licence", "metrics")


def models(evidence: Evidence) -> Iterator[Entry]:
    """Yield the section `model`: what is said of each model, without its weights. `metrics.loss` is a list, by step."""
    if not evidence.has("models", "name"):
        return
    columns = ", ".join(quoted(name) for name in SHOWN if evidence.has("models", name))
    for row in evidence.rows(f"select {columns} from models order by name"):
        yield Entry("model", row | {"metrics": _parsed(row.get("metrics"))})


def _parsed(text: str | None) -> Any:
    try:
        return json.loads(text or "null")
    except json.JSONDecodeError:
        return None
