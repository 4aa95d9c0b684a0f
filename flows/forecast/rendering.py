"""Forecasts as JSON, and as tables for a terminal."""

from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from flows.forecast.forecast import Forecast, StageForecast
from flows.forecast.interval import LEVEL, Range
from flows.recipe.recipe import Prices

if TYPE_CHECKING:
    from rich.console import RenderableType


def describe(forecast: Forecast, prices: Prices | None) -> dict[str, Any]:
    """Return a forecast as JSON."""
    storage = forecast.total.bytes.times(prices.gb_month / 1e9) if prices else None
    return {
        "level": LEVEL,
        "stages": [asdict(f) for f in forecast.stages],
        "total": asdict(forecast.total),
        "storage_cost_per_month": asdict(storage) if storage else None,
        "currency": prices.currency if prices else None,
    }


def render(forecast: Forecast, prices: Prices | None) -> "RenderableType":
    """Return a forecast for a terminal of 80 columns: one line per stage, then the sums with their intervals."""
    from rich.console import Group
    from rich.table import Table

    stages = Table(box=None, header_style="bold", padding=(0, 2, 0, 0))
    for name in ("stage", "grows with"):
        stages.add_column(name)
    for name in ("rows", "MB", "time", "90 % interval"):
        stages.add_column(name, justify="right", no_wrap=True)
    for f in forecast.stages:
        seconds = _time(f.seconds)
        stages.add_row(f.stage, f.law, f"{f.rows.value:,.0f}", f"{f.bytes.value / 1e6:,.1f}", seconds[0], seconds[1])
    sums = Table(box=None, show_header=False, padding=(0, 2, 0, 0))
    sums.add_column(style="bold")
    for row in _sums(forecast.total, prices):
        sums.add_row(*row)
    return Group(stages, "", sums)


def _sums(total: StageForecast, prices: Prices | None) -> list[tuple[str, str, str]]:
    """Return (quantity, estimate, interval)."""
    rows = [("time", *_time(total.seconds)), ("rows left", *_span(total.rows, "{:,.0f}"))]
    if total.received.high:
        rows.append(("received", *_size(total.received)))
    rows.append(("written", *_size(total.bytes)))
    if total.gpu_hours.high:
        rows.append(("GPU hours", *_span(total.gpu_hours, "{:,.3g}")))
    if prices is None or total.cost is None:
        return [*rows, ("cost", "unknown", "the recipe has no `prices`")]
    rows.append(("cost", *_span(total.cost, "{:,.2f} " + prices.currency)))
    storage = total.bytes.times(prices.gb_month / 1e9)
    return [*rows, ("storage", *_span(storage, "{:,.2f} " + prices.currency + " a month"))]


def _time(seconds: Range) -> tuple[str, str]:
    """Return a time and its interval, in a unit that fits the time."""
    units = (("days", 86400.0, 3 * 86400.0), ("h", 3600.0, 7200.0), ("min", 60.0, 120.0), ("s", 1.0, 0.0))
    unit, unit_s = next((name, size) for name, size, least in units if seconds.value >= least)
    form = "{:,.0f} " if seconds.value >= 100 * unit_s else "{:,.1f} "
    return _span(seconds.times(1 / unit_s), form + unit)


def _size(size: Range) -> tuple[str, str]:
    unit, each = next(((n, b) for n, b in (("TB", 1e12), ("GB", 1e9)) if size.value >= b), ("MB", 1e6))
    return _span(size.times(1 / each), "{:,.1f} " + unit)


def _span(range_: Range, form: str) -> tuple[str, str]:
    """Return an estimate, and its interval with the unit at its end only; empty where the interval is a point."""
    low, value, high = (form.format(x) for x in (range_.low, range_.value, range_.high))
    return value, "" if low == high else f"{low.partition(' ')[0]} .. {high}"
