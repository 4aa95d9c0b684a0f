"""What a build will take, from two builds of few rows: the mathematics, on stages whose true cost is known."""

import io
import random

import pytest

from flows.estimate import (
    LAWS,
    Batch,
    Forecast,
    Measured,
    Range,
    Size,
    Whole,
    as_measured,
    describe_forecasts,
    duration,
    forecast,
    render_forecasts,
    total,
)
from flows.recipe import Prices
from tasks.cluster import Cluster
from tasks.deduplicate import Deduplicate
from tasks.download import Download
from tasks.filter import Filter
from tasks.prune import Random

ROWS_A_PART = 10_000


def part_by_part(
    rows, parts, slots=1, start_s=0.0, part_s=0.0, row_s=0.01, share=0.8, overhead=5000, noise=0.0, seed=0
):
    """Return what a stage would measure whose cost is known: every slot starts, then makes its parts."""
    rng = random.Random(seed)
    each, batches, clock = rows // parts, [], [start_s] * slots
    for i in range(parts):
        off = 1 + rng.uniform(-noise, noise)
        clock[i % slots] += (part_s + each * row_s) * off
        batches.append(Batch(each, round(each * share * off), round((overhead + each * 300) * off), clock[i % slots]))
    return Measured(Download(), Size(rows), max(clock), slots, tuple(batches))


def whole_of(rows, slots=1, stage=None, clusters=1, gpus=0.0, parts=None):
    parts = parts or -(-rows // ROWS_A_PART)
    return Whole(stage or Download(), Size(rows, clusters), parts, slots, gpus)


def within(range_, truth, tolerance):
    assert range_.low <= truth * (1 + tolerance)
    assert range_.high >= truth * (1 - tolerance)
    assert range_.value == pytest.approx(truth, rel=tolerance)


@pytest.mark.parametrize("slots", [1, 2, 8])
@pytest.mark.parametrize(("start_s", "part_s"), [(0, 0), (30, 0), (0, 8), (30, 8)])
def test_start_up_parts_and_rows_are_told_apart(slots, start_s, part_s):
    known = {"slots": slots, "start_s": start_s, "part_s": part_s}
    small, large = part_by_part(250, 16, **known), part_by_part(1000, 16, **known)
    rows = 1_600_000  # 160 parts, as many for each slot
    told = forecast(small, large, whole_of(rows, slots), None)
    truth = start_s + (160 * part_s + rows * 0.01) / slots
    within(told.seconds, truth, 0.02)
    assert told.rows.value == pytest.approx(rows * 0.8, rel=0.05)
    assert told.bytes.value == pytest.approx(160 * 5000 + rows * 300, rel=0.05)
    assert (told.parts, told.law) == (160, "rows")


def test_intervals_hold_the_truth_where_parts_are_noisy():
    """Parts that are up to a tenth off: the share of 100 probes whose interval holds the truth."""
    held = dict.fromkeys(("seconds", "rows", "bytes"), 0)
    truths = {"seconds": 5 + 5000, "rows": 800_000, "bytes": 100 * 5000 + 3e8}
    for seed in range(100):
        small = part_by_part(256, 16, slots=2, start_s=5, noise=0.1, seed=seed)
        large = part_by_part(1024, 16, slots=2, start_s=5, noise=0.1, seed=1000 + seed)
        told = forecast(small, large, whole_of(1_000_000, 2), None)
        for name, truth in truths.items():
            range_ = getattr(told, name)
            held[name] += range_.low <= truth <= range_.high
            assert range_.high - range_.low < truth  # and says something, though half of a probe's time is start-up
    assert min(held.values()) >= 90, held


def test_a_larger_pool_than_the_probe_could_fill_is_counted_in():
    small, large = part_by_part(400, 4, slots=4), part_by_part(1600, 4, slots=4)
    small, large = (m.__class__(m.stage, m.size, m.seconds, 64, m.batches) for m in (small, large))
    told = forecast(small, large, whole_of(6_400_000, slots=64), None)
    assert told.seconds.value == pytest.approx(6_400_000 * 0.01 / 64, rel=0.02)


def at_once(stage, rows, seconds, clusters=1, kept=0.5):
    return Measured(stage, Size(rows, clusters), seconds, 1, (Batch(rows, round(rows * kept), rows * 20, seconds),))


def test_whole_tables_grow_by_their_law():
    semantic = Deduplicate(semantic={"epsilon": 0.05, "clusters": 100})
    work = LAWS["deduplicate"].work

    def measured(rows):
        return at_once(semantic, rows, 2 + 1e-8 * work(semantic, Size(rows)))

    rows = 1_000_000
    told = forecast(measured(25_000), measured(100_000), whole_of(rows, stage=semantic, parts=1), None)
    within(told.seconds, 2 + 1e-8 * (rows * 100 + rows**2 / 100), 0.05)
    assert told.seconds.value > 15 * (2 + 1e-8 * work(semantic, Size(100_000)))  # more than rows would say
    assert told.law == "rows^2 / clusters"
    exact = Deduplicate(exact=True, perceptual=None)
    assert work(exact, Size(10)) * 2 == work(exact, Size(20))


def test_clusters_count_for_those_who_compare_with_them():
    centroids, assign = Cluster(k=500).expand()[:2]
    assert LAWS["assign"].work(assign, Size(1000, 500)) / LAWS["assign"].work(assign, Size(1000, 50)) == 4
    fitted = LAWS["centroids"].work
    few, many, more = (fitted(centroids, Size(n, 500)) for n in (10_000, 1_000_000, 10_000_000))
    assert many / few > 10
    assert more / many < 3  # the sample is full: only reading goes on


def test_tables_with_a_row_a_cluster_have_the_recipes_clusters() -> None:
    centroids = Cluster(k=500).expand()[0]
    small, large = (
        Measured(centroids, Size(n, k), 1.0, 1, (Batch(n, k, k * 2000, 1.0),)) for n, k in ((250, 15), (1000, 62))
    )
    told = forecast(small, large, whole_of(10**6, stage=centroids, clusters=500, parts=1), None)
    assert told.rows == Range(500, 500, 500)
    assert told.bytes.value == 500 * 2000


@pytest.mark.parametrize(("first", "second"), [(100.0, 100.0), (100.0, 90.0), (1.0, 1.2)])
def test_what_does_not_grow_stays_and_never_turns_negative(first, second):
    stage = Random(keep=0.5)
    told = forecast(
        at_once(stage, 250, first), at_once(stage, 1000, second), whole_of(10**6, stage=stage, parts=1), None
    )
    assert 0 <= told.seconds.low <= told.seconds.value <= told.seconds.high
    if second <= first:
        assert told.seconds.value == second


def test_prices_gpus_and_totals():
    prices = Prices(currency="EUR", gpu_hour=2.0, gb_month=0.5)
    small, large = part_by_part(250, 4, slots=2), part_by_part(1000, 4, slots=2)
    told = forecast(small, large, whole_of(720_000, slots=2, gpus=1.0), prices)
    assert told.seconds.value == pytest.approx(3600)
    assert told.gpu_hours.value == pytest.approx(2)
    assert told.cost is not None
    assert told.cost.value == pytest.approx(4)
    both = total([told, told], prices)
    assert both.seconds.value == pytest.approx(7200)
    assert both.cost.high == pytest.approx(2 * told.cost.high)
    said = describe_forecasts([told], prices)
    assert said["currency"] == "EUR"
    assert said["storage_cost_per_month"]["value"] == pytest.approx(told.bytes.value / 1e9 * 0.5)
    assert total([told], None).cost is None


def test_a_source_that_ran_whole_is_as_measured():
    made = part_by_part(1000, 4)
    told = as_measured(made, whole_of(1000), Prices(cpu_hour=1))
    assert (told.rows.low, told.rows.value, told.rows.high) == (800, 800, 800)
    assert told.seconds.value == made.seconds
    assert told.cost is not None


def test_no_rows_and_one_part_break_nothing():
    empty = Measured(Filter(where="true"), Size(4), 0.0, 1, (Batch(4, 0, 500, 0.0),))
    told = forecast(empty, empty, whole_of(10_000, stage=Filter(where="true")), None)
    assert (told.rows.value, told.seconds.value) == (0, 0)


def test_it_is_shown_with_its_intervals():
    from rich.console import Console

    told = Forecast(
        "download", "download", "rows", 3, *(Range(1e6 * x, 2e6 * x, 3e6 * x) for x in (1, 5, 0.003, 0)), None
    )
    console = Console(width=160, record=True, file=io.StringIO())
    console.print(render_forecasts([told], None))
    text = console.export_text()
    for word in (
        "2,000,000 (1,000,000 .. 3,000,000)",
        "10.0 (5.0 .. 15.0)",
        "1 h 40 min (50 min 0 s .. 2 h 30 min)",
        "unknown",
    ):
        assert word in text


@pytest.mark.parametrize(("seconds", "text"), [(4.24, "4.2 s"), (42, "42 s"), (200, "3 min 20 s"), (7500, "2 h 5 min")])
def test_times_are_said_as_people_do(seconds, text):
    assert duration(seconds) == text
