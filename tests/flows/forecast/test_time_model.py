"""The forecast of times, on stages whose cost is known."""

import math
from collections.abc import Iterable
from statistics import fmean

import numpy as np
import pytest

from flows.forecast.forecast import forecast
from flows.forecast.interval import Range
from flows.forecast.measurements import MeasuredPart, MeasuredStage, ProbedStage
from flows.forecast.sampling import sample_chunks
from tasks.deduplicate import Deduplicate
from tasks.download import Download
from tasks.prune import Random
from tasks.sources import Chunk, Parquet
from tasks.stage import Size
from tasks.train import TrainClip
from tests.flows.forecast.stages_of_known_cost import at_once, forecast_one, part_by_part, target_of, within


@pytest.mark.parametrize("slots", [1, 2, 8])
@pytest.mark.parametrize(("start_s", "part_s"), [(0, 0), (30, 0), (0, 8), (30, 8)])
def test_start_up_parts_and_rows_are_separated(slots: int, start_s: float, part_s: float) -> None:
    small, large = (part_by_part(n, 16, slots=slots, start_s=start_s, part_s=part_s) for n in (250, 1000))
    rows = 1_600_000  # 160 parts, as many for each slot
    found = forecast_one(small, large, target_of(rows, slots))
    truth = start_s + (160 * part_s + rows * 0.01) / slots
    within(found.seconds, truth, 0.02)
    assert found.rows.value == pytest.approx(rows * 0.8, rel=0.05)
    assert found.bytes.value == pytest.approx(160 * 5000 + rows * 300, rel=0.05)
    assert (found.parts, found.law) == (160, "rows")


Pair = tuple[Range, float]
"""A range, and the true value."""


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
        before, large, after = sample_chunks(Parquet(path="x"), all_, [32, 128, 32], 8, str)
        self.truth, *made = (self.build(chunks) for chunks in (all_, before, large, after))
        wholes = [target_of(rows, 2, parts=len(all_)) for _ in self.STAGES]
        self.found = forecast(list(map(ProbedStage, *made, wholes)), None)

    def build(self, chunks: list[Chunk]) -> list[MeasuredStage]:
        shared = self.rng.normal(0, self.machine)
        return [self.measure(chunks, shared, *known) for known in self.STAGES]

    def measure(
        self, chunks: list[Chunk], shared: float, start_s: float, part_s: float, row_s: float, share: float
    ) -> MeasuredStage:
        off = math.exp(shared + self.rng.normal(0, self.stage))
        clock, batches = [start_s] * 2, []
        for chunk in chunks:
            slot = clock.index(min(clock))
            clock[slot] += part_s + chunk.rows * row_s
            kept = int(self.rng.binomial(chunk.rows, min(1, max(0, share + self.swings[chunk.start // 1000]))))
            batches.append(MeasuredPart(chunk.rows, kept, 5000 + kept * 300, clock[slot] * off))
        return MeasuredStage(Download(), Size(sum(c.rows for c in chunks)), max(clock) * off, 2, tuple(batches))

    def seconds(self) -> list[Pair]:
        """Return (the interval, the truth) of each stage's time, and of the total's."""
        pairs = [(f.seconds, m.seconds) for f, m in zip(self.found.stages, self.truth, strict=True)]
        return [*pairs, (self.found.total.seconds, sum(m.seconds for m in self.truth))]

    def rows(self) -> Pair:
        return self.found.total.rows, sum(b.rows for b in self.truth[-1].parts)

    def bytes(self) -> Pair:
        return self.found.total.bytes, sum(b.bytes for m in self.truth for b in m.parts)


def held(pairs: Iterable[Pair]) -> float:
    """Return the share of these intervals that contain the true value."""
    return fmean([found.low <= truth <= found.high for found, truth in pairs])


def width(pairs: Iterable[Pair]) -> float:
    return np.median([(found.high - found.low) / truth for found, truth in pairs])


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


def test_a_slow_host_matters_less_among_many_rows() -> None:
    """Of two builds of 250 rows one met it: no reason to expect four times as long, or a fourth, of 3,000 rows."""
    small, large, whole = 250, 1000, 3000

    def made(rows: int, seconds: float) -> MeasuredStage:
        batches = tuple(MeasuredPart(rows // 4, rows // 4, 5000, seconds * done) for done in (0.5, 0.5, 1.0, 1.0))
        return MeasuredStage(Download(), Size(rows), seconds, 2, batches)

    def found(*seconds: float) -> Range:
        """Return the forecast beside a stage that took ten times as long and did not vary: the machine is calm."""
        target = target_of(whole, 2, parts=12)
        probed = [
            ProbedStage(made(small, before), made(large, most), made(small, after), target)
            for before, most, after in (seconds, (90.0, 100.0, 90.0))
        ]
        return forecast(probed, None).stages[0].seconds

    calm, slow = found(5.0, 12.0, 5.0), found(9.0, 12.0, 2.0)
    assert slow.high - slow.low > calm.high - calm.low
    assert slow.high < 4 * slow.value  # 8 times, if the noise of 250 rows were that of 3,000


def test_intervals_are_wider_on_a_noisy_machine() -> None:
    widths = {s: width([World(i, s, s, 20_000).seconds()[-1] for i in range(60)]) for s in (0.01, 0.05, 0.2)}
    assert widths[0.01] < 0.5
    assert widths[0.01] < widths[0.05] < widths[0.2] / 2


def test_parts_that_do_not_fill_the_slots_are_counted_in() -> None:
    """Three alike parts in two slots take as long as four."""
    small, large = (part_by_part(n, 4, slots=2) for n in (400, 1600))
    found = forecast_one(small, large, target_of(12_000, slots=2, parts=3))
    assert found.seconds.value == pytest.approx(2 * 4000 * 0.01)


def test_a_larger_pool_than_the_probe_could_fill_is_counted_in() -> None:
    small, large = part_by_part(400, 4, slots=4), part_by_part(1600, 4, slots=4)
    small, large = (m.__class__(m.stage, m.size, m.seconds, 64, m.parts) for m in (small, large))
    found = forecast_one(small, large, target_of(6_400_000, slots=64))
    assert found.seconds.value == pytest.approx(6_400_000 * 0.01 / 64, rel=0.02)


def test_whole_tables_grow_by_their_law() -> None:
    semantic = Deduplicate(semantic={"epsilon": 0.05, "clusters": 100})

    def measured(rows: int) -> MeasuredStage:
        return at_once(semantic, rows, 2 + 1e-8 * semantic.work(Size(rows)))

    rows = 1_000_000
    found = forecast_one(measured(25_000), measured(100_000), target_of(rows, stage=semantic, parts=1))
    within(found.seconds, 2 + 1e-8 * (rows * 100 + rows**2 / 100), 0.05)
    assert found.seconds.value > 15 * (2 + 1e-8 * semantic.work(Size(100_000)))  # more than rows would say
    assert found.law == "rows^2 / k"


def steps_of(rows: int, steps: int, seconds_per_step: float, start_s: float = 5.0) -> MeasuredStage:
    """Return what training takes whose batches are of 128 rows, and whose decoding takes no time."""
    return at_once(TrainClip(steps=steps), rows, start_s + steps * seconds_per_step, kept=1 / rows)


@pytest.mark.parametrize("steps", [600, 6000])
def test_a_stage_with_steps_grows_with_them(steps: int) -> None:
    small, large = (steps_of(n, round(steps * n / 20_000), 0.25) for n in (500, 2000))
    found = forecast_one(small, large, target_of(20_000, stage=TrainClip(steps=steps), parts=1))
    within(found.seconds, 5 + steps * 0.25, 0.1)
    assert found.law == "steps"
    assert found.rows == Range(1, 1, 1)


@pytest.mark.parametrize(("first", "second"), [(100.0, 100.0), (100.0, 90.0), (1.0, 1.2)])
def test_what_does_not_grow_stays_and_never_turns_negative(first: float, second: float) -> None:
    stage = Random(keep=0.5)
    found = forecast_one(
        at_once(stage, 250, first), at_once(stage, 1000, second), target_of(10**6, stage=stage, parts=1)
    )
    assert 0 <= found.seconds.low <= found.seconds.value <= found.seconds.high
    if second <= first:
        assert found.seconds.value == second
