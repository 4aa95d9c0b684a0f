"""What is measured of a stage."""

import pytest

from flows.forecast.measurements import busy_slots


@pytest.mark.parametrize(
    ("rows", "slots", "busy"),
    [([5, 5, 5], 2, 1.5), ([5, 5, 5, 5], 2, 2), ([9], 8, 1), ([4, 4, 2], 2, 10 / 6), ([0], 3, 1)],
)
def test_slots_wait_for_the_last_part(rows: list[int], slots: int, busy: float) -> None:
    assert busy_slots(rows, slots) == pytest.approx(busy)
