"""Measurements of stages whose cost is known, for tests of forecasts."""

import random

import pytest

from flows.forecast.forecast import StageForecast, forecast
from flows.forecast.interval import Range
from flows.forecast.measurements import MeasuredPart, MeasuredStage, ProbedStage, TargetStage, busy_slots
from flows.recipe.recipe import Prices
from tasks.download import Download
from tasks.stage import Size, Stage

ROWS_A_PART = 10_000


def part_by_part(
    rows: int,
    parts: int,
    slots: int = 1,
    start_s: float = 0.0,
    part_s: float = 0.0,
    row_s: float = 0.01,
    share: float = 0.8,
    overhead: int = 5000,
    noise: float = 0.0,
    seed: int = 0,
) -> MeasuredStage:
    """Return what is measured of a stage whose cost is known: every slot starts, then makes its parts."""
    rng = random.Random(seed)
    each, made, clock = rows // parts, [], [start_s] * slots
    for i in range(parts):
        off = 1 + rng.uniform(-noise, noise)
        clock[i % slots] += (part_s + each * row_s) * off
        made.append(
            MeasuredPart(each, round(each * share * off), round((overhead + each * 300) * off), clock[i % slots])
        )
    return MeasuredStage(Download(), Size(rows), max(clock), slots, tuple(made))


def target_of(
    rows: int,
    slots: int = 1,
    stage: Stage | None = None,
    clusters: int = 1,
    gpus: float = 0.0,
    parts: int | None = None,
) -> TargetStage:
    """Return the build of `rows` rows that is forecast."""
    parts = parts or -(-rows // ROWS_A_PART)
    busy = busy_slots([rows // parts] * parts, slots)
    return TargetStage(stage or Download(), Size(rows, clusters), parts, slots, busy, gpus)


def within(range_: Range, truth: float, tolerance: float) -> None:
    """Check that a range and its estimate agree with the true value."""
    assert range_.low <= truth * (1 + tolerance)
    assert range_.high >= truth * (1 - tolerance)
    assert range_.value == pytest.approx(truth, rel=tolerance)


def forecast_one(
    small: MeasuredStage,
    large: MeasuredStage,
    target: TargetStage,
    prices: Prices | None = None,
    after: MeasuredStage | None = None,
) -> StageForecast:
    """Return the forecast of one stage; both small builds are alike unless `after` is given."""
    return forecast([ProbedStage(small, large, after or small, target)], prices).stages[0]


def at_once(stage: Stage, rows: int, seconds: float, clusters: int = 1, kept: float = 0.5) -> MeasuredStage:
    """Return what is measured of a stage over whole tables."""
    return MeasuredStage(
        stage, Size(rows, clusters), seconds, 1, (MeasuredPart(rows, round(rows * kept), rows * 20, seconds),)
    )
