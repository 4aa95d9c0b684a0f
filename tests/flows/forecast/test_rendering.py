"""Forecasts as a terminal shows them."""

import io

import pytest

from flows.forecast.forecast import Forecast, StageForecast
from flows.forecast.interval import Range
from flows.forecast.rendering import render
from flows.recipe.recipe import Prices


def shown(total: StageForecast, prices: Prices | None) -> str:
    from rich.console import Console

    console = Console(width=80, record=True, file=io.StringIO())
    console.print(render(Forecast((total,), total), prices))
    return console.export_text()


def forecast_of(seconds: float, cost: Range | None = None) -> StageForecast:
    """Return a forecast whose numbers are these, half and one and a half times."""
    rows, size, received, time, gpus = (Range(x / 2, x, x * 1.5) for x in (2e6, 12e9, 3e9, seconds, 0.006))
    return StageForecast("deduplicate", "deduplicate", "rows^2 / k", 3, rows, size, received, time, gpus, cost)


def test_a_forecast_fits_into_eighty_columns() -> None:
    text = shown(forecast_of(6000), Prices(currency="EUR", gb_month=0.5))
    assert max(map(len, text.splitlines())) <= 80
    for line in (
        "deduplicate  rows^2 / k  2,000,000  12,000.0  100 min  50 .. 150 min",
        "time       100 min    50 .. 150 min",
        "rows left  2,000,000  1,000,000 .. 3,000,000",
        "received   3.0 GB     1.5 .. 4.5 GB",
        "written    12.0 GB    6.0 .. 18.0 GB",
        "GPU hours  0.006      0.003 .. 0.009",
        "cost       unknown",
    ):
        assert line in text, text
    priced = shown(forecast_of(6000, Range(1, 2, 3)), Prices(currency="EUR", gb_month=0.5))
    assert "cost       2.00 EUR          1.00 .. 3.00 EUR" in priced
    assert "storage    6.00 EUR a month  3.00 .. 9.00 EUR a month" in priced


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(4.24, "4.2 s"), (42, "42.0 s"), (110, "110 s"), (200, "3.3 min"), (7500, "2.1 h"), (864_000, "10.0 days")],
)
def test_times_have_a_unit_that_fits(seconds: float, text: str) -> None:
    assert f" {text} " in shown(forecast_of(seconds), None)
