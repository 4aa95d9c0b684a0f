"""Rate limits for each host: concurrent requests, the pauses that a host asks for, and a circuit breaker.

A host that fails costs a part a bounded time, however many rows need it:

- *Refusals* (429; 503 with Retry-After, from the third in a row): the host is paused for the time that it asks for, or
  for a backoff that doubles, and then gets one request at a time until one succeeds. All pauses of a host together,
  including those of single rows after a 503, are at most `wait_s`. After `BUSY_AFTER` rows in a row whose first request
  was refused, the host is suspended: `host_busy`. (Later requests of a row do not count: some hosts always answer 429
  for single URLs.)
- *Silence* (time-outs, failed connections, names that cannot be resolved): after `DOWN_AFTER` in a row the host is
  suspended: `host_down`, or `dns_failed`.

A suspended host gets one request, the probe, after `FIRST_PROBE_S`, then after twice that, and so on up to
`LONGEST_PAUSE_S`; if it succeeds, all later rows are requested as before.

The state of hosts belongs to one part. A part is made on one actor, so the number of actors changes no result; which
rows of a host that recovers during a part succeed depends on time, as the host itself does.
"""

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Final

from tasks.download._reasons import FetchError

DOWN_AFTER: Final = 20
"""Requests in a row without a complete response, after which a host is suspended."""

BUSY_AFTER: Final = 8
"""Rows in a row whose first request was refused, after which a host is suspended. Concurrent ones count once."""

_FAILING_AFTER: Final = 3
"""503 with Retry-After in a row that count as the host's refusal; fewer concern single URLs."""

LONGEST_PAUSE_S: Final = 60.0
"""Upper bound of a pause, even if the host asks for a longer one."""

FIRST_PROBE_S: Final = 5.0
"""The first suspension of a host."""

Place = tuple[str, int]


class _Host:
    def __init__(self, place: Place, at_once: int, first_probe_s: float) -> None:
        self.name = f"{place[0]}:{place[1]}"
        self.slots = asyncio.Semaphore(at_once)
        self.users = 0
        self.next_turn = 0.0
        # refusals
        self.not_before = 0.0
        self.waited_until = 0.0
        self.waited_s = 0.0
        self.failures = 0
        self.refusals = 0
        self.refused_rows = 0
        self.wave = 0
        self.alone = False
        self.free = asyncio.Event()
        # silence
        self.misses = 0
        self.last_miss = ""
        # suspension
        self.first_probe_s = first_probe_s
        self.probe_at = 0.0
        self.probe_pause_s = 0.0

    @property
    def suspended(self) -> FetchError | None:
        """The failure of rows while the host is suspended, or None."""
        if self.refused_rows >= BUSY_AFTER:
            return FetchError("host_busy", f"{self.name}: refused {BUSY_AFTER} rows in a row (429 or 503)")
        if self.misses >= DOWN_AFTER:
            reason = "dns_failed" if self.last_miss == "dns_failed" else "host_down"
            detail = f"{self.name}: {DOWN_AFTER} requests in a row without a response (the last: {self.last_miss})"
            return FetchError(reason, detail, retry="later")
        return None

    @property
    def is_idle(self) -> bool:
        calm = not (self.users or self.misses or self.refusals or self.waited_s)
        return calm and self.next_turn <= time.monotonic()


class Turn:
    """One request's turn at a host. At most one of the methods is called, with the result."""

    def __init__(self, host: _Host, first: bool, backoff_s: float, wait_s: float) -> None:
        self._host = host
        self._first = first
        self._wave = host.wave
        self._backoff_s = backoff_s
        self._wait_s = wait_s

    def answered(self) -> None:
        """Record a complete response of any status."""
        host = self._host
        host.misses = 0
        host.failures = 0
        host.probe_pause_s = 0.0
        if self._wave == host.wave:
            host.refusals = host.refused_rows = 0

    def missed(self, reason: str) -> None:
        """Record that no complete response arrived; `reason` is the row's."""
        self._host.misses += 1
        self._host.last_miss = reason
        self._suspend()

    def refused(self, pause_s: float | None) -> None:
        """Record a 429, and pause the host: `pause_s` is what it asks for."""
        host = self._host
        host.misses = 0
        if self._wave == host.wave:  # the first of the concurrent ones
            host.wave += 1
            host.refusals += 1
            host.refused_rows += self._first
            pause_s = max(pause_s or 0.0, self._backoff_s * 2.0 ** (host.refusals - 1))
        host.not_before = max(host.not_before, time.monotonic() + self._granted_s(pause_s or 0.0))
        self._suspend()

    def failed(self, pause_s: float) -> float:
        """Record a 503 that asks for a pause; return how long the row may wait for it."""
        host = self._host
        host.failures += 1
        if host.failures < _FAILING_AFTER:
            host.misses = 0
            return self._granted_s(pause_s)
        self.refused(pause_s)
        return 0.0

    def _granted_s(self, pause_s: float) -> float:
        """Return how much of a pause is within the limit. Overlapping pauses count once."""
        host, now = self._host, time.monotonic()
        pause_s = min(pause_s, LONGEST_PAUSE_S)
        begins = max(now, host.waited_until)
        more_s = min(now + pause_s - begins, self._wait_s - host.waited_s)
        if more_s > 0:
            host.waited_until = begins + more_s
            host.waited_s += more_s
        return max(0.0, min(pause_s, host.waited_until - now))

    def _suspend(self) -> None:
        host = self._host
        if host.suspended and time.monotonic() >= host.probe_at:
            host.probe_pause_s = min(max(host.first_probe_s, 2 * host.probe_pause_s), LONGEST_PAUSE_S)
            host.probe_at = time.monotonic() + host.probe_pause_s


class Hosts:
    """The hosts with requests. Hosts without requests or failures are dropped.

    `crawl_wait_s`: longest wait for a turn that a Crawl-delay asks for. `wait_s`: all pauses of one host together.
    `backoff_s`: the first pause if a host refuses without Retry-After. `first_probe_s`: the first suspension of a host.
    """

    def __init__(
        self,
        per_host: int,
        crawl_wait_s: float,
        wait_s: float,
        backoff_s: float,
        first_probe_s: float = FIRST_PROBE_S,
    ) -> None:
        self._per_host = per_host
        self._crawl_wait_s = crawl_wait_s
        self._wait_s = wait_s
        self._backoff_s = backoff_s
        self._first_probe_s = first_probe_s
        self._hosts: dict[Place, _Host] = {}

    @asynccontextmanager
    async def slot(self, place: Place, delay_s: float = 0.0, first: bool = True) -> AsyncIterator[Turn]:
        """Hold one of the host's slots, after the pause that it asked for, `delay_s` after the previous one.

        `first`: this is the row's first request.

        Raises FetchError: host_down, host_busy, dns_failed if the host is suspended; rate_limited if the turn would
        come after the longest wait.
        """
        host = self._hosts.get(place)
        if host is None:
            host = self._hosts[place] = _Host(place, self._per_host, self._first_probe_s)
        host.users += 1
        try:
            async with host.slots:
                alone = await self._admitted(host)
                try:
                    if delay_s:
                        await self._crawl_turn(host, delay_s)
                    yield Turn(host, first, self._backoff_s, self._wait_s)
                finally:
                    if alone:
                        host.alone = False
                        host.free.set()
        finally:
            host.users -= 1
            if host.is_idle:
                self._hosts.pop(place, None)

    async def _admitted(self, host: _Host) -> bool:
        """Wait until the host accepts requests; return whether this row is the only one. Raises FetchError."""
        while True:
            now = time.monotonic()
            failed = host.suspended
            if failed and (host.alone or now < host.probe_at):
                raise failed
            if not failed and now < host.not_before:
                await asyncio.sleep(host.not_before - now)
            elif not failed and not host.refusals:
                return False
            elif host.alone:
                await host.free.wait()
            else:
                host.alone = True
                host.free.clear()
                return True

    async def _crawl_turn(self, host: _Host, delay_s: float) -> None:
        """Wait for a turn, and schedule the next one `delay_s` after it."""
        now = time.monotonic()
        turn = max(now, host.next_turn)
        if turn - now > self._crawl_wait_s:
            raise FetchError(
                "rate_limited",
                f"robots.txt: Crawl-delay {delay_s:g} s; the turn would come in {turn - now:.0f} s, "
                f"limit {self._crawl_wait_s:g} s",
                retry="later",
            )
        host.next_turn = turn + delay_s
        await asyncio.sleep(turn - now)
