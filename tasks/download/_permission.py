"""Whether a host lets us ask for a picture (robots.txt), and its rightsholder lets us read it (TDM reservation)."""

from collections.abc import Awaitable, Callable, Mapping
from concurrent.futures import Executor
from functools import partial
from typing import Final

from yarl import URL

from tasks.download import _robots as robots
from tasks.download import _tdm as tdm
from tasks.download._addresses import AllowedHosts
from tasks.download._base import Settings
from tasks.download._robots import Robots
from tasks.download._site_files import Known, Shelf, SiteFiles
from tasks.download._tdm import Reservations
from tasks.download.reasons import FetchError
from tasks.files.cache import cache_folder

_OF_THE_HOST: Final = ("bad_url", "private_address", "dns_failed", "connection_failed", "tls_failed")
"""Failures that any URL of the host would meet: the row gets that reason, which says more."""


class Memory:
    """What is known of hosts, for as long as an engine lives."""

    def __init__(self) -> None:
        self.robots: Known[Robots] = Known()
        self.reservations: Known[Reservations] = Known()


class Permission:
    """Decides, once a host and once a response, with the evidence. `ask` fetches a text file, as `SiteFiles` wants it.

    Hosts that the recipe names in `allow_hosts` are not kept on disk: at a private address there may be another service
    tomorrow.
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
            shelf = Shelf(cache_folder("robots"))
            self._robots = SiteFiles(robots.PATH, ask, parse, memory.robots, shelf, executor)
        if settings.obeys_tdm:
            shelf = Shelf(cache_folder("tdmrep"))
            self._reservations = SiteFiles(tdm.PATH, ask, Reservations, memory.reservations, shelf, executor)

    async def to_ask(self, url: URL) -> float:
        """Return how many seconds the host wants between requests. Raises FetchError where it forbids this one.

        robots_disallowed: a rule says so. robots_unreachable: the host did not say, so it forbids all (RFC 9309,
        section 2.3.1.4). bad_url, private_address, dns_failed, connection_failed, tls_failed: it cannot be asked.
        """
        delay_s = await self._by_robots(url) if self._robots else 0.0
        await self._file_says(url)  # now, so that no response waits for it
        return delay_s

    async def to_read(self, url: URL, headers: Mapping[str, str]) -> None:
        """Raise FetchError (tdm_reserved) where a response's headers, or else its host's file, reserve it."""
        if self._reservations is None:
            return
        said = tdm.header_says(headers)
        evidence = await self._file_says(url) if said is None else tdm.header_evidence(headers) if said else None
        if evidence is not None:
            raise FetchError("tdm_reserved", evidence)

    async def _by_robots(self, url: URL) -> float:
        assert self._robots is not None
        try:
            rules = await self._robots.of(url, self._keeps(url))
        except FetchError as error:
            retry = "later" if error.retry == "now" else error.retry  # it was asked again already
            if error.reason in _OF_THE_HOST:
                raise FetchError(error.reason, error.detail, retry=retry) from error
            why = f"robots.txt of {str(url.origin()).partition('://')[2]}: {error.reason}, {error.detail}"
            raise FetchError("robots_unreachable", why) from error
        refusal = rules.refusal(url)
        if refusal is not None:
            raise FetchError("robots_disallowed", refusal)
        return rules.delay_s

    async def _file_says(self, url: URL) -> str | None:
        """Return what the host's file reserves. A host that gives none does not implement the protocol."""
        if self._reservations is None:
            return None
        try:
            rules = await self._reservations.of(url, self._keeps(url))
        except FetchError:
            return None
        return rules.reservation(url)

    def _keeps(self, url: URL) -> bool:
        return not self._allowed.names(url.raw_host or "", url.port or 0)
