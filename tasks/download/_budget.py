"""A shared limit on the bytes of the rows in flight, so that memory does not depend on what servers send."""

import asyncio
from heapq import heappop, heappush
from threading import Lock


class NoRoomError(Exception):
    """A row needs more bytes than are free: it must release its slots and wait (`Holding.wait_for`)."""

    def __init__(self, size: int) -> None:
        super().__init__(size)
        self.size = size


class ByteBudget:
    """Bytes shared by the rows in flight, which are handed over in order.

    The row that is handed over next (`head`) is never refused, and no row waits here while it holds a slot that the
    head may need (see `Holding`): so the head completes, the next row becomes head, and there is no deadlock.
    `reserve` and `wake` may be called only in the loop's thread, the other methods in any.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._used = 0
        self._head = 0
        self._lock = Lock()
        self._waiters: list[tuple[int, int, asyncio.Future[None]]] = []

    @property
    def exhausted(self) -> bool:
        """Whether no new row should be started."""
        return self._used >= self._limit

    async def reserve(self, row: int, size: int) -> None:
        """Take `size` bytes for a row; wait, after older rows, until they are free, or until it is the head."""
        granted = asyncio.get_running_loop().create_future()
        heappush(self._waiters, (row, size, granted))
        self.wake()
        await granted

    def take(self, row: int, size: int) -> bool:
        """Take `size` bytes for a row if they are free, or if it is the head; return whether they were taken."""
        with self._lock:
            if self._used + size > self._limit and row != self._head:
                return False
            self._used += size
            return True

    def give_back(self, size: int) -> None:
        """Return bytes. Waiting rows are notified by the next `wake`."""
        with self._lock:
            self._used -= size

    def advance(self, head: int) -> None:
        """Set the row that is handed over next."""
        with self._lock:
            self._head = head

    def wake(self) -> None:
        """Resume waiting rows, the oldest first, while bytes are free. Only in the loop's thread."""
        while self._waiters:
            row, size, granted = self._waiters[0]
            if not granted.done():
                if not self.take(row, size):
                    return
                granted.set_result(None)
            heappop(self._waiters)


class Holding:
    """The bytes that one row holds of the budget."""

    def __init__(self, budget: ByteBudget, row: int) -> None:
        self.size = 0
        self._budget = budget
        self._row = row

    def grow(self, to: int) -> None:
        """Hold at least `to` bytes. Raises NoRoomError."""
        if to > self.size:
            if not self._budget.take(self._row, to - self.size):
                raise NoRoomError(to)
            self.size = to

    def shrink(self, to: int) -> None:
        """Hold exactly `to` bytes: fewer, or (for bytes that are already in memory) more than before."""
        self._budget.give_back(self.size - to)
        self._budget.wake()
        self.size = to

    async def wait_for(self, size: int) -> None:
        """Release everything, then wait until `size` bytes are free, and hold them."""
        self.shrink(0)
        await self._budget.reserve(self._row, size)
        self.size = size
