"""Batches are prepared ahead: in order, bounded, and stopped by an exception or by their consumer."""

import threading
import time
from collections.abc import Callable, Iterable, Iterator
from functools import partial

import pyarrow as pa
import pytest

from tasks.streams.decode_ahead import prepare_ahead
from tests.helpers import wait_for

QUEUED = 2


class Squares:
    """A forward batch whose jobs each fill in one row."""

    def __init__(self, rows: pa.Table) -> None:
        self.values: list[int] = rows["value"].to_pylist()
        self.squares: dict[int, int] = {}

    def jobs(self) -> Iterable[Callable[[], None]]:
        return [partial(self.fill_in, value) for value in self.values]

    def fill_in(self, value: int) -> None:
        if value < 0:
            raise ValueError(f"{value} is negative")
        self.squares[value] = value * value


def tables(*values: list[int]) -> Iterator[pa.Table]:
    return (pa.table({"value": pa.array(rows, pa.int64())}) for rows in values)


def has(rows: list[pa.Table], count: int) -> bool:
    return len(rows) >= count


def test_batches_are_in_order_and_their_jobs_are_done() -> None:
    found = prepare_ahead(tables([1, 2, 3, 4, 5], [], [6, 7]), 3, 4, Squares, QUEUED)
    # Jobs are looked at when a batch is yielded, before the next one is requested.
    seen = [(batch.values, dict(sorted(batch.squares.items()))) for batch in found]
    assert [values for values, _ in seen] == [[1, 2, 3], [4, 5, 6], [7]]
    assert [squares for _, squares in seen] == [{v: v * v for v in values} for values, _ in seen]


def test_no_rows_make_no_batch() -> None:
    assert list(prepare_ahead(tables(), 3, 2, Squares, QUEUED)) == []
    assert list(prepare_ahead(tables([], []), 3, 2, Squares, QUEUED)) == []


def test_an_exception_of_a_job_is_raised_at_its_batch() -> None:
    found = prepare_ahead(tables([1, 2, -3, 4]), 2, 2, Squares, QUEUED)
    assert next(found).values == [1, 2]
    with pytest.raises(ValueError, match="-3 is negative"):
        next(found)


def test_an_exception_of_the_input_is_raised_after_the_batches_before_it() -> None:
    def failing() -> Iterator[pa.Table]:
        yield from tables([1, 2])
        raise OSError("the file is damaged")

    found = prepare_ahead(failing(), 2, 2, Squares, QUEUED)
    assert next(found).values == [1, 2]
    with pytest.raises(OSError, match="the file is damaged"):
        next(found)


def test_what_is_prepared_is_bounded_and_an_abandoned_iterator_leaves_no_thread() -> None:
    before, made = threading.active_count(), []

    def prepare(rows: pa.Table) -> Squares:
        made.append(rows)
        return Squares(rows)

    endless = (table for _ in iter(int, 1) for table in tables([1, 2]))
    found = prepare_ahead(endless, 2, 2, prepare, QUEUED)
    for taken in range(1, 5):
        next(found)
        wait_for(partial(has, made, taken + QUEUED + 1))
        time.sleep(0.05)  # time in which a queue without a bound would grow
        assert len(made) == taken + QUEUED + 1
    found.close()  # type: ignore[attr-defined]
    assert len(made) <= 4 + QUEUED + 2
    assert threading.active_count() == before
