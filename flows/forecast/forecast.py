"""What a build of a whole source will take, foretold from three builds of a few of its rows (`flows.forecast.probe`
runs them).

Each number comes with its 90 % prediction interval: of a hundred probes, about ninety have the truth in theirs.

**Time.** Work grows by a law (`Stage.work`; rows, for most). A small build and a large one tell what grows from what
does not; when the parts of the large one were done tells start-up, which is paid once, from the overhead of a part:

    T = start + (overhead * parts + slope * work) / slots

Small and large differ in size, so two builds say nothing of how much such times vary. The small one is therefore built
twice, of other rows, before and after the large one. Each time is the true one times e^noise; the noise is of the
build (how fast the machine is, for all stages alike) and of the stage in it (its rows, its hosts). For both,
d = ln(before / after) has the variance 2 sigma^2. One difference tells little of sigma, so it counts as one
measurement beside `PRIOR_WEIGHT` of a `PRIOR_NOISE` (the moderated variance of Smyth 2004, equation 3):

    s^2 = (w0 s0^2 + d^2 / 2) / (w0 + 1),   noise ~ Student's t with w0 + 1 degrees of freedom, times s

What a stage's noise has above `LASTING_NOISE` comes of its rows (a slow host is among them, or not), so it is taken to
fall as that of a mean does, with the root of how many rows there are.

The interval is the middle 90 % of `DRAWS` such worlds, the same in every run: in each, the three times and that of the
foretold build have noise; the share of start-up in what does not grow is triangular between nothing and all of it,
likeliest as measured; and what grows does so with its work to the power 1 + N(0, `EXPONENT`), as no law is exact. Sums
are taken world by world, so that noise of single stages evens out, and that of the machine does not.

**Rows and bytes.** The least-squares line through all parts of the three builds. Its error is White's, which lets large
parts scatter more; parts are stretches of neighbouring rows, so that what neighbours share is in it. The interval is
t standard errors, with one degree of freedom fewer than the large build has parts. Sums add up the ends: all stages saw
the same rows.

How honest that is was simulated (`tests/flows/forecast/test_forecast.py`): where times are off by 6 % or so for the
machine and
again for each stage, 91 to 93 of a hundred intervals of the total time hold the truth; where by 2 %, all do; by 10 %,
85; by 20 %, 76. On a machine that is so busy, probe twice.

Sources: Smyth, Statistical Applications in Genetics and Molecular Biology 3 (2004); White, Econometrica 48 (1980).
"""

import heapq
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from statistics import fmean
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from flows.recipe.recipe import Prices
from tasks.stage import MapStage, Size, Stage

if TYPE_CHECKING:
    from rich.console import RenderableType

Draws = NDArray[np.float64]
"""Values of one quantity, (1 + DRAWS,): as measured, then one for each drawn world."""

LEVEL: Final = 0.9
"""How many of a hundred intervals hold the truth."""
PRIOR_NOISE: Final = 0.04
"""Standard deviation of the logarithm of a time, of the machine and of the stage each, before anything is measured."""
PRIOR_WEIGHT: Final = 1
"""How many measurements PRIOR_NOISE counts for."""
EXPONENT: Final = 0.02
"""How far off the exponent of a law may be: 5 % where the whole is ten times the probe, 32 % where it is a million."""
DRAWS: Final = 4000
LASTING_NOISE: Final = 0.2
"""Standard deviation up to which the noise of a stage is the same however many rows it has."""
_MOST_NOISE: Final = math.log(3)
"""No time is taken to be off by more than a factor of three: the tails of Student's t have no end."""
_TICK_S: Final = 0.1
"""Times far below it differ by chance, however much they differ: it is added before they are compared."""


@dataclass(frozen=True)
class Range:
    """A number between two others."""

    low: float
    value: float
    high: float

    def __add__(self, other: "Range") -> "Range":
        return Range(self.low + other.low, self.value + other.value, self.high + other.high)

    def times(self, factor: float) -> "Range":
        """Return it `factor` times (0 or more)."""
        return Range(self.low * factor, self.value * factor, self.high * factor)

    @classmethod
    def around(cls, value: float, *others: float) -> "Range":
        """Return the range of several values, none below 0."""
        return cls(max(0.0, min(value, *others)), max(0.0, value), max(0.0, value, *others))

    @classmethod
    def of(cls, draws: Draws) -> "Range":
        """Return what was measured, and the middle LEVEL of what was drawn."""
        low, high = np.quantile(draws[1:], [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
        return cls.around(float(draws[0]), float(low), float(high))


ZERO: Final = Range(0.0, 0.0, 0.0)


class Batch(NamedTuple):
    """One part that a probe made."""

    source_rows: int
    """Rows of the source that it stands for."""
    rows: int
    bytes: int
    """Of its Parquet file, and of its shard."""
    at_s: float
    """When it was done, after its stage began."""
    received: int = 0
    """Bytes that came from where the pictures are."""


@dataclass(frozen=True)
class Measured:
    """One stage, in one build of a probe."""

    stage: Stage
    size: Size
    seconds: float
    slots: int
    """Parts that are made at once."""
    batches: tuple[Batch, ...]


class Whole(NamedTuple):
    """The build that is foretold, as one stage sees it."""

    stage: Stage
    size: Size
    parts: int
    slots: int
    busy: float
    """Slots that work, on average (`busy_slots`)."""
    gpus: float
    """Of one slot."""


class Probed(NamedTuple):
    """One stage, in the three builds of a probe; the small ones have the same number of rows."""

    before: Measured
    large: Measured
    after: Measured
    whole: Whole


@dataclass(frozen=True)
class Forecast:
    """One stage over the whole source, or all of them."""

    stage: str
    use: str
    law: str
    parts: int
    rows: Range
    bytes: Range
    received: Range
    seconds: Range
    gpu_hours: Range
    cost: Range | None


@dataclass(frozen=True)
class Told:
    """All stages, and their sum. The rows of `total` are those of the last stage."""

    stages: tuple[Forecast, ...]
    total: Forecast


def foretell(probed: Sequence[Probed], prices: Prices | None) -> Told:
    """Return what the stages of a recipe will take, in their order, and all of them together."""
    rng = np.random.default_rng(0)
    machine = _Noise(rng, _apart([p.before for p in probed], [p.after for p in probed]))
    return _told([p.whole for p in probed], [_stage(p, machine, rng) for p in probed], prices)


def as_measured(made: Sequence[tuple[Measured, Whole]], prices: Prices | None) -> Told:
    """Return what stages took that ran over the whole source; the intervals of times are those of another run."""
    rng = np.random.default_rng(0)
    machine = _Noise(rng)
    stages = []
    for measured, _ in made:
        own = _Noise(rng)
        seconds = measured.seconds * np.exp(machine.once() + machine.once() + own.once() + own.once())
        sums = {name: float(sum(getattr(b, name) for b in measured.batches)) for name in ("rows", "bytes", "received")}
        exact = {name: Range(n, n, n) for name, n in sums.items()}
        stages.append(_Stage(**exact, seconds=seconds))
    return _told([whole for _, whole in made], stages, prices)


class _Stage(NamedTuple):
    rows: Range
    bytes: Range
    received: Range
    seconds: Draws


def _stage(p: Probed, machine: "_Noise", rng: np.random.Generator) -> _Stage:
    own = _Noise(rng, _apart([p.before], [p.after]) - machine.measured)
    seconds = _seconds(p, machine, own, rng)
    return _Stage(_grown(p, "rows"), _grown(p, "bytes"), _grown(p, "received"), seconds)


def _told(wholes: Sequence[Whole], stages: Sequence[_Stage], prices: Prices | None) -> Told:
    """Return forecasts and their sums. Costs are those of all cores of this machine, and of the GPUs in use."""
    core_hour = (os.cpu_count() or 1) * prices.cpu_hour if prices else 0.0
    all_: dict[str, Draws] = {name: np.zeros(1 + DRAWS) for name in ("seconds", "gpu_hours", "cost")}
    forecasts = []
    for w, s in zip(wholes, stages, strict=True):
        gpu_hours = s.seconds / 3600 * w.gpus * min(w.slots, w.parts)
        cost = s.seconds / 3600 * core_hour + gpu_hours * (prices.gpu_hour if prices else 0.0)
        sums = {"seconds": s.seconds, "gpu_hours": gpu_hours, "cost": cost}
        forecasts.append(_forecast(w.stage.name, w.stage.use, w.stage.grows_with, w.parts, s, sums, prices))
        all_ = {name: all_[name] + draws for name, draws in sums.items()}
    parts = sum(w.parts for w in wholes)
    size, received = (sum((getattr(s, n) for s in stages), ZERO) for n in ("bytes", "received"))
    last = _Stage(stages[-1].rows, size, received, all_["seconds"])
    return Told(tuple(forecasts), _forecast("total", "", "", parts, last, all_, prices))


def _forecast(
    name: str, use: str, law: str, parts: int, stage: _Stage, sums: Mapping[str, Draws], prices: Prices | None
) -> Forecast:
    seconds, gpu_hours, cost = (Range.of(sums[n]) for n in ("seconds", "gpu_hours", "cost"))
    return Forecast(
        name, use, law, parts, stage.rows, stage.bytes, stage.received, seconds, gpu_hours, cost if prices else None
    )


# ---- time


class _Noise:
    """The noise of times, in every drawn world: a logarithm, 0 as measured."""

    def __init__(self, rng: np.random.Generator, measured: float | None = None) -> None:
        """`measured`: the difference of the logarithms of two times of the same work, where there are two."""
        self._rng = rng
        self.measured = measured or 0.0
        self._sigma: float | Draws = PRIOR_NOISE
        if measured is not None:
            squares = PRIOR_WEIGHT * PRIOR_NOISE**2 + measured**2 / 2
            self._sigma = np.sqrt(squares / rng.chisquare(PRIOR_WEIGHT + 1, DRAWS))

    def once(self, of: int = 1, size: float = 1.0) -> Draws:
        """Draw the noise of the mean of `of` builds, `size` times as large as that which was measured. Each world keeps
        its sigma."""
        lasting = np.minimum(self._sigma, LASTING_NOISE)
        sigma = np.sqrt(lasting**2 + (self._sigma**2 - lasting**2) / size)
        drawn = self._rng.standard_normal(DRAWS) * sigma / math.sqrt(of)
        return np.concatenate([[0.0], np.clip(drawn, -_MOST_NOISE, _MOST_NOISE)])


def _apart(before: Sequence[Measured], after: Sequence[Measured]) -> float:
    """Return how far two times of the same work lie apart: the difference of their logarithms."""
    first, second = (sum(m.seconds for m in made) + _TICK_S for made in (before, after))
    return math.log(first / second)


def _seconds(p: Probed, machine: _Noise, own: _Noise, rng: np.random.Generator) -> Draws:
    """Return the time of a stage over the whole source. What is counted is the seconds of slots, busy or waiting.

    A stage over whole tables is one part in one slot: start-up and overhead of a part are the same.
    """
    large, whole = p.large, p.whole
    before, after, wanted = (x.stage.work(x.size) for x in (p.before, large, whole))
    first, second = fmean([p.before.seconds, p.after.seconds]), large.seconds
    if after <= before:  # nothing grows: three builds of the same
        mean = fmean([p.before.seconds, second, p.after.seconds])
        return mean * np.exp(machine.once(3) + own.once(3) + machine.once() + own.once())
    sizes = [1.0, *(max(1.0, x.size.rows / p.before.size.rows) for x in (large, whole))]
    noise = [machine.once(n) + own.once(n, size) for n, size in zip((2, 1, 1), sizes, strict=True)]
    first_s = first * _busy(p.before) * np.exp(noise[0])
    second_s = second * _busy(large) * np.exp(noise[1])
    slope = np.clip((second_s - first_s) / (after - before), 0.0, second_s / after)
    rest = second_s - slope * after  # start-up, and the overhead of parts
    start = rest * _starting_share(large, float(rest[0]), rng)
    bend = np.concatenate([[0.0], rng.normal(0.0, EXPONENT, DRAWS)])
    grown = slope * wanted * np.exp(bend * math.log(max(wanted / after, 1.0)))
    overhead = (rest - start) / len(large.batches) * whole.parts
    return np.asarray((start / _busy(large) + (overhead + grown) / whole.busy) * np.exp(noise[2]))


def busy_slots(rows: Sequence[int], slots: int) -> float:
    """Return how many slots work, on average, while parts of these rows are made, each by the first that is free.

    Three alike parts in two slots take as long as four: 1.5 slots are busy.
    """
    free_at = [0] * max(1, min(slots, len(rows)))
    for n in rows:
        heapq.heapreplace(free_at, free_at[0] + n)
    return sum(rows) / max(free_at) if any(rows) else float(len(free_at))


def _busy(measured: Measured) -> float:
    return busy_slots([b.source_rows for b in measured.batches], measured.slots)


def _starting_share(large: Measured, rest: float, rng: np.random.Generator) -> Draws:
    """Return the share of start-up in what does not grow: triangular around what was measured, else uniform."""
    drawn, slots = rng.random(DRAWS), min(large.slots, len(large.batches))
    if len(large.batches) <= slots:
        return np.concatenate([[0.5], drawn])
    likely = min(1.0, _starting_s(large, slots) * _busy(large) / rest) if rest > 0 else 0.0
    rising, falling = np.sqrt(drawn * likely), 1 - np.sqrt((1 - drawn) * (1 - likely))
    return np.concatenate([[likely], np.where(drawn < likely, rising, falling)])


def _starting_s(measured: Measured, slots: int) -> float:
    """Return how long a stage took before its slots worked steadily: what first parts took longer than the others."""
    done = sorted(b.at_s for b in measured.batches)
    part_s = (done[-1] - done[slots - 1]) / (len(done) - slots) * slots
    return max(0.0, done[slots - 1] - part_s)


# ---- rows and bytes


def _grown(p: Probed, name: str) -> Range:
    """Return the rows or bytes of a stage over the whole source."""
    whole = p.whole
    if not isinstance(whole.stage, MapStage):
        return _grown_table(p, name)
    batches = [*p.before.batches, *p.large.batches, *p.after.batches]
    sizes, values = [b.source_rows for b in batches], [float(getattr(b, name)) for b in batches]
    # Even a part without a row has a footer: bytes have an overhead a part. Rows have none.
    slope, fixed = _line(sizes, values) if name == "bytes" else (sum(values) / max(sum(sizes), 1), 0.0)
    value = fixed * whole.parts + slope * whole.size.rows
    error = whole.parts * _line_error(sizes, values, slope, fixed, whole.size.rows / whole.parts)
    if name == "rows" and slope < 1:
        error = max(error, _share_error(sum(values), sum(sizes)) * whole.size.rows)
    error *= _t(max(1, len(p.large.batches) - 1))
    most = whole.size.rows if name == "rows" and slope <= 1 else math.inf  # a row of the source is one row at most
    return Range.around(value, value - error, min(value + error, most))


def _t(freedom: float) -> float:
    """Return how many standard errors the end of an interval is away."""
    from scipy.special import stdtrit

    return float(stdtrit(freedom, (1 + LEVEL) / 2))


def _share_error(found: float, of: float) -> float:
    """Return the standard error of a share; Laplace's rule keeps it above 0 where no row, or every one, was found."""
    share = (found + 1) / (of + 2)
    return math.sqrt(share * (1 - share) / of)


def _line(sizes: Sequence[int], values: Sequence[float]) -> tuple[float, float]:
    """Return (slope, value at 0) of the least-squares line, neither below 0."""
    n, v = fmean(sizes), fmean(values)
    spread = sum((x - n) ** 2 for x in sizes)
    slope = sum((x - n) * (y - v) for x, y in zip(sizes, values, strict=True)) / spread if spread else v / max(n, 1)
    slope = min(max(slope, 0.0), v / max(n, 1))
    return slope, v - slope * n


def _line_error(sizes: Sequence[int], values: Sequence[float], slope: float, fixed: float, at: float) -> float:
    """Return the standard error of a line's value at `at`, as far as points scatter about it.

    Points scatter by a share of their size, so the large ones, which fix the slope, are weighed as they are.
    """
    if len(sizes) < 3:
        return 0.0
    n = fmean(sizes)
    off = [y - (fixed + slope * x) for x, y in zip(sizes, values, strict=True)]
    spread = sum((x - n) ** 2 for x in sizes)
    if fixed == 0.0 or spread == 0.0:  # a line through 0, or all of one size: the sum of all points makes it
        return math.sqrt(sum(e * e for e in off)) / max(sum(sizes), 1) * at
    # White's estimator: each point's own residual, times what the point adds to the value
    pull = [1 / len(sizes) + (at - n) * (x - n) / spread for x in sizes]
    return math.sqrt(sum((p * e) ** 2 for p, e in zip(pull, off, strict=True)))


def _grown_table(p: Probed, name: str) -> Range:
    """Return the rows or bytes of a stage's one part: a share of the source, or what all builds have alike."""
    whole, large = p.whole, p.large
    before, second, after = (float(sum(getattr(b, name) for b in m.batches)) for m in (p.before, large, p.after))
    if all(sum(b.rows for b in m.batches) == m.size.clusters for m in (p.before, large, p.after)):  # a row a cluster
        value = second / large.size.clusters * whole.size.clusters
        return Range(value, value, value)
    first = fmean([before, after])
    through = second / large.size.rows * whole.size.rows
    if first >= second or whole.stage.rows_per_sample == "none":
        return Range.around(second, before, after)
    slope, fixed = _line([p.before.size.rows, large.size.rows], [first, second])
    value = fixed + slope * whole.size.rows
    found, of = sum(b.rows for b in large.batches), large.size.rows
    # Three builds are too few to tell a spread: that of a share of rows that were drawn singly.
    error = value * _t(2) * _share_error(found, of) / (found / of) if 0 < found < of else 0.0
    return Range.around(value, value - error, value + error, through)


# ---- as a terminal and JSON show it


def describe(told: Told, prices: Prices | None) -> dict[str, Any]:
    """Return forecasts as JSON has them."""
    storage = told.total.bytes.times(prices.gb_month / 1e9) if prices else None
    return {
        "level": LEVEL,
        "stages": [asdict(f) for f in told.stages],
        "total": asdict(told.total),
        "storage_cost_per_month": asdict(storage) if storage else None,
        "currency": prices.currency if prices else None,
    }


def render(told: Told, prices: Prices | None) -> "RenderableType":
    """Return forecasts as a terminal of 80 columns shows them: a line a stage, then the sums with their intervals."""
    from rich.console import Group
    from rich.table import Table

    stages = Table(box=None, header_style="bold", padding=(0, 2, 0, 0))
    for name in ("stage", "grows with"):
        stages.add_column(name)
    for name in ("rows", "MB", "time", "90 % interval"):
        stages.add_column(name, justify="right", no_wrap=True)
    for f in told.stages:
        seconds = _time(f.seconds)
        stages.add_row(f.stage, f.law, f"{f.rows.value:,.0f}", f"{f.bytes.value / 1e6:,.1f}", seconds[0], seconds[1])
    sums = Table(box=None, show_header=False, padding=(0, 2, 0, 0))
    sums.add_column(style="bold")
    for row in _sums(told.total, prices):
        sums.add_row(*row)
    return Group(stages, "", sums)


def _sums(total: Forecast, prices: Prices | None) -> list[tuple[str, str, str]]:
    """Return (what, how much, its interval)."""
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
    """Return a time and its interval, in the unit that fits."""
    units = (("days", 86400.0, 3 * 86400.0), ("h", 3600.0, 7200.0), ("min", 60.0, 120.0), ("s", 1.0, 0.0))
    unit, unit_s = next((name, size) for name, size, least in units if seconds.value >= least)
    form = "{:,.0f} " if seconds.value >= 100 * unit_s else "{:,.1f} "
    return _span(seconds.times(1 / unit_s), form + unit)


def _size(size: Range) -> tuple[str, str]:
    unit, each = next(((n, b) for n, b in (("TB", 1e12), ("GB", 1e9)) if size.value >= b), ("MB", 1e6))
    return _span(size.times(1 / each), "{:,.1f} " + unit)


def _span(range_: Range, form: str) -> tuple[str, str]:
    """Return a value, and its interval, whose unit stands at its end alone."""
    low, value, high = (form.format(x) for x in (range_.low, range_.value, range_.high))
    return value, "" if low == high else f"{low.partition(' ')[0]} .. {high}"
