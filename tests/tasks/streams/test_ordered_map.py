"""Work on threads: in order, bounded, and ended where it fails or is given up."""

import time
from collections.abc import Iterator

import pytest

from tasks.streams.ordered_map import in_order


def test_the_order_is_that_of_the_items_and_few_are_drawn_ahead() -> None:
    drawn: list[int] = []

    def items() -> Iterator[int]:
        for number in range(30):
            drawn.append(number)
            yield number

    def slowest_first(number: int) -> int:
        time.sleep(0.003 * (number % 3 == 0))
        return -number

    for taken, result in enumerate(in_order(slowest_first, items(), threads=3, ahead=2)):
        assert result == -taken
        assert len(drawn) <= taken + 5
    assert len(drawn) == 30
    assert list(in_order(slowest_first, [], threads=3)) == []


def test_what_the_work_raises_comes_in_its_turn_and_ends_it() -> None:
    begun: list[int] = []

    def half(number: int) -> float:
        begun.append(number)
        return 6 / number

    found = in_order(half, [2, 3, 0, *range(1, 100)], threads=2)
    assert [next(found), next(found)] == [3, 2]
    with pytest.raises(ZeroDivisionError):
        next(found)
    assert len(begun) <= 6
    assert list(found) == []


def test_what_is_given_up_is_not_finished() -> None:
    begun: list[int] = []
    found = in_order(begun.append, range(100), threads=2)
    next(found)
    found.close()  # type: ignore[attr-defined]
    assert len(begun) <= 4
