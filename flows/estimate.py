"""What a build will take: rows, bytes, time and cost.

Either from what the same stages took before on this dataset (`estimate`): where nothing was measured yet it says so,
since a guess would be taken for a promise. Or from two builds of a few rows (`forecast`; `flows.probe` runs them).
"""

import math
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from statistics import fmean
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from flows.plan import Plan, PlannedStage
from flows.recipe import Prices
from tasks.stage import MapStage, Stage

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
    return Estimate(
        stage.name, stage.use, planned.status, len(planned.parts), len(planned.missing), expected, size, seconds, cost
    )


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


# ---- from a probe


class Size(NamedTuple):
    """What a stage's work hangs on."""

    rows: int
    """Of the source. Stages see a share of them, which a probe finds too."""
    clusters: int = 1
    """Of the recipe's `cluster`, where it has one."""


class Law(NamedTuple):
    """How a stage's work grows; a probe measures the constant."""

    about: str
    work: Callable[[Stage, Size], float]


def _linear(stage: Stage, size: Size) -> float:
    return size.rows


def _fixed(stage: Stage, size: Size) -> float:
    return 1.0


def _assigned(stage: Stage, size: Size) -> float:
    """Reading a vector costs as much as comparing it with some hundred centroids (512 numbers, 2 cores)."""
    return size.rows * (size.clusters + 100)


def _fitted(stage: Stage, size: Size) -> float:
    """Every row is read once; the sample, 256 a cluster unless the recipe says, is compared in every iteration."""
    said = getattr(stage, "train", None)
    wanted = size.rows if said == "all" else max(said or 256 * size.clusters, size.clusters)
    return size.rows * 100 + min(wanted, size.rows) * size.clusters * int(getattr(stage, "niter", 25))


def _compared(stage: Stage, size: Size) -> float:
    """n rows in K clusters are n^2 / K comparisons (SemDeDup); reading one row costs as much as a hundred."""
    semantic = getattr(stage, "semantic", None)
    if semantic is None:
        return size.rows
    said = getattr(semantic, "clusters", "auto")
    clusters = said if isinstance(said, int) else max(size.clusters, size.rows // 4096)
    return size.rows * 100 + size.rows**2 / max(clusters, 1)


LINEAR: Final = Law("rows", _linear)
LAWS: Final[Mapping[str, Law]] = {
    "train_clip": Law("fixed", _fixed),
    "report": Law("fixed", _fixed),  # the pictures that it draws are a sample; reading columns is little beside
    "centroids": Law("sample x clusters", _fitted),
    "assign": Law("rows x clusters", _assigned),
    "deduplicate": Law("rows^2 / clusters", _compared),
}
"""By `use`. Whatever is not here grows with its rows."""

SLACK: Final = 0.1
"""How far off one measured time may be."""


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


class Batch(NamedTuple):
    """One part that a probe made."""

    source_rows: int
    """Rows of the source that it stands for."""
    rows: int
    bytes: int
    """Of its Parquet file, and of its shard."""
    at_s: float
    """When it was done, after its stage began."""


@dataclass(frozen=True)
class Measured:
    """One stage, in one build of a probe."""

    stage: Stage
    size: Size
    seconds: float
    slots: int
    """Parts that are made at once."""
    batches: tuple[Batch, ...]


@dataclass(frozen=True)
class Forecast:
    """One stage over the whole source."""

    stage: str
    use: str
    law: str
    parts: int
    rows: Range
    bytes: Range
    seconds: Range
    gpu_hours: Range
    cost: Range | None


class Whole(NamedTuple):
    """The build that is foretold, as one stage sees it."""

    stage: Stage
    size: Size
    parts: int
    slots: int
    gpus: float
    """Of one slot."""


def forecast(small: Measured, large: Measured, whole: Whole, prices: Prices | None) -> Forecast:
    """Return what a stage will take, from two builds of different size.

    Time is the line through both: what does not grow is start-up (once) or the overhead of a part (for each), told
    apart by when the parts of the larger build were done. Its interval holds the same line where either time is a tenth
    off, and all of the rest paid once, or by every part. Rows and bytes: the line through all parts, and two standard
    errors (White's, which let large parts scatter more). A stage over whole tables is one part: its work makes the
    line, not its parts.
    """
    seconds = _part_seconds(small, large, whole) if isinstance(whole.stage, MapStage) else _seconds(small, large, whole)
    return _forecast(
        whole, _law(whole), _grown(small, large, whole, "rows"), _grown(small, large, whole, "bytes"), seconds, prices
    )


def as_measured(all_: Measured, whole: Whole, prices: Prices | None) -> Forecast:
    """Return what a stage took that ran over the whole source: nothing is left to foretell."""
    rows, size = (float(sum(getattr(b, name) for b in all_.batches)) for name in ("rows", "bytes"))
    seconds = Range(all_.seconds * (1 - SLACK), all_.seconds, all_.seconds * (1 + SLACK))
    return _forecast(whole, _law(whole), Range(rows, rows, rows), Range(size, size, size), seconds, prices)


def _law(whole: Whole) -> Law:
    return LAWS.get(whole.stage.use, LINEAR)


def _forecast(whole: Whole, law: Law, rows: Range, size: Range, seconds: Range, prices: Prices | None) -> Forecast:
    hours = seconds.times(1 / 3600)
    gpu_hours = hours.times(whole.gpus * min(whole.slots, whole.parts))
    cost = None
    if prices is not None:
        cost = hours.times((os.cpu_count() or 1) * prices.cpu_hour) + gpu_hours.times(prices.gpu_hour)
    return Forecast(whole.stage.name, whole.stage.use, law.about, whole.parts, rows, size, seconds, gpu_hours, cost)


def _seconds(small: Measured, large: Measured, whole: Whole) -> Range:
    """Return the time of a stage over whole tables."""
    work = _law(whole).work
    before, after, wanted = work(small.stage, small.size), work(large.stage, large.size), work(whole.stage, whole.size)
    if after <= before:
        return Range.around(large.seconds, small.seconds, large.seconds * (1 - SLACK), large.seconds * (1 + SLACK))

    def line(first: float, second: float) -> float:
        slope = min(max(0.0, second - first) / (after - before), second / after)
        return second + slope * (wanted - after)

    return Range.around(*_with_slack(line, small.seconds, large.seconds))


def _part_seconds(small: Measured, large: Measured, whole: Whole) -> Range:
    """Return the time of a stage that works part by part. What it counts is the seconds of slots, busy or waiting."""
    work = _law(whole).work
    before, after, wanted = work(small.stage, small.size), work(large.stage, large.size), work(whole.stage, whole.size)
    parts, slots = len(large.batches), min(large.slots, len(large.batches))
    first_slots, last_slots = min(small.slots, len(small.batches)), min(whole.slots, whole.parts)
    starting_s = _starting_s(large, slots)

    def line(first: float, second: float, starting: float | None = None) -> float:
        gained = second * slots - first * first_slots
        slope = min(max(0.0, gained) / (after - before), second * slots / after) if after > before else 0.0
        rest = second * slots - slope * after  # start-up, and the overhead of parts
        start = min(starting_s if starting is None else starting, rest / slots)
        return start + ((rest - start * slots) / parts * whole.parts + slope * wanted) / last_slots

    both = small.seconds, large.seconds
    return Range.around(*_with_slack(line, *both), line(*both, starting=math.inf), line(*both, starting=0.0))


def _with_slack(line: Callable[[float, float], float], first: float, second: float) -> tuple[float, float, float]:
    """Return the value of a line through two times, and its values where they are a tenth off, against each other."""
    return (
        line(first, second),
        line(first * (1 + SLACK), second * (1 - SLACK)),
        line(first * (1 - SLACK), second * (1 + SLACK)),
    )


def _starting_s(measured: Measured, slots: int) -> float:
    """Return how long a stage took before its slots worked steadily: what first parts took longer than the others."""
    done = sorted(b.at_s for b in measured.batches)
    if len(done) <= slots:
        return 0.0
    part_s = (done[-1] - done[slots - 1]) / (len(done) - slots) * slots
    return max(0.0, done[slots - 1] - part_s)


def _grown(small: Measured, large: Measured, whole: Whole, name: str) -> Range:
    """Return the rows or bytes of a stage over the whole source."""
    if not isinstance(whole.stage, MapStage):
        return _grown_table(small, large, whole, name)
    batches = [*small.batches, *large.batches]
    sizes, values = [b.source_rows for b in batches], [float(getattr(b, name)) for b in batches]
    # Even a part without a row has a footer: bytes have an overhead a part. Rows have none.
    slope, fixed = _line(sizes, values) if name == "bytes" else (sum(values) / max(sum(sizes), 1), 0.0)
    value = fixed * whole.parts + slope * whole.size.rows
    error = 2 * whole.parts * _line_error(sizes, values, slope, fixed, whole.size.rows / whole.parts)
    return Range.around(value, value - error, value + error)


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


def _grown_table(small: Measured, large: Measured, whole: Whole, name: str) -> Range:
    """Return the rows or bytes of a stage's one part: a share of the source, or what both builds have alike."""
    first, second = (float(sum(getattr(b, name) for b in m.batches)) for m in (small, large))
    if all(sum(b.rows for b in m.batches) == m.size.clusters for m in (small, large)):  # a row a cluster
        value = second / large.size.clusters * whole.size.clusters
        return Range(value, value, value)
    if first >= second:
        return Range.around(second, first)
    slope, fixed = _line([small.size.rows, large.size.rows], [first, second])
    value = fixed + slope * whole.size.rows
    share = min(1.0, second / large.size.rows)
    error = 2 * math.sqrt(share * (1 - share) / large.size.rows) / share * value if name == "rows" else 0.0
    through = second / large.size.rows * whole.size.rows
    return Range.around(value, value - error, value + error, through)


def total(forecasts: Sequence[Forecast], prices: Prices | None) -> Forecast:
    """Return the sums; errors may all go the same way, so ends add up too. Rows are those of the last stage."""
    zero = Range(0.0, 0.0, 0.0)
    costs = [f.cost for f in forecasts if f.cost is not None]
    return Forecast(
        "total",
        "",
        "",
        sum(f.parts for f in forecasts),
        forecasts[-1].rows,
        sum((f.bytes for f in forecasts), zero),
        sum((f.seconds for f in forecasts), zero),
        sum((f.gpu_hours for f in forecasts), zero),
        sum(costs, zero) if prices is not None else None,
    )


def describe_forecasts(forecasts: Sequence[Forecast], prices: Prices | None) -> dict[str, Any]:
    """Return forecasts as JSON has them."""
    all_ = total(forecasts, prices)
    storage = all_.bytes.times(prices.gb_month / 1e9) if prices else None
    return {
        "stages": [asdict(f) for f in forecasts],
        "total": asdict(all_),
        "storage_cost_per_month": asdict(storage) if storage else None,
        "currency": prices.currency if prices else None,
    }


def render_forecasts(forecasts: Sequence[Forecast], prices: Prices | None) -> "Table":
    """Return forecasts as a table for a terminal: each number with its interval."""
    table = _table(("stage", "grows with"), ("parts", "rows", "MB", "time", "GPU hours", _cost_title(prices)))
    for f in forecasts:
        table.add_row(*_forecast_cells(f))
    table.add_section()
    table.add_row(*_forecast_cells(total(forecasts, prices)), style="bold")
    return table


def _forecast_cells(f: Forecast) -> tuple[str, ...]:
    return (
        f.stage,
        f.law,
        f"{f.parts:,}",
        _span(f.rows, lambda x: f"{round(x):,}"),
        _span(f.bytes.times(1e-6), lambda x: f"{x:,.1f}"),
        _span(f.seconds, duration),
        _span(f.gpu_hours, lambda x: f"{x:.3g}") if f.gpu_hours.high else "",
        "unknown" if f.cost is None else _span(f.cost, lambda x: f"{x:,.2f}"),
    )


def _span(range_: Range, text: Callable[[float], str]) -> str:
    low, value, high = text(range_.low), text(range_.value), text(range_.high)
    return value if low == high else f"{value} ({low} .. {high})"
