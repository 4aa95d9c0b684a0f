"""Numbers with a prediction interval, and the simulated values that intervals are taken from."""

from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

LEVEL: Final = 0.9
"""The share of intervals that contain the true value."""
DRAWS: Final = 4000
"""How many simulated builds an interval is taken from."""

Draws = NDArray[np.float64]
"""Values of one quantity, (1 + DRAWS,): the estimate, then its value in each simulated build."""


@dataclass(frozen=True)
class Range:
    """An estimate, and the ends of its prediction interval."""

    low: float
    value: float
    high: float

    def __add__(self, other: "Range") -> "Range":
        return Range(self.low + other.low, self.value + other.value, self.high + other.high)

    def times(self, factor: float) -> "Range":
        """Return the range multiplied by `factor` (0 or more)."""
        return Range(self.low * factor, self.value * factor, self.high * factor)

    @classmethod
    def around(cls, value: float, *others: float) -> "Range":
        """Return the range from the smallest to the largest of several values, none below 0."""
        return cls(max(0.0, min(value, *others)), max(0.0, value), max(0.0, value, *others))

    @classmethod
    def of(cls, draws: Draws) -> "Range":
        """Return the estimate, and the interval that holds the middle LEVEL of the simulated values."""
        low, high = np.quantile(draws[1:], [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
        return cls.around(float(draws[0]), float(low), float(high))


ZERO: Final = Range(0.0, 0.0, 0.0)
