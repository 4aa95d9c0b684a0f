"""Site-wide files: fetched once, cached in memory within bounds, and on disk until they expire."""

import asyncio
import os
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from yarl import URL

from tasks.download._reasons import FetchError
from tasks.download._site_files import CACHED_S, FAILED_S, DiskCache, MemoryCache, SiteFile, SiteFiles
from tests.hostile_server import HostileServer


@dataclass
class Site:
    """A host, the URL of its robots.txt, and URLs of pictures on it."""

    server: HostileServer
    robots: str
    urls: list[str]


class Actor:
    """The caches of one process: its memory, and the shared disk."""

    def __init__(self, folder: Path | None, parse: Callable[[SiteFile], Any] = lambda file: file.text) -> None:
        self.known: MemoryCache[Any] = MemoryCache()
        self.disk = DiskCache(folder) if folder else None
        self.parse = parse
        self.asked = 0
        self.fault: FetchError | None = None

    def find(self, *urls: str, keep: bool = True) -> list[Any]:
        """Ask for the file of each URL's host, all at once, as one part of a build does."""

        async def run(session: aiohttp.ClientSession, pool: ThreadPoolExecutor) -> list[Any]:
            async def ask(url: URL) -> str:
                self.asked += 1
                if self.fault:
                    raise self.fault
                async with session.get(url) as response:
                    return await response.text()

            files = SiteFiles("/robots.txt", ask, self.parse, self.known, self.disk, pool)
            return await asyncio.gather(*[files.of(URL(u), keep) for u in urls], return_exceptions=True)

        async def main() -> Any:
            with ThreadPoolExecutor(2) as pool:
                async with aiohttp.ClientSession() as session:
                    return await run(session, pool)

        return asyncio.run(main())


@pytest.fixture
def host() -> Iterator[Site]:
    with HostileServer() as server:
        robots = server.at("robots.txt", server.body(b"User-agent: *", "text/plain"))
        yield Site(server, robots, [f"http://127.0.0.1:{server.port}/{i}.jpg" for i in range(100)])


def test_100_urls_fetch_one_file(host: Site, tmp_path: Path) -> None:
    actor = Actor(tmp_path)
    assert actor.find(*host.urls) == ["User-agent: *"] * 100
    assert actor.find(*host.urls) == ["User-agent: *"] * 100  # the next part
    assert host.server.hits[host.robots] == 1


def test_other_actors_and_later_builds_read_the_disk(host: Site, tmp_path: Path) -> None:
    for _ in range(3):
        assert Actor(tmp_path).find(*host.urls[:5]) == ["User-agent: *"] * 5
    assert host.server.hits[host.robots] == 1
    assert [path.suffix for path in tmp_path.iterdir()] == [".json"]


def test_private_hosts_are_not_cached_on_disk(host: Site, tmp_path: Path) -> None:
    for _ in range(2):
        Actor(tmp_path / "none").find(*host.urls, keep=False)
    assert host.server.hits[host.robots] == 2
    assert not (tmp_path / "none").exists()


def test_an_expired_file_is_fetched_again_and_used_while_the_host_is_silent(host: Site, tmp_path: Path) -> None:
    origin = str(URL(host.urls[0]).origin())
    DiskCache(tmp_path).write(SiteFile(origin, "old", time.time() - CACHED_S - 1))
    silent = Actor(tmp_path)
    silent.fault = FetchError("server_error", "HTTP 503")
    assert silent.find(host.urls[0]) == ["old"]
    assert Actor(tmp_path).find(host.urls[0]) == ["User-agent: *"]
    assert Actor(tmp_path).find(host.urls[0]) == ["User-agent: *"]
    assert host.server.hits[host.robots] == 1


def test_memory_expires_with_the_file(host: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    actor = Actor(None)
    actor.find(host.urls[0])
    later = time.time() + CACHED_S + 1
    monkeypatch.setattr(time, "time", lambda: later)
    actor.find(host.urls[0])
    assert host.server.hits[host.robots] == 2


def test_a_failure_is_cached_for_an_hour_and_never_on_disk(
    host: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    actor = Actor(tmp_path)
    actor.fault = FetchError("timeout", "over 10 s")
    for _ in range(2):
        for error in actor.find(*host.urls[:10]):
            assert (error.reason, error.detail) == ("timeout", "over 10 s")
    assert actor.asked == 1
    assert list(tmp_path.iterdir()) == []
    actor.fault = None
    later = time.time() + FAILED_S + 1
    monkeypatch.setattr(time, "time", lambda: later)
    assert actor.find(host.urls[0]) == ["User-agent: *"]


def test_a_cached_failure_holds_no_body(tmp_path: Path) -> None:
    """It would hold half a megabyte per host, in the frames of a traceback, for an hour."""
    actor = Actor(None)
    actor.fault = FetchError("bad_encoding", "gzip")
    (error,) = actor.find("http://127.0.0.1:9/a")
    kept = actor.known.get("http://127.0.0.1:9")
    assert isinstance(kept, FetchError)
    assert (kept.reason, kept.detail) == (error.reason, error.detail)
    assert kept.__traceback__ is None
    assert kept.__context__ is None


def test_a_parser_that_crashes_causes_one_request(host: Site, tmp_path: Path) -> None:
    actor = Actor(tmp_path, parse=lambda file: 1 / 0)
    assert {error.reason for error in actor.find(*host.urls)} == {"unforeseen"}
    assert {error.reason for error in actor.find(*host.urls)} == {"unforeseen"}
    assert host.server.hits[host.robots] == 1


def test_cancelling_a_row_does_not_affect_the_others(tmp_path: Path) -> None:
    """One of two rows that wait for the same file is cancelled; the other gets it."""

    async def main() -> Any:
        gate = asyncio.Event()

        async def ask(url: URL) -> str:
            await gate.wait()
            return "rules"

        with ThreadPoolExecutor(1) as pool:
            files = SiteFiles("/robots.txt", ask, lambda file: file.text, MemoryCache(), None, pool)
            first, second = (asyncio.create_task(files.of(URL("http://h/a"), True)) for _ in range(2))
            await asyncio.sleep(0)
            first.cancel()
            gate.set()
            return await asyncio.gather(first, second, return_exceptions=True)

    cancelled, found = asyncio.run(main())
    assert isinstance(cancelled, asyncio.CancelledError)
    assert found == "rules"


def test_a_slow_host_delays_no_other() -> None:
    async def main() -> Any:
        never = asyncio.Event()

        async def ask(url: URL) -> str:
            if url.host == "slow":
                await never.wait()
            return str(url.host)

        with ThreadPoolExecutor(1) as pool:
            files = SiteFiles("/robots.txt", ask, lambda file: file.text, MemoryCache(), None, pool)
            slow = asyncio.create_task(files.of(URL("http://slow/"), True))
            found = await asyncio.wait_for(
                asyncio.gather(*[files.of(URL(f"http://h{i}/"), True) for i in range(50)]), 5
            )
            slow.cancel()
        return found

    assert asyncio.run(main()) == [f"h{i}" for i in range(50)]


def test_memory_is_bounded_in_number_and_in_text() -> None:
    known: MemoryCache[Any] = MemoryCache(most=3, most_text=100)
    for i in range(10):
        known.put(f"h{i}", i, 10, time.time() + 9)
        known.get("h0")  # the latest used stays
    assert [known.get(f"h{i}") for i in (0, 7, 8, 9)] == [0, None, 8, 9]
    known.put("large", "x", 95, time.time() + 9)
    assert (len(known), known.get("large")) == (1, "x")
    known.put("larger than all", "y", 500, time.time() + 9)
    assert (len(known), known.get("larger than all")) == (1, "y")


def test_a_thousand_hosts_with_large_files_stay_small() -> None:
    known: MemoryCache[Any] = MemoryCache()
    for i in range(1000):
        known.put(f"h{i}", i, 500 << 10, time.time() + 9)
    assert len(known) <= 16


def test_ports_and_schemes_have_separate_files(tmp_path: Path) -> None:
    disk = DiskCache(tmp_path)
    for origin in ("http://h", "https://h", "http://h:81"):
        disk.write(SiteFile(origin, origin, time.time()))
    assert [getattr(disk.read(o), "text", None) for o in ("http://h", "https://h", "http://h:81")] == [
        "http://h",
        "https://h",
        "http://h:81",
    ]
    assert disk.read("http://other") is None


@pytest.mark.parametrize(
    "data", [b"", b"{", b"[]", b'{"origin": "http://h"}', b'{"origin": "x", "text": "", "fetched_at": 1}']
)
def test_a_damaged_file_on_disk_is_ignored(tmp_path: Path, data: bytes) -> None:
    disk = DiskCache(tmp_path)
    disk.write(SiteFile("http://h", "rules", time.time()))
    next(tmp_path.iterdir()).write_bytes(data)
    assert disk.read("http://h") is None


def test_the_disk_cache_is_swept_and_bounded(tmp_path: Path) -> None:
    old = DiskCache(tmp_path)
    for i in range(4):
        old.write(SiteFile(f"http://old{i}", "", time.time()))
    for path in tmp_path.iterdir():
        os.utime(path, (1, 1))
    disk = DiskCache(tmp_path, most=2)
    for i in range(5):
        disk.write(SiteFile(f"http://new{i}", "", time.time()))
    assert len(list(tmp_path.iterdir())) == 2
    assert disk.read("http://new0") is not None
    assert disk.read("http://old0") is None


def test_a_folder_that_cannot_be_written_is_not_used(host: Site, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    assert Actor(tmp_path / "file").find(host.urls[0]) == ["User-agent: *"]
