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
        self.timeouts = 0
        self.users = 0


class Hosts:
    """The hosts that are being asked. Those that nobody asks, and that gave no trouble, are forgotten."""

    def __init__(self, per_host: int) -> None:
        self._per_host = per_host
        self._hosts: dict[tuple[str, int], _Host] = {}

    @asynccontextmanager
    async def slot(self, place: tuple[str, int]) -> AsyncIterator[None]:
        """Hold one of the host's slots, after the pause that it asked for.

        Raises FetchError: host_down, rate_limited.
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
                yield
        finally:
            host.users -= 1
            if not host.users and not host.timeouts and host.not_before <= time.monotonic():
                self._hosts.pop(place, None)

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
