"""What a build will take, from what the same stages took before on this dataset: rows, bytes, time and cost.

Where nothing was measured yet it says so, since a guess would be taken for a promise. `flows.forecast.forecast`
foretells a
build of which nothing was made yet, from a few rows that were built for it.
"""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from flows.build.plan import Plan, PlannedStage
from flows.build.source_notes import described
from flows.recipe.recipe import Prices

if TYPE_CHECKING:
    from rich.table import Table


@dataclass(frozen=True)
class Estimate:
    """One stage of a plan. None stands for unknown."""

    stage: str
    use: str
    status: str
    """`cached`, `to run` or `partly`."""
    parts: int
    parts_to_run: int
    rows: int | None
    """Expected rows of the parts to run."""
    bytes: int | None
    seconds: float | None
    cost: float | None
    notes: Sequence[Mapping[str, Any]] = ()
    """For the source: what its files have beside its rows."""


@dataclass(frozen=True)
class _Rate:
    """What earlier runs of a stage measured."""

    seconds_per_row: float
    bytes_per_row: float
    share: float
    """Rows of the stage for each row of the source."""


def estimate(plan: Plan) -> list[Estimate]:
    """Return an estimate a stage. Rates are those of earlier runs of the stage of that name and use."""
    rates = _rates(plan)
    return [_estimate(planned, plan, rates.get((planned.stage.name, planned.stage.use))) for planned in plan.stages]


def _rates(plan: Plan) -> dict[tuple[str, str], _Rate]:
    runs = [r for r in plan.dataset.runs().to_pylist() if r["status"] == "completed" and r["rows"]]
    shares = _shares(plan)
    rates = {}
    for key in {(r["stage"], r["use"]) for r in runs}:
        mine = [r for r in runs if (r["stage"], r["use"]) == key]
        rows = sum(r["rows"] for r in mine)
        rates[key] = _Rate(
            sum(r["seconds"] for r in mine) / rows, sum(r["bytes"] for r in mine) / rows, shares.get(key[0], 1.0)
        )
    return rates


def _shares(plan: Plan) -> dict[str, float]:
    """Return how many rows each stage of the last version had for one of its source."""
    last = plan.dataset.last()
    stages: Sequence[Mapping[str, Any]] = last.stages if last else ()
    source = stages[0]["rows"] if stages else 0
    return {s["name"]: s["rows"] / source for s in stages} if source else {}


def _estimate(planned: PlannedStage, plan: Plan, rate: _Rate | None) -> Estimate:
    stage = planned.stage
    rows = _source_rows(planned, plan)
    seconds = size = cost = expected = None
    if not planned.missing:
        expected, size, seconds, cost = 0, 0, 0.0, 0.0
    elif rate is not None and rows is not None:
        expected = round(rows * rate.share)
        seconds, size = expected * rate.seconds_per_row, round(expected * rate.bytes_per_row)
        cost = _cost(seconds, planned, plan.recipe.prices)
    elif rows is not None and planned is plan.stages[0]:
        expected = rows
    notes = described(plan.notes) if planned is plan.stages[0] else ()
    parts = len(planned.parts), len(planned.missing)
    return Estimate(stage.name, stage.use, planned.status, *parts, expected, size, seconds, cost, notes)


def _source_rows(planned: PlannedStage, plan: Plan) -> int | None:
    """Return how many rows of the source the parts to run stand for."""
    whole = any(p.number is None for p in planned.missing)
    parts = plan.stages[0].parts if whole else planned.missing
    rows = [p.rows for p in parts]
    return None if None in rows else sum(r for r in rows if r is not None)


def _cost(seconds: float, planned: PlannedStage, prices: Prices | None) -> float | None:
    """Return the cost of all cores of this machine (on which the rate was measured), and the GPUs asked for."""
    if prices is None:
        return None
    gpus = planned.stage.resources.gpus
    per_hour = (os.cpu_count() or 1) * prices.cpu_hour + (float(gpus) if gpus != "auto" else 0.0) * prices.gpu_hour
    return seconds / 3600 * per_hour


def render(estimates: Sequence[Estimate], prices: Prices | None) -> "Table":
    """Return the estimates as a table for a terminal."""
    table = _table(("stage", "status"), ("parts", "to run", "rows", "MB", "time", _cost_title(prices)))
    for e in estimates:
        style = "dim" if e.status == "cached" else ""
        table.add_row(e.stage, e.status, f"{e.parts:,}", f"{e.parts_to_run:,}", *_cells(e), style=style)
    table.add_section()
    table.add_row("total", "", "", f"{sum(e.parts_to_run for e in estimates):,}", *_totals(estimates), style="bold")
    return table


def _table(left: Sequence[str], right: Sequence[str]) -> "Table":
    from rich.table import Table

    table = Table(box=None, header_style="bold")
    for name in left:
        table.add_column(name)
    for name in right:
        table.add_column(name, justify="right")
    return table


def _cost_title(prices: Prices | None) -> str:
    return f"cost ({prices.currency})" if prices else "cost"


def _cells(e: Estimate) -> tuple[str, str, str, str]:
    if not e.parts_to_run:
        return "", "", "", ""
    return (
        "unknown" if e.rows is None else f"{e.rows:,}",
        "unknown" if e.bytes is None else f"{e.bytes / 1e6:,.1f}",
        "unknown" if e.seconds is None else duration(e.seconds),
        "unknown" if e.cost is None else f"{e.cost:,.2f}",
    )


def _totals(estimates: Sequence[Estimate]) -> tuple[str, str, str, str]:
    """Return the sums; what is unknown in one stage is unknown in all."""
    sizes, seconds, costs = ([getattr(e, n) for e in estimates] for n in ("bytes", "seconds", "cost"))
    return (
        "",
        "unknown" if None in sizes else f"{sum(sizes) / 1e6:,.1f}",
        "unknown" if None in seconds else duration(sum(seconds)),
        "unknown" if None in costs else f"{sum(costs):,.2f}",
    )


def duration(seconds: float) -> str:
    """Return a time as people say it: 42 s, 3 min 20 s, 2 h 5 min."""
    whole = round(seconds)
    if whole < 60:
        return f"{seconds:.1f} s" if seconds < 10 else f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"
