"""Forecasts of several stages: sums, prices, and sources that were built whole."""

import json
import math

import pytest

from flows.forecast.forecast import as_measured, forecast
from flows.forecast.measurements import MeasuredPart, MeasuredStage, ProbedStage
from flows.forecast.rendering import describe
from flows.recipe.recipe import Prices
from tasks.filter import Filter
from tasks.stage import Size
from tests.flows.forecast.stages_of_known_cost import forecast_one, part_by_part, target_of


def test_prices_gpus_and_totals() -> None:
    prices = Prices(currency="EUR", gpu_hour=2.0, gb_month=0.5)
    small, large = part_by_part(250, 4, slots=2), part_by_part(1000, 4, slots=2)
    probed = ProbedStage(small, large, small, target_of(720_000, slots=2, gpus=1.0))
    both = forecast([probed, probed], prices)
    found = both.stages[0]
    assert found.seconds.value == pytest.approx(3600)
    assert found.gpu_hours.value == pytest.approx(2)
    assert found.cost is not None
    assert found.cost.value == pytest.approx(4)
    assert both.total.seconds.value == pytest.approx(7200)
    assert both.total.cost is not None
    assert both.total.cost.value == pytest.approx(8)
    # stages of one machine share its noise, not their own: more than independent ones, less than all the same
    spread = found.seconds.high - found.seconds.low
    assert math.sqrt(2) * spread < both.total.seconds.high - both.total.seconds.low < 2 * spread
    assert both.total.bytes.high == 2 * found.bytes.high
    described = json.loads(json.dumps(describe(both, prices)))
    assert (described["currency"], described["level"]) == ("EUR", 0.9)
    assert described["storage_cost_per_month"]["value"] == pytest.approx(2 * found.bytes.value / 1e9 * 0.5)
    assert forecast([probed], None).total.cost is None


def test_the_same_probe_gives_the_same_forecast() -> None:
    small, large = part_by_part(250, 4, slots=2), part_by_part(1000, 4, slots=2)
    assert forecast_one(small, large, target_of(10**6)) == forecast_one(small, large, target_of(10**6))


def test_a_source_that_ran_whole_is_as_measured() -> None:
    made = part_by_part(1000, 4)
    found = as_measured([(made, target_of(1000))], Prices(cpu_hour=1)).total
    assert (found.rows.low, found.rows.value, found.rows.high) == (800, 800, 800)
    assert found.seconds.value == pytest.approx(made.seconds)
    assert found.seconds.low < made.seconds < found.seconds.high
    assert found.cost is not None


def test_no_rows_and_one_part_break_nothing() -> None:
    empty = MeasuredStage(Filter(where="true"), Size(4), 0.0, 1, (MeasuredPart(4, 0, 500, 0.0),))
    found = forecast_one(empty, empty, target_of(10_000, stage=Filter(where="true")))
    assert (found.rows.value, found.seconds.value) == (0, 0)
