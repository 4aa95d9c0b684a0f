"""The time of a stage: a model of start-up, overhead and work, and of how much times vary.

**The model.** Work grows by the law that the stage declares (`Stage.work`). A small and a large build separate what
grows with the work from what does not. The times at which the parts of the large build ended separate the start-up,
which a build pays once, from the overhead of each part:

    T = start + (overhead * parts + slope * work) / slots

**The noise.** The small and the large build differ in size, so the two cannot show how much the times of equal builds
vary. A probe therefore makes the small build twice, of other rows, before and after the large one. Each measured time
is the expected time multiplied by e^noise. The noise has two independent terms: one of the build (how fast the machine
is, for all stages alike) and one of the stage in that build (its rows, its hosts). For both, the difference
d = ln(before / after) has the variance 2 sigma^2. A single difference determines sigma poorly, so it counts as one
measurement beside `PRIOR_WEIGHT` measurements of `PRIOR_NOISE` (the moderated variance of Smyth 2004, equation 3):

    s^2 = (w0 s0^2 + d^2 / 2) / (w0 + 1),   noise ~ Student's t with w0 + 1 degrees of freedom, times s

The part of a stage's noise above `LASTING_NOISE` is attributed to its rows (they include a slow host, or not), so it
decreases as that of a mean does, with the square root of the number of rows.

**The interval** is the middle 90 % of `DRAWS` simulated builds, the same in every run. In each of them the three
measured times and the time of the forecast build have noise; the share of start-up in what does not grow has a
triangular distribution on 0 to 1 with its mode at the measured share; and the work has an exponent of
1 + N(0, `EXPONENT`), because no law is exact. Sums over stages are taken within each simulated build, so the noise of
single stages averages out and that of the machine does not.

**Calibration** was simulated (`tests/flows/forecast/test_time_model.py`): where times vary by about 6 % for the machine
and again for each stage, 91 to 93 of a hundred intervals of the total time contain the true value; at 2 %, all do; at
10 %, 85; at 20 %, 76. On a machine that is so busy, probe twice.

Source: Smyth, Statistical Applications in Genetics and Molecular Biology 3 (2004).
"""

import math
from collections.abc import Sequence
from statistics import fmean
from typing import Final

import numpy as np

from flows.forecast.interval import DRAWS, Draws
from flows.forecast.measurements import MeasuredStage, ProbedStage

PRIOR_NOISE: Final = 0.04
"""Standard deviation of the logarithm of a time, of the machine and of the stage each, before anything is measured."""
PRIOR_WEIGHT: Final = 1
"""How many measurements PRIOR_NOISE counts as."""
EXPONENT: Final = 0.02
"""Standard deviation of the exponent of a law: 5 % where the build is ten times the probe, 32 % where it is a million
times."""
LASTING_NOISE: Final = 0.2
"""Standard deviation up to which the noise of a stage does not depend on its number of rows."""
_MOST_NOISE: Final = math.log(3)
"""The noise of a time is at most a factor of three: the tails of Student's t are unbounded."""
_TICK_S: Final = 0.1
"""Added to times before they are compared: the relative difference of much shorter times is arbitrary."""


class Noise:
    """The noise of times in every simulated build, as logarithms; 0 for the estimate itself."""

    def __init__(self, rng: np.random.Generator, measured: float | None = None) -> None:
        """`measured` is the difference of the logarithms of two times of equal work; None where there is only one."""
        self._rng = rng
        self.measured = measured or 0.0
        self._sigma: float | Draws = PRIOR_NOISE
        if measured is not None:
            squares = PRIOR_WEIGHT * PRIOR_NOISE**2 + measured**2 / 2
            self._sigma = np.sqrt(squares / rng.chisquare(PRIOR_WEIGHT + 1, DRAWS))

    def draw(self, builds: int = 1, size: float = 1.0) -> Draws:
        """Draw the noise of the mean of `builds` builds that are `size` times as large as the measured ones.

        Each simulated build keeps its sigma over all calls.
        """
        lasting = np.minimum(self._sigma, LASTING_NOISE)
        sigma = np.sqrt(lasting**2 + (self._sigma**2 - lasting**2) / size)
        drawn = self._rng.standard_normal(DRAWS) * sigma / math.sqrt(builds)
        return np.concatenate([[0.0], np.clip(drawn, -_MOST_NOISE, _MOST_NOISE)])


def log_ratio(before: Sequence[MeasuredStage], after: Sequence[MeasuredStage]) -> float:
    """Return ln(before / after) of the times of two builds of equal work."""
    first, second = (sum(m.seconds for m in builds) + _TICK_S for builds in (before, after))
    return math.log(first / second)


def seconds(probed: ProbedStage, machine: Noise, own: Noise, rng: np.random.Generator) -> Draws:
    """Return the time of a stage in the build that is forecast.

    The model counts the seconds of all slots, busy or waiting. A stage over whole tables is one part in one slot, so
    it makes no difference which of its time is start-up and which is overhead.
    """
    before, large, target = probed.before, probed.large, probed.target
    small_work, large_work, target_work = (x.stage.work(x.size) for x in (before, large, target))
    if large_work <= small_work:  # nothing grows: three builds of equal work
        mean = fmean([build.seconds for build in probed.builds])
        return mean * np.exp(machine.draw(3) + own.draw(3) + machine.draw() + own.draw())
    sizes = [1.0, *(max(1.0, x.size.rows / before.size.rows) for x in (large, target))]
    noise = [machine.draw(n) + own.draw(n, size) for n, size in zip((2, 1, 1), sizes, strict=True)]
    small_s = fmean([before.seconds, probed.after.seconds]) * before.busy * np.exp(noise[0])
    large_s = large.seconds * large.busy * np.exp(noise[1])
    slope = np.clip((large_s - small_s) / (large_work - small_work), 0.0, large_s / large_work)
    rest = large_s - slope * large_work  # start-up, and the overhead of parts
    start = rest * _starting_share(large, float(rest[0]), rng)
    bend = np.concatenate([[0.0], rng.normal(0.0, EXPONENT, DRAWS)])
    grown = slope * target_work * np.exp(bend * math.log(max(target_work / large_work, 1.0)))
    overhead = (rest - start) / len(large.parts) * target.parts
    return np.asarray((start / large.busy + (overhead + grown) / target.busy) * np.exp(noise[2]))


def _starting_share(large: MeasuredStage, rest: float, rng: np.random.Generator) -> Draws:
    """Return the share of start-up in what does not grow: triangular around the measured share, or else uniform."""
    drawn, slots = rng.random(DRAWS), min(large.slots, len(large.parts))
    if len(large.parts) <= slots:
        return np.concatenate([[0.5], drawn])
    likely = min(1.0, _starting_s(large, slots) * large.busy / rest) if rest > 0 else 0.0
    rising, falling = np.sqrt(drawn * likely), 1 - np.sqrt((1 - drawn) * (1 - likely))
    return np.concatenate([[likely], np.where(drawn < likely, rising, falling)])


def _starting_s(measured: MeasuredStage, slots: int) -> float:
    """Return the time before all slots worked steadily: how much longer the first parts took than the others."""
    done = sorted(part.at_s for part in measured.parts)
    part_s = (done[-1] - done[slots - 1]) / (len(done) - slots) * slots
    return max(0.0, done[slots - 1] - part_s)
