"""A function applied to many items on all cores of this process, one thread an item."""

from collections.abc import Callable, Iterable, Iterator
from typing import Final

from tasks.streams.ordered_map import Item, Result, ordered_map

AHEAD: Final = 12
"""Items that are drawn beyond one a thread: work for the threads while the next items are read."""


def on_cores(
    function: Callable[[Item], Result], items: Iterable[Item], device: str, ahead: int = AHEAD
) -> Iterator[Result]:
    """Yield `function` of each item, in order. On the CPU torch's threads process one item each at the same time; up to
    `ahead` more items are queued or done.

    This is cheaper than products on all threads: no thread waits for another at the end of each operation, conversions
    and maxima are parallel too, and this thread reads the next items meanwhile.
    """
    import torch

    threads = torch.get_num_threads()
    if device != "cpu" or threads == 1:
        yield from map(function, items)
        return
    torch.set_num_threads(1)  # of this thread, and of those that start from now on
    try:
        yield from ordered_map(function, items, threads, ahead)
    finally:
        torch.set_num_threads(threads)
