"""What a probe measures of each stage, and the build that the stage is forecast for."""

import heapq
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

from tasks.stage import Size, Stage

Quantity = Literal["rows", "bytes", "received"]
"""What is summed over the parts of a stage."""


class MeasuredPart(NamedTuple):
    """One part that a probe made."""

    source_rows: int
    """Rows of the source that the part was made from."""
    rows: int
    bytes: int
    """Of its Parquet file and its shard."""
    at_s: float
    """Seconds from the start of the stage to the end of the part."""
    received: int = 0
    """Bytes that were downloaded."""


@dataclass(frozen=True)
class MeasuredStage:
    """One stage in one build of a probe."""

    stage: Stage
    size: Size
    seconds: float
    slots: int
    """The number of parts that are made concurrently."""
    parts: tuple[MeasuredPart, ...]

    def total(self, quantity: Quantity) -> float:
        """Return the sum of a quantity over all parts."""
        return float(sum(getattr(part, quantity) for part in self.parts))

    @property
    def busy(self) -> float:
        """How many slots were busy, on average."""
        return busy_slots([part.source_rows for part in self.parts], self.slots)


class TargetStage(NamedTuple):
    """One stage in the build that is forecast."""

    stage: Stage
    size: Size
    parts: int
    slots: int
    busy: float
    """How many slots will be busy, on average (`busy_slots`)."""
    gpus: float
    """GPUs of one slot."""


class ProbedStage(NamedTuple):
    """One stage in the three measured builds of a probe, and in the build that is forecast."""

    before: MeasuredStage
    large: MeasuredStage
    after: MeasuredStage
    """`before` and `after` are small builds, with equally many rows."""
    target: TargetStage

    @property
    def builds(self) -> tuple[MeasuredStage, MeasuredStage, MeasuredStage]:
        """The three measured builds, in the order in which they ran."""
        return self.before, self.large, self.after


def busy_slots(rows: Sequence[int], slots: int) -> float:
    """Return how many slots are busy, on average, while parts of these rows are made, each by the first free slot.

    Three equal parts in two slots take as long as four: 1.5 slots are busy.
    """
    free_at = [0] * max(1, min(slots, len(rows)))
    for n in rows:
        heapq.heapreplace(free_at, free_at[0] + n)
    return sum(rows) / max(free_at) if any(rows) else float(len(free_at))
