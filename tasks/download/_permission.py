"""Check whether a host allows a request (robots.txt), and its rightsholder the use of a picture (TDM reservation)."""

from collections.abc import Awaitable, Callable, Mapping
from concurrent.futures import Executor
from functools import partial
from typing import Final

from yarl import URL

from tasks.download import _robots as robots
from tasks.download import _tdm as tdm
from tasks.download._addresses import AllowedHosts
from tasks.download._base import Settings
from tasks.download._reasons import FetchError
from tasks.download._robots import Robots
from tasks.download._site_files import DiskCache, MemoryCache, SiteFiles
from tasks.download._tdm import Reservations
from tasks.files.cache import cache_folder

_OF_THE_HOST: Final = ("bad_url", "private_address", "dns_failed", "connection_failed", "tls_failed")
"""Failures that apply to any URL of the host: the row gets this more specific reason."""


class Memory:
    """Parsed files of hosts, for the lifetime of an engine."""

    def __init__(self) -> None:
        self.robots: MemoryCache[Robots] = MemoryCache()
        self.reservations: MemoryCache[Reservations] = MemoryCache()


class Permission:
    """Decides, for each host and each response, with evidence. `ask` fetches a text file, as in `SiteFiles`.

    Hosts in the recipe's `allow_hosts` are not cached on disk: a private address may later belong to another service.
    """

    def __init__(
        self,
        settings: Settings,
        allowed: AllowedHosts,
        memory: Memory,
        ask: Callable[[URL], Awaitable[str]],
        executor: Executor,
    ) -> None:
        self._allowed = allowed
        self._robots: SiteFiles[Robots] | None = None
        self._reservations: SiteFiles[Reservations] | None = None
        if settings.obeys_robots:
            parse = partial(Robots, token=settings.user_agent_token or robots.AGENT)
            disk = DiskCache(cache_folder("robots"))
            self._robots = SiteFiles(robots.PATH, ask, parse, memory.robots, disk, executor)
        if settings.obeys_tdm:
            disk = DiskCache(cache_folder("tdmrep"))
            self._reservations = SiteFiles(tdm.PATH, ask, Reservations, memory.reservations, disk, executor)

    async def check_request(self, url: URL) -> float:
        """Return how many seconds the host wants between requests. Raises FetchError if it forbids this one.

        robots_disallowed: by a rule. robots_unreachable: robots.txt could not be fetched, so everything is forbidden
        (RFC 9309, section 2.3.1.4). bad_url, private_address, dns_failed, connection_failed, tls_failed: the host
        cannot be reached.
        """
        delay_s = await self._by_robots(url) if self._robots else 0.0
        await self._reserved_by_file(url)  # now, so that no response waits for it
        return delay_s

    async def check_response(self, url: URL, headers: Mapping[str, str]) -> None:
        """Raise FetchError (tdm_reserved) if a response's headers, or else its host's file, reserve it."""
        if self._reservations is None:
            return
        reserved = tdm.header_says(headers)
        if reserved is None:
            evidence = await self._reserved_by_file(url)
        else:
            evidence = tdm.header_evidence(headers) if reserved else None
        if evidence is not None:
            raise FetchError("tdm_reserved", evidence)

    async def _by_robots(self, url: URL) -> float:
        assert self._robots is not None
        try:
            rules = await self._robots.of(url, self._keeps(url))
        except FetchError as error:
            retry = "later" if error.retry == "now" else error.retry  # it was retried already
            if error.reason in _OF_THE_HOST:
                raise FetchError(error.reason, error.detail, retry=retry) from error
            why = f"robots.txt of {str(url.origin()).partition('://')[2]}: {error.reason}, {error.detail}"
            raise FetchError("robots_unreachable", why) from error
        refusal = rules.refusal(url)
        if refusal is not None:
            raise FetchError("robots_disallowed", refusal)
        return rules.delay_s

    async def _reserved_by_file(self, url: URL) -> str | None:
        """Return the host's reservation of a URL. A host without the file does not implement the protocol."""
        if self._reservations is None:
            return None
        try:
            rules = await self._reservations.of(url, self._keeps(url))
        except FetchError:
            return None
        return rules.reservation(url)

    def _keeps(self, url: URL) -> bool:
        return not self._allowed.names(url.raw_host or "", url.port or 0)
