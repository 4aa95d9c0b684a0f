"""Intervals: what they are taken from, and how they add up."""

import numpy as np
import pytest

from flows.forecast.interval import DRAWS, ZERO, Range


def test_an_interval_holds_the_middle_of_the_simulated_values() -> None:
    found = Range.of(np.concatenate([[50.0], np.linspace(0, 100, DRAWS)]))
    assert [found.low, found.value, found.high] == pytest.approx([5, 50, 95])


def test_an_interval_contains_its_estimate_and_nothing_below_zero() -> None:
    assert Range.of(np.concatenate([[7.0], np.full(DRAWS, 2.0)])) == Range(2, 7, 7)
    assert Range.around(1.0, -3.0, 4.0) == Range(0, 1, 4)


def test_intervals_add_and_scale() -> None:
    assert Range(1, 2, 3) + Range(10, 20, 30) == Range(11, 22, 33)
    assert sum([Range(1, 2, 3)], ZERO) == Range(1, 2, 3)
    assert Range(1, 2, 3).times(0.5) == Range(0.5, 1, 1.5)
