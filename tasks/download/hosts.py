"""Politeness, host by host: so many requests at once, pauses that the host asked for, and when to leave it alone."""

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Final

from tasks.download.reasons import FetchError

DOWN_AFTER: Final = 20
"""Timeouts in a row, without a single response, after which a host is not asked again."""

LONGEST_PAUSE_S: Final = 60.0
"""A host that asks for a longer pause is left alone until a later build."""


class _Host:
    def __init__(self, at_once: int) -> None:
        self.slots = asyncio.Semaphore(at_once)
        self.not_before = 0.0
        self.next_turn = 0.0
        self.timeouts = 0
        self.users = 0


class Hosts:
    """The hosts that are being asked. Those that nobody asks, and that gave no trouble, are forgotten."""

    def __init__(self, per_host: int, longest_wait_s: float = LONGEST_PAUSE_S) -> None:
        self._per_host = per_host
        self._longest_wait_s = longest_wait_s
        self._hosts: dict[tuple[str, int], _Host] = {}

    @asynccontextmanager
    async def slot(self, place: tuple[str, int], delay_s: float = 0.0) -> AsyncIterator[None]:
        """Hold one of the host's slots, after the pause that it asked for, `delay_s` after the one before.

        Raises FetchError: host_down; rate_limited, also where the turn would come after the longest wait.
        """
        host = self._hosts.setdefault(place, _Host(self._per_host))
        host.users += 1
        try:
            async with host.slots:
                if host.timeouts >= DOWN_AFTER:
                    raise FetchError("host_down", f"{place[0]}:{place[1]}, {host.timeouts} timeouts in a row")
                while (pause_s := host.not_before - time.monotonic()) > 0:
                    if pause_s > LONGEST_PAUSE_S:
                        raise FetchError("rate_limited", f"the host asks to wait {pause_s:.0f} s", retry="later")
                    await asyncio.sleep(pause_s)
                if delay_s:
                    await self._turn(host, delay_s)
                yield
        finally:
            host.users -= 1
            if not host.users and not host.timeouts and max(host.not_before, host.next_turn) <= time.monotonic():
                self._hosts.pop(place, None)

    async def _turn(self, host: _Host, delay_s: float) -> None:
        """Wait for a turn, and put the next one `delay_s` behind it."""
        now = time.monotonic()
        turn = max(now, host.next_turn)
        if turn - now > self._longest_wait_s:
            raise FetchError(
                "rate_limited",
                f"robots.txt: Crawl-delay {delay_s:g} s; the turn would come in {turn - now:.0f} s, "
                f"limit {self._longest_wait_s:g} s",
                retry="later",
            )
        host.next_turn = turn + delay_s
        await asyncio.sleep(turn - now)

    def pause(self, place: tuple[str, int], pause_s: float) -> None:
        """Ask this host nothing for a while. Only where its slot is held."""
        host = self._hosts[place]
        host.not_before = max(host.not_before, time.monotonic() + pause_s)

    def answered(self, place: tuple[str, int]) -> None:
        """Note that the host is alive. Only where its slot is held."""
        self._hosts[place].timeouts = 0

    def timed_out(self, place: tuple[str, int]) -> None:
        """Note a request without any response. Only where its slot is held."""
        self._hosts[place].timeouts += 1
