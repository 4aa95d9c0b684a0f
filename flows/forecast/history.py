"""Estimate the rows, bytes, time and cost of a build from earlier runs of the same stages on this dataset.

The time of a stage is its work (`Stage.work`: rows, comparisons, training steps) times the time that earlier runs took
for a unit of work. A stage that was never measured is estimated as unknown, because a guess would be taken for a
promise. `flows.forecast.forecast` estimates a build of which nothing was made yet, from a few rows.
"""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from flows.build.plan import Plan, PlannedStage
from flows.build.source_notes import described
from flows.recipe.recipe import Prices
from tasks.stage import Stage

if TYPE_CHECKING:
    from rich.table import Table


@dataclass(frozen=True)
class Estimate:
    """The estimate of one stage of a plan. None means unknown."""

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
    """For the source: what its files hold that is not in its rows."""


@dataclass(frozen=True)
class _Rate:
    """What earlier runs of a stage measured."""

    seconds_per_work: float | None
    """None where no run recorded its work."""
    seconds_per_row: float
    bytes_per_row: float
    share: float
    """Rows of the stage for each row of the source."""

    def seconds(self, planned: PlannedStage, plan: Plan, rows: int) -> float | None:
        """Return the time of the parts to run, which will have `rows` rows; None where it is unknown."""
        size = plan.size(planned.missing)
        if self.seconds_per_work is not None and size is not None:
            return self.seconds_per_work * planned.stage.work(size)
        # Runs of older releases recorded no work, but the rows, to which the default law is proportional.
        return self.seconds_per_row * rows if type(planned.stage).work is Stage.work else None


def estimate(plan: Plan) -> list[Estimate]:
    """Return one estimate per stage, from earlier runs of the stage with the same name and `use`."""
    rates = _rates(plan)
    return [_estimate(planned, plan, rates.get((planned.stage.name, planned.stage.use))) for planned in plan.stages]


def _rates(plan: Plan) -> dict[tuple[str, str], _Rate]:
    runs = [r for r in plan.dataset.runs().to_pylist() if r["status"] == "completed" and r["rows"]]
    shares = _shares(plan)
    rates = {}
    for key in {(r["stage"], r["use"]) for r in runs}:
        mine = [r for r in runs if (r["stage"], r["use"]) == key]
        rows, seconds, size = (sum(r[name] for r in mine) for name in ("rows", "seconds", "bytes"))
        rates[key] = _Rate(_per_work(mine), seconds / rows, size / rows, shares.get(key[0], 1.0))
    return rates


def _per_work(runs: Sequence[Mapping[str, Any]]) -> float | None:
    """Return the seconds for a unit of work, of the runs that recorded their work."""
    measured = [r for r in runs if r["work"]]
    return sum(r["seconds"] for r in measured) / sum(r["work"] for r in measured) if measured else None


def _shares(plan: Plan) -> dict[str, float]:
    """Return how many rows each stage of the last version had for each row of its source."""
    last = plan.dataset.last()
    stages: Sequence[Mapping[str, Any]] = last.stages if last else ()
    source = stages[0]["rows"] if stages else 0
    return {s["name"]: s["rows"] / source for s in stages} if source else {}


def _estimate(planned: PlannedStage, plan: Plan, rate: _Rate | None) -> Estimate:
    stage = planned.stage
    built = plan.size(planned.missing)
    rows = None if built is None else built.rows
    seconds = size = cost = expected = None
    if not planned.missing:
        expected, size, seconds, cost = 0, 0, 0.0, 0.0
    elif rate is not None and rows is not None:
        expected = round(rows * rate.share)
        seconds, size = rate.seconds(planned, plan, expected), round(expected * rate.bytes_per_row)
        cost = None if seconds is None else _cost(seconds, planned, plan.recipe.prices)
    elif rows is not None and planned is plan.stages[0]:
        expected = rows
    notes = described(plan.notes) if planned is plan.stages[0] else ()
    parts = len(planned.parts), len(planned.missing)
    return Estimate(stage.name, stage.use, planned.status, *parts, expected, size, seconds, cost, notes)


def _cost(seconds: float, planned: PlannedStage, prices: Prices | None) -> float | None:
    """Return the cost of all cores of this machine (on which the rate was measured), and of the GPUs requested."""
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
    """Return the sums. A sum is unknown where the value of one stage is."""
    sizes, seconds, costs = ([getattr(e, n) for e in estimates] for n in ("bytes", "seconds", "cost"))
    return (
        "",
        "unknown" if None in sizes else f"{sum(sizes) / 1e6:,.1f}",
        "unknown" if None in seconds else duration(sum(seconds)),
        "unknown" if None in costs else f"{sum(costs):,.2f}",
    )


def duration(seconds: float) -> str:
    """Return a time in the largest two units that fit: 42 s, 3 min 20 s, 2 h 5 min."""
    whole = round(seconds)
    if whole < 60:
        return f"{seconds:.1f} s" if seconds < 10 else f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"
