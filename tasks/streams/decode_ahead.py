"""Preparing batches ahead: while the device works on one forward batch, threads prepare the next ones.

Pillow, OpenCV and NumPy release the interpreter's lock while they work, so threads are enough.
"""

import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from queue import Full, Queue
from typing import Final, Protocol, TypeVar

import pyarrow as pa

from tasks.streams.rebatch import rebatch

_POLL_S: Final = 0.1


class Preparable(Protocol):
    """A forward batch that is ready for the device once all of its jobs are done."""

    def jobs(self) -> Iterable[Callable[[], None]]:
        """Yield what threads may do in any order: each job fills in its own rows."""


Batch = TypeVar("Batch", bound=Preparable)


def prepare_ahead(
    batches: Iterator[pa.Table], size: int, threads: int, prepare: Callable[[pa.Table], Batch], queued: int
) -> Iterator[Batch]:
    """Yield `prepare` of the rows of `batches`, `size` rows at once (the last time fewer), in order and with jobs done.

    Beside the batch that was yielded, at most `queued` + 1 are prepared or under way: this bounds the memory.
    Exceptions of the input and of jobs are raised here.
    """
    stop = threading.Event()
    queue: Queue[tuple[Batch, list[Future[None]]] | None] = Queue(queued)

    def put(item: tuple[Batch, list[Future[None]]] | None) -> None:
        while not stop.is_set():
            with suppress(Full):
                queue.put(item, timeout=_POLL_S)
                return

    with ThreadPoolExecutor(threads, "decode") as pool, ThreadPoolExecutor(1, "read") as reader:

        def read() -> None:
            try:
                for rows in rebatch(batches, size):
                    prepared = prepare(rows)
                    put((prepared, [pool.submit(job) for job in prepared.jobs()]))
                    if stop.is_set():
                        return
            finally:
                put(None)

        reading = reader.submit(read)
        try:
            while (item := queue.get()) is not None:
                prepared, jobs = item
                for job in jobs:
                    job.result()
                yield prepared
            reading.result()  # raises the exceptions of the input
        finally:
            stop.set()
            reading.exception()  # it has stopped: no more jobs are submitted to the pool
            pool.shutdown(wait=False, cancel_futures=True)
