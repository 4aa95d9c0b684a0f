"""What a build of a whole source will take, from three builds of few rows, on stages whose true cost is known."""

import io
import json
import math
import random
from collections.abc import Iterable
from typing import Any

import numpy as np
import pytest

from flows.forecast.forecast import (
    Batch,
    Forecast,
    Measured,
    Probed,
    Range,
    Told,
    Whole,
    as_measured,
    busy_slots,
    describe,
    foretell,
    render,
)
from flows.forecast.probe import sampled
from flows.recipe.recipe import Prices
from tasks.cluster import Cluster
from tasks.deduplicate import Deduplicate
from tasks.download import Download
from tasks.filter import Filter
from tasks.prune import Random
from tasks.report import Report
from tasks.sources import Chunk, Parquet
from tasks.stage import Size, Stage
from tasks.train import TrainClip

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
) -> Measured:
    """Return what a stage would measure whose cost is known: every slot starts, then makes its parts."""
    rng = random.Random(seed)
    each, batches, clock = rows // parts, [], [start_s] * slots
    for i in range(parts):
        off = 1 + rng.uniform(-noise, noise)
        clock[i % slots] += (part_s + each * row_s) * off
        batches.append(Batch(each, round(each * share * off), round((overhead + each * 300) * off), clock[i % slots]))
    return Measured(Download(), Size(rows), max(clock), slots, tuple(batches))


def whole_of(
    rows: int, slots: int = 1, stage: Any = None, clusters: int = 1, gpus: float = 0.0, parts: int | None = None
) -> Whole:
    parts = parts or -(-rows // ROWS_A_PART)
    busy = busy_slots([rows // parts] * parts, slots)
    return Whole(stage or Download(), Size(rows, clusters), parts, slots, busy, gpus)


def within(range_: Range, truth: float, tolerance: float) -> None:
    assert range_.low <= truth * (1 + tolerance)
    assert range_.high >= truth * (1 - tolerance)
    assert range_.value == pytest.approx(truth, rel=tolerance)


def told_of(small: Measured, large: Measured, whole: Whole, prices: None = None, after: None = None) -> Forecast:
    """Return what is foretold of one stage; both small builds are alike unless `after` is given."""
    return foretell([Probed(small, large, after or small, whole)], prices).stages[0]


@pytest.mark.parametrize("slots", [1, 2, 8])
@pytest.mark.parametrize(("start_s", "part_s"), [(0, 0), (30, 0), (0, 8), (30, 8)])
def test_start_up_parts_and_rows_are_told_apart(slots: int, start_s: int, part_s: int) -> None:
    known = {"slots": slots, "start_s": start_s, "part_s": part_s}
    small, large = part_by_part(250, 16, **known), part_by_part(1000, 16, **known)
    rows = 1_600_000  # 160 parts, as many for each slot
    told = told_of(small, large, whole_of(rows, slots))
    truth = start_s + (160 * part_s + rows * 0.01) / slots
    within(told.seconds, truth, 0.02)
    assert told.rows.value == pytest.approx(rows * 0.8, rel=0.05)
    assert told.bytes.value == pytest.approx(160 * 5000 + rows * 300, rel=0.05)
    assert (told.parts, told.law) == (160, "rows")


class World:
    """Five stages of known cost on a machine of known noise: what a probe measures there, and what the build takes.

    Noise is of the whole build (the machine, one number) and of each stage in it, both a logarithm's deviation.
    Neighbouring rows are alike: each thousand of them keeps a share of its own.
    """

    STAGES = (  # (start-up s, s a part, s a row, rows kept)
        (3.0, 0.1, 0.010, 0.8),
        (5.0, 0.0, 0.030, 0.8),
        (0.5, 0.05, 0.0005, 0.7),
        (2.0, 0.2, 0.004, 0.7),
        (0.2, 0.0, 0.001, 0.5),
    )

    def __init__(self, seed: int, machine: float, stage: float, rows: int) -> None:
        self.rng, self.machine, self.stage = np.random.default_rng(seed), machine, stage
        self.swings = self.rng.normal(0, 0.05, rows // 1000 + 1)
        all_ = [Chunk("x", "x", at, 1000) for at in range(0, rows, 1000)]
        before, large, after = sampled(Parquet(path="x"), all_, [32, 128, 32], 8, str)
        self.truth, *made = (self.build(chunks) for chunks in (all_, before, large, after))
        wholes = [whole_of(rows, 2, parts=len(all_)) for _ in self.STAGES]
        self.told = foretell(list(map(Probed, *made, wholes)), None)

    def build(self, chunks: list[Chunk]) -> list[Measured]:
        shared = self.rng.normal(0, self.machine)
        return [self.measure(chunks, shared, *known) for known in self.STAGES]

    def measure(
        self, chunks: list[Chunk], shared: float, start_s: float, part_s: float, row_s: float, share: float
    ) -> Measured:
        off = math.exp(shared + self.rng.normal(0, self.stage))
        clock, batches = [start_s] * 2, []
        for chunk in chunks:
            slot = clock.index(min(clock))
            clock[slot] += part_s + chunk.rows * row_s
            kept = int(self.rng.binomial(chunk.rows, min(1, max(0, share + self.swings[chunk.start // 1000]))))
            batches.append(Batch(chunk.rows, kept, 5000 + kept * 300, clock[slot] * off))
        return Measured(Download(), Size(sum(c.rows for c in chunks)), max(clock) * off, 2, tuple(batches))

    def seconds(self) -> list[tuple[Range, float]]:
        """Return (the interval, the truth) of each stage's time, and of the total's."""
        pairs = [(f.seconds, m.seconds) for f, m in zip(self.told.stages, self.truth, strict=True)]
        return [*pairs, (self.told.total.seconds, sum(m.seconds for m in self.truth))]

    def rows(self) -> tuple[Range, int]:
        return self.told.total.rows, sum(b.rows for b in self.truth[-1].batches)

    def bytes(self) -> tuple[Range, int]:
        return self.told.total.bytes, sum(b.bytes for m in self.truth for b in m.batches)


def held(pairs: Iterable[tuple[Range, float]]) -> float:
    """Return how many of these intervals hold the truth, of 1."""
    return float(np.mean([told.low <= truth <= told.high for told, truth in pairs]))


def width(pairs: Iterable[tuple[Range, float]]) -> float:
    return float(np.median([(told.high - told.low) / truth for told, truth in pairs]))


@pytest.mark.parametrize(
    ("machine", "stage"),
    [(0.06, 0.06), (0.08, 0.03), (0.03, 0.10)],
    ids=["both vary", "the machine varies", "stages vary"],
)
@pytest.mark.parametrize("rows", [4000, 20_000])
def test_of_a_hundred_intervals_ninety_hold_the_truth(rows: int, machine: float, stage: float) -> None:
    """Not fewer, which would be over-confident, and not all, which would say nothing: 85 to 97 of a hundred."""
    worlds = [World(seed, machine, stage, rows) for seed in range(300)]
    stages, totals = zip(*((w.seconds()[:-1], w.seconds()[-1]) for w in worlds), strict=True)
    assert 0.85 <= held(totals) <= 0.97
    assert width(totals) < 0.8
    assert held([p for pairs in stages for p in pairs]) >= 0.85  # of the machine and their own: on the safe side
    assert 0.85 <= held([w.rows() for w in worlds]) <= 0.97
    assert held([w.bytes() for w in worlds]) >= 0.85  # sums of ends: on the safe side
    assert width([w.bytes() for w in worlds]) < 0.2


def test_many_rows_even_out_what_one_slow_host_does_to_few() -> None:
    """Of two builds of 250 rows one met it: no reason to expect four times as long, or a fourth, of 3,000 rows."""
    small, large, whole = 250, 1000, 3000

    def made(rows: int, seconds: float) -> Measured:
        batches = tuple(Batch(rows // 4, rows // 4, 5000, seconds * done) for done in (0.5, 0.5, 1.0, 1.0))
        return Measured(Download(), Size(rows), seconds, 2, batches)

    def told(*seconds: float) -> Range:
        """Beside a stage that took ten times as long, and always the same: so the machine is calm."""
        stages = [
            [made(rows, s) for rows, s in zip((small, large, small), those, strict=True)]
            for those in (seconds, (90.0, 100.0, 90.0))
        ]
        probed = [Probed(before, large_, after, whole_of(whole, 2, parts=12)) for before, large_, after in stages]
        return foretell(probed, None).stages[0].seconds

    calm, slow = told(5.0, 12.0, 5.0), told(9.0, 12.0, 2.0)
    assert slow.high - slow.low > calm.high - calm.low
    assert slow.high < 4 * slow.value  # 8 times, if the noise of 250 rows were that of 3,000


def test_an_interval_tells_a_noisy_machine_from_a_quiet_one() -> None:
    widths = {s: width([World(i, s, s, 20_000).seconds()[-1] for i in range(60)]) for s in (0.01, 0.05, 0.2)}
    assert widths[0.01] < 0.5
    assert widths[0.01] < widths[0.05] < widths[0.2] / 2


@pytest.mark.parametrize(
    ("rows", "slots", "busy"),
    [([5, 5, 5], 2, 1.5), ([5, 5, 5, 5], 2, 2), ([9], 8, 1), ([4, 4, 2], 2, 10 / 6), ([0], 3, 1)],
)
def test_slots_wait_for_the_last_part(rows: list[int], slots: int, busy: float) -> None:
    assert busy_slots(rows, slots) == pytest.approx(busy)


def test_parts_that_do_not_fill_the_slots_are_counted_in() -> None:
    """Three alike parts in two slots take as long as four."""
    small, large = (part_by_part(n, 4, slots=2) for n in (400, 1600))
    told = told_of(small, large, whole_of(12_000, slots=2, parts=3))
    assert told.seconds.value == pytest.approx(2 * 4000 * 0.01)


def test_a_larger_pool_than_the_probe_could_fill_is_counted_in() -> None:
    small, large = part_by_part(400, 4, slots=4), part_by_part(1600, 4, slots=4)
    small, large = (m.__class__(m.stage, m.size, m.seconds, 64, m.batches) for m in (small, large))
    told = told_of(small, large, whole_of(6_400_000, slots=64))
    assert told.seconds.value == pytest.approx(6_400_000 * 0.01 / 64, rel=0.02)


def at_once(stage: Stage, rows: int, seconds: float, clusters: int = 1, kept: float = 0.5) -> Measured:
    return Measured(stage, Size(rows, clusters), seconds, 1, (Batch(rows, round(rows * kept), rows * 20, seconds),))


def test_a_card_has_no_more_rows_for_more_rows() -> None:
    """It has a row a bin, a picture, a cluster: more in the large build of a probe than in the small, then no more."""
    small, large = at_once(Report(), 250, 1.6, kept=0.8), at_once(Report(), 1000, 2.1, kept=0.46)
    assert told_of(small, large, whole_of(3000, stage=Report(), parts=1)).rows == Range(200, 460, 460)


def test_whole_tables_grow_by_their_law() -> None:
    semantic = Deduplicate(semantic={"epsilon": 0.05, "clusters": 100})

    def measured(rows: int) -> Measured:
        return at_once(semantic, rows, 2 + 1e-8 * semantic.work(Size(rows)))

    rows = 1_000_000
    told = told_of(measured(25_000), measured(100_000), whole_of(rows, stage=semantic, parts=1))
    within(told.seconds, 2 + 1e-8 * (rows * 100 + rows**2 / 100), 0.05)
    assert told.seconds.value > 15 * (2 + 1e-8 * semantic.work(Size(100_000)))  # more than rows would say
    assert told.law == "rows^2 / k"


def steps_of(rows: int, steps: int, seconds_per_step: float, start_s: float = 5.0) -> Measured:
    """Return what training takes whose batches are of 128 rows, and whose decoding takes no time."""
    return at_once(TrainClip(steps=steps), rows, start_s + steps * seconds_per_step, kept=1 / rows)


@pytest.mark.parametrize("steps", [600, 6000])
def test_a_stage_with_steps_grows_with_them(steps: int) -> None:
    small, large = (steps_of(n, round(steps * n / 20_000), 0.25) for n in (500, 2000))
    told = told_of(small, large, whole_of(20_000, stage=TrainClip(steps=steps), parts=1))
    within(told.seconds, 5 + steps * 0.25, 0.1)
    assert told.law == "steps"
    assert told.rows == Range(1, 1, 1)


def test_tables_with_a_row_a_cluster_have_the_recipes_clusters() -> None:
    centroids = Cluster(k=500).expand()[0]
    small, large = (
        Measured(centroids, Size(n, k), 1.0, 1, (Batch(n, k, k * 2000, 1.0),)) for n, k in ((250, 15), (1000, 62))
    )
    told = told_of(small, large, whole_of(10**6, stage=centroids, clusters=500, parts=1))
    assert told.rows == Range(500, 500, 500)
    assert told.bytes.value == 500 * 2000


@pytest.mark.parametrize(("first", "second"), [(100.0, 100.0), (100.0, 90.0), (1.0, 1.2)])
def test_what_does_not_grow_stays_and_never_turns_negative(first: float, second: float) -> None:
    stage = Random(keep=0.5)
    told = told_of(at_once(stage, 250, first), at_once(stage, 1000, second), whole_of(10**6, stage=stage, parts=1))
    assert 0 <= told.seconds.low <= told.seconds.value <= told.seconds.high
    if second <= first:
        assert told.seconds.value == second


def test_prices_gpus_and_totals() -> None:
    prices = Prices(currency="EUR", gpu_hour=2.0, gb_month=0.5)
    small, large = part_by_part(250, 4, slots=2), part_by_part(1000, 4, slots=2)
    probed = Probed(small, large, small, whole_of(720_000, slots=2, gpus=1.0))
    both = foretell([probed, probed], prices)
    told = both.stages[0]
    assert told.seconds.value == pytest.approx(3600)
    assert told.gpu_hours.value == pytest.approx(2)
    assert told.cost is not None
    assert told.cost.value == pytest.approx(4)
    assert both.total.seconds.value == pytest.approx(7200)
    assert both.total.cost is not None
    assert both.total.cost.value == pytest.approx(8)
    # stages of one machine share its noise, not their own: more than independent ones, less than all the same
    spread = told.seconds.high - told.seconds.low
    assert math.sqrt(2) * spread < both.total.seconds.high - both.total.seconds.low < 2 * spread
    assert both.total.bytes.high == 2 * told.bytes.high
    said = json.loads(json.dumps(describe(both, prices)))
    assert (said["currency"], said["level"]) == ("EUR", 0.9)
    assert said["storage_cost_per_month"]["value"] == pytest.approx(2 * told.bytes.value / 1e9 * 0.5)
    assert foretell([probed], None).total.cost is None


def test_the_same_probe_foretells_the_same() -> None:
    small, large = part_by_part(250, 4, slots=2), part_by_part(1000, 4, slots=2)
    assert told_of(small, large, whole_of(10**6)) == told_of(small, large, whole_of(10**6))


def test_what_nothing_was_found_of_may_still_be_there() -> None:
    """No row of 1,500 came through: as far as the probe can tell, one in a thousand may."""
    small, large = (part_by_part(n, 4, share=0.0) for n in (250, 1000))
    told = told_of(small, large, whole_of(10**6))
    assert (told.rows.low, told.rows.value) == (0, 0)
    assert 500 < told.rows.high < 5000
    small, large = (part_by_part(n, 4, share=1.0) for n in (250, 1000))
    assert told_of(small, large, whole_of(10**6)).rows == Range(10**6, 10**6, 10**6)


def test_no_more_rows_come_through_than_there_are() -> None:
    small, large = (part_by_part(n, 4, share=0.97, noise=0.02) for n in (250, 1000))
    told = told_of(small, large, whole_of(10**6))
    assert 9e5 < told.rows.low < told.rows.value < told.rows.high <= 10**6


def test_a_source_that_ran_whole_is_as_measured() -> None:
    made = part_by_part(1000, 4)
    told = as_measured([(made, whole_of(1000))], Prices(cpu_hour=1)).total
    assert (told.rows.low, told.rows.value, told.rows.high) == (800, 800, 800)
    assert told.seconds.value == pytest.approx(made.seconds)
    assert told.seconds.low < made.seconds < told.seconds.high
    assert told.cost is not None


def test_no_rows_and_one_part_break_nothing() -> None:
    empty = Measured(Filter(where="true"), Size(4), 0.0, 1, (Batch(4, 0, 500, 0.0),))
    told = told_of(empty, empty, whole_of(10_000, stage=Filter(where="true")))
    assert (told.rows.value, told.seconds.value) == (0, 0)


def shown(total: Forecast, prices: Prices | None) -> str:
    from rich.console import Console

    console = Console(width=80, record=True, file=io.StringIO())
    console.print(render(Told((total,), total), prices))
    return console.export_text()


def forecast_of(seconds: float, cost: Range | None = None) -> Forecast:
    """Return a forecast whose numbers are these, half and one and a half times."""
    rows, size, received, time, gpus = (Range(x / 2, x, x * 1.5) for x in (2e6, 12e9, 3e9, seconds, 0.006))
    return Forecast("deduplicate", "deduplicate", "rows^2 / k", 3, rows, size, received, time, gpus, cost)


def test_eighty_columns_hold_it_with_its_intervals() -> None:
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
def test_times_are_said_in_a_unit_that_fits(seconds: float, text: str) -> None:
    assert f" {text} " in shown(forecast_of(seconds), None)
