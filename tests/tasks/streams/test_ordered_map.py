"""The ordered map: in order, bounded, and stopped by an exception or when it is abandoned."""

import time
from collections.abc import Iterator

import pytest

from tasks.streams.ordered_map import ordered_map


def test_results_are_in_order_and_prefetching_is_bounded() -> None:
    drawn: list[int] = []

    def items() -> Iterator[int]:
        for number in range(30):
            drawn.append(number)
            yield number

    def slowest_first(number: int) -> int:
        time.sleep(0.003 * (number % 3 == 0))
        return -number

    for taken, result in enumerate(ordered_map(slowest_first, items(), threads=3, ahead=2)):
        assert result == -taken
        assert len(drawn) <= taken + 5
    assert len(drawn) == 30
    assert list(ordered_map(slowest_first, [], threads=3)) == []


def test_an_exception_is_raised_in_order_and_stops_the_map() -> None:
    begun: list[int] = []

    def half(number: int) -> float:
        begun.append(number)
        return 6 / number

    found = ordered_map(half, [2, 3, 0, *range(1, 100)], threads=2)
    assert [next(found), next(found)] == [3, 2]
    with pytest.raises(ZeroDivisionError):
        next(found)
    assert len(begun) <= 6
    assert list(found) == []


def test_an_abandoned_map_starts_no_more_items() -> None:
    begun: list[int] = []
    found = ordered_map(begun.append, range(100), threads=2)
    next(found)
    found.close()  # type: ignore[attr-defined]
    assert len(begun) <= 4
