"""Forecast the build of a whole source from three builds of a few of its rows (`flows.forecast.probe` makes them).

Every number has a 90 % prediction interval: of a hundred probes, about ninety give an interval that contains the true
value. `time_model` forecasts times and `size_model` rows and bytes; costs follow from them and from the recipe's
prices.
"""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from flows.forecast.interval import DRAWS, ZERO, Draws, Range
from flows.forecast.measurements import MeasuredStage, ProbedStage, Quantity, TargetStage
from flows.forecast.size_model import grown
from flows.forecast.time_model import Noise, log_ratio, seconds
from flows.recipe.recipe import Prices


@dataclass(frozen=True)
class StageForecast:
    """The forecast of one stage over the whole source, or of all stages together."""

    stage: str
    use: str
    law: str
    """What the work of the stage grows with."""
    parts: int
    rows: Range
    bytes: Range
    received: Range
    seconds: Range
    gpu_hours: Range
    cost: Range | None


@dataclass(frozen=True)
class Forecast:
    """The forecast of every stage, and their sum. The rows of `total` are those of the last stage."""

    stages: tuple[StageForecast, ...]
    total: StageForecast


class _Quantities(NamedTuple):
    """What is forecast of one stage, before its costs."""

    rows: Range
    bytes: Range
    received: Range
    seconds: Draws


def forecast(probed: Sequence[ProbedStage], prices: Prices | None) -> Forecast:
    """Return the forecast of the stages of a recipe, in their order, and of all of them together."""
    rng = np.random.default_rng(0)
    machine = Noise(rng, log_ratio([p.before for p in probed], [p.after for p in probed]))
    return _priced([p.target for p in probed], [_quantities(p, machine, rng) for p in probed], prices)


def as_measured(built: Sequence[tuple[MeasuredStage, TargetStage]], prices: Prices | None) -> Forecast:
    """Return the forecast of stages that were measured over the whole source.

    Rows and bytes are exact; the intervals of times are those of another build of the same source.
    """
    rng = np.random.default_rng(0)
    machine = Noise(rng)
    stages = []
    for measured, _ in built:
        own = Noise(rng)
        drawn = measured.seconds * np.exp(machine.draw() + machine.draw() + own.draw() + own.draw())
        stages.append(
            _Quantities(_exact(measured, "rows"), _exact(measured, "bytes"), _exact(measured, "received"), drawn)
        )
    return _priced([target for _, target in built], stages, prices)


def _exact(measured: MeasuredStage, quantity: Quantity) -> Range:
    total = measured.total(quantity)
    return Range(total, total, total)


def _quantities(probed: ProbedStage, machine: Noise, rng: np.random.Generator) -> _Quantities:
    own = Noise(rng, log_ratio([probed.before], [probed.after]) - machine.measured)
    drawn = seconds(probed, machine, own, rng)
    return _Quantities(grown(probed, "rows"), grown(probed, "bytes"), grown(probed, "received"), drawn)


def _priced(targets: Sequence[TargetStage], stages: Sequence[_Quantities], prices: Prices | None) -> Forecast:
    """Return the forecasts and their sums. Costs are those of all cores of this machine, and of the GPUs in use."""
    core_hour = (os.cpu_count() or 1) * prices.cpu_hour if prices else 0.0
    totals: dict[str, Draws] = {name: np.zeros(1 + DRAWS) for name in ("seconds", "gpu_hours", "cost")}
    forecasts = []
    for target, stage in zip(targets, stages, strict=True):
        gpu_hours = stage.seconds / 3600 * target.gpus * min(target.slots, target.parts)
        cost = stage.seconds / 3600 * core_hour + gpu_hours * (prices.gpu_hour if prices else 0.0)
        draws = {"seconds": stage.seconds, "gpu_hours": gpu_hours, "cost": cost}
        names = (target.stage.name, target.stage.use, target.stage.grows_with)
        forecasts.append(_stage_forecast(names, target.parts, stage, draws, prices))
        totals = {name: totals[name] + each for name, each in draws.items()}
    parts = sum(target.parts for target in targets)
    size, received = (sum((getattr(s, name) for s in stages), ZERO) for name in ("bytes", "received"))
    last = _Quantities(stages[-1].rows, size, received, totals["seconds"])
    return Forecast(tuple(forecasts), _stage_forecast(("total", "", ""), parts, last, totals, prices))


def _stage_forecast(
    names: tuple[str, str, str], parts: int, stage: _Quantities, draws: Mapping[str, Draws], prices: Prices | None
) -> StageForecast:
    seconds_, gpu_hours, cost = (Range.of(draws[name]) for name in ("seconds", "gpu_hours", "cost"))
    sizes = (stage.rows, stage.bytes, stage.received)
    return StageForecast(*names, parts, *sizes, seconds_, gpu_hours, cost if prices else None)
