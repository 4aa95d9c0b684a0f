"""Render a card as one self-contained HTML file: no script, no font, no request.

All text is escaped, stripped of invisible characters and direction overrides, and truncated; in addition a
Content-Security-Policy forbids scripts and requests. Charts are SVG.
"""

import json
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from math import isfinite
from pathlib import Path
from typing import Any, Final

import pyarrow as pa

from tasks.pages import text
from tasks.pages.template import template
from tasks.report import _charts as charts
from tasks.report import _coverage as coverage

Row = dict[str, Any]

CURVE_POINTS: Final = 300


@dataclass(frozen=True)
class Section:
    """The rows of one section in order; `image` is among their fields."""

    rows: tuple[Row, ...] = ()

    @property
    def only(self) -> Row:
        """Return the section's only row; an empty one if there is none."""
        return self.rows[0] if self.rows else {}


def render(card: pa.Table, lineage: Mapping[str, Any], timings: Sequence[Mapping[str, Any]] = ()) -> str:
    """Return the HTML of a card.

    Args:
        card: the table of `tasks.report.report.Report`, schema CARD.
        lineage: dataset, version, created_at, recipe (YAML text), code_version, inputs (uri, sha256, rows) and
            stages (name, use, table, version, fingerprint, parts, rows, bytes, notes). Missing ones are omitted.
        timings: stage, seconds, rows, parts, cached_parts, bytes; one a stage, of the build that made its
            newest parts; `parts` are those that it made then, `cached_parts` those that were there already.
    """
    sections = _sections(card)
    summary = sections["summary"].only
    context = {
        "title": text.clean(summary.get("title") or lineage.get("dataset") or "Untitled dataset", 120),
        "summary": {"rows": 0, "kept": 0} | dict.fromkeys(("description", "concepts", "kept_bytes")) | summary,
        "steps": _steps(sections["funnel"].rows),
        "grids": [
            (
                "What came in",
                "All images that were fetched and decoded. Crossed out: rejected later.",
                sections["before"],
            ),
            ("What is left", "The same random order, of the rows that were kept.", sections["after"]),
        ],
        "rejected": _grouped(sections["rejected"].rows, "stage", "reason"),
        "concepts": _concepts(sections),
        "balance": _balance(sections["balance"].only),
        "coverages": _coverages(sections),
        "histograms": [_histogram(row) for row in sections["histogram"].rows],
        "pairs": [pair for _, pair in _grouped(sections["pair"].rows, "pair")],
        "models": [_model(row) for row in sections["model"].rows],
        "lineage": _lineage(lineage),
        "stages": _stages(lineage.get("stages") or (), timings),
        "notes": [(stage["name"], stage["notes"]) for stage in lineage.get("stages") or () if stage.get("notes")],
        "seconds": sum(timing.get("seconds") or 0 for timing in timings),
    }
    return template(Path(__file__).with_name("page.html.j2")).render(context)


def _sections(card: pa.Table) -> dict[str, Section]:
    rows: dict[str, list[tuple[int, Row]]] = defaultdict(list)
    for row in card.to_pylist():
        rows[row["section"]].append((row["position"], json.loads(row["content"]) | {"image": row["image"]}))
    sections = {
        name: Section(tuple(row for _, row in sorted(found, key=lambda pair: pair[0]))) for name, found in rows.items()
    }
    return defaultdict(Section, sections)


def _grouped(rows: Sequence[Row], *keys: str) -> list[tuple[tuple[Any, ...], list[Row]]]:
    """Group consecutive rows with the same values of `keys`."""
    return [(key, list(run)) for key, run in groupby(rows, lambda row: tuple(row.get(k) for k in keys))]


def _steps(rows: Sequence[Row]) -> list[Row]:
    total = rows[0]["seen"] if rows else 0
    return [
        {"other_rows": 0} | row | {"ribbon": charts.ribbon(row["seen"], row["kept"], total), "total": total}
        for row in rows
    ]


def _concepts(sections: Mapping[str, Section]) -> list[Row]:
    images: dict[tuple[int, bool], list[Row]] = defaultdict(list)
    for row in sections["concept_image"].rows:
        images[row["cluster"], row.get("at") == "edge"].append(row)
    blank = dict.fromkeys(("intra", "inter", "label", "label_cosine"))
    return [
        blank | row | {"images": images[row["cluster"], False], "edge": images[row["cluster"], True]}
        for row in sections["concept"].rows
    ]


def _balance(row: Row) -> Row:
    if not row or row["clusters"] < 2:
        return {}
    top = max(*row["before"]["rows"], *row["after"]["rows"], 1)
    lines = {
        key: charts.curve(row[key]["ranks"], row[key]["rows"], row["clusters"], top, closed=key == "before")
        for key in ("before", "after")
    }
    return row | {"top": top, "lines": lines}


def _coverages(sections: Mapping[str, Section]) -> list[Row]:
    names = {row["cluster"]: " · ".join(row.get("terms") or ()) for row in sections["concept"].rows}
    return [coverage.drawn(row, names) for row in sections["coverage"].rows]


def _histogram(row: Row) -> Row:
    top = charts.histogram_top(row)
    low, high = row["edges"][0], row["edges"][-1]
    place = (row["median"] - low) / (high - low) if high > low else 0.5
    return row | {
        "last": min(high, row["max"]),
        "bars_all": charts.columns(row["all"], top),
        "bars_left": charts.columns(row["left"], top),
        "median_at": round(100 * min(max(place, 0), 1), 2),
    }


def _model(row: Row) -> Row:
    metrics = row.get("metrics")
    losses = metrics.get("loss") if isinstance(metrics, dict) else None
    values = (
        [float(v) for v in losses if isinstance(v, int | float) and isfinite(v)] if isinstance(losses, list) else []
    )
    drawn = values[:: -(-len(values) // CURVE_POINTS) or 1]
    return (
        dict.fromkeys(("family", "sha256", "licence"))
        | row
        | {
            "loss": charts.polyline(drawn) if len(drawn) > 1 else "",
            "first_loss": values[0] if values else None,
            "last_loss": values[-1] if values else None,
        }
    )


def _lineage(lineage: Mapping[str, Any]) -> Row:
    known = ("dataset", "version", "created_at", "recipe", "code_version")
    inputs = [{"uri": None, "sha256": None, "rows": None} | dict(row) for row in lineage.get("inputs") or ()]
    return {key: lineage.get(key) for key in known} | {"inputs": inputs}


def _stages(stages: Sequence[Mapping[str, Any]], timings: Sequence[Mapping[str, Any]]) -> list[Row]:
    """Return one row a stage: what it made, and how long that took where it is known."""
    taken = {timing["stage"]: dict(timing) for timing in timings}
    named = [dict(stage) for stage in stages] or [{"name": timing["stage"]} for timing in timings]
    blank = dict.fromkeys(
        ("use", "table", "version", "fingerprint", "parts", "rows", "bytes", "cached_parts", "seconds")
    )
    longest = max((timing.get("seconds") or 0 for timing in timings), default=0)
    rows: list[Row] = []
    for stage in named:
        timing = {key: value for key, value in taken.get(stage["name"], {}).items() if value is not None}
        row = blank | timing | {key: value for key, value in stage.items() if value is not None}
        row["made"] = timing.get("parts", row["parts"])
        row["rate"] = _rate(row)
        row["share"] = (row["seconds"] or 0) / longest if longest else 0.0
        rows.append(row)
    return rows


def _rate(stage: Row) -> float | None:
    """Return rows a second of a stage that made all of its rows in its time; a rate below 1 says nothing (a model)."""
    rows, seconds = stage["rows"], stage["seconds"]
    if not rows or not seconds or stage["cached_parts"] or rows < seconds:
        return None
    return float(rows / seconds)
