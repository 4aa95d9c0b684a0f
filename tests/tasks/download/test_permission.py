"""Which site-wide files are fetched from which host, how often, and where they are cached."""

import asyncio
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from yarl import URL

from tasks.download import Download
from tasks.download._addresses import AllowedHosts
from tasks.download._permission import Memory, Permission
from tasks.download._reasons import FetchError


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return tmp_path / "espalier"


def decide(
    urls: list[str],
    answers: Mapping[str, str | FetchError],
    memory: Memory | None = None,
    headers: dict[str, str] | None = None,
    **options: Any,
) -> tuple[list[Any], list[str]]:
    """Return (for each URL the seconds between requests, or a reason; the files that were fetched)."""
    settings = Download(**options)
    asked = []

    async def ask(url: URL) -> str:
        asked.append(str(url))
        await asyncio.sleep(0)
        answer = answers.get(url.path, "")
        if isinstance(answer, FetchError):
            raise answer
        return answer

    async def one(permission: Permission, url: str) -> float | FetchError:
        try:
            delay_s = await permission.check_request(URL(url))
            await permission.check_response(URL(url), headers or {})
        except FetchError as error:
            return error
        return delay_s

    async def main() -> list[float | FetchError]:
        with ThreadPoolExecutor(2) as pool:
            permission = Permission(settings, AllowedHosts(settings.allow_hosts), memory or Memory(), ask, pool)
            return await asyncio.gather(*[one(permission, url) for url in urls])

    return asyncio.run(main()), asked


def test_each_file_is_fetched_once_from_each_host() -> None:
    urls = [f"https://h{i % 7}.example/{i}.jpg" for i in range(100)]
    memory = Memory()
    found, asked = decide(urls, {"/robots.txt": "User-agent: *\nCrawl-delay: 3"}, memory)
    assert found == [3.0] * 100
    assert sorted(asked) == sorted(
        f"https://h{i}.example/{f}" for i in range(7) for f in ("robots.txt", ".well-known/tdmrep.json")
    )
    assert decide(urls, {}, memory) == ([3.0] * 100, [])


def test_public_hosts_are_cached_on_disk_and_allowed_ones_are_not(cache: Path) -> None:
    for times in (1, 2):
        _, public = decide(["https://public.example/a.jpg"], {})
        _, named = decide(["http://store.internal:9000/a.jpg"], {}, allow_hosts=["store.internal:9000"])
        assert (len(public), len(named)) == (2 if times == 1 else 0, 2)
    assert [len(list((cache / kind).iterdir())) for kind in ("robots", "tdmrep")] == [1, 1]


def test_disabled_files_are_not_fetched() -> None:
    forbid = {
        "/robots.txt": "User-agent: *\nDisallow: /",
        "/.well-known/tdmrep.json": '[{"location": "/", "tdm-reservation": 1}]',
    }
    url = ["https://h.example/a.jpg"]
    assert decide(url, forbid, respect_robots=False, respect_tdm=False, headers={"tdm-reservation": "1"}) == ([0.0], [])
    (error,), asked = decide(url, forbid, respect_robots=False)
    assert (error.reason, asked) == ("tdm_reserved", ["https://h.example/.well-known/tdmrep.json"])
    (error,), asked = decide(url, forbid, respect_tdm=False)
    assert (error.reason, asked) == ("robots_disallowed", ["https://h.example/robots.txt"])


@pytest.mark.parametrize(
    ("fault", "reason", "retry"),
    [
        (FetchError("dns_failed", "no such host"), "dns_failed", "later"),
        (FetchError("connection_failed", "refused"), "connection_failed", "later"),
        (FetchError("private_address", "10.0.0.1"), "private_address", "never"),
        (FetchError("tls_failed", "expired"), "tls_failed", "later"),
        (FetchError("server_error", "HTTP 500"), "robots_unreachable", "later"),
        (FetchError("timeout", "over 10 s"), "robots_unreachable", "later"),
    ],
)
def test_an_unreachable_host_gives_its_rows_the_most_specific_reason(
    fault: Any, reason: str, retry: str, cache: Path
) -> None:
    found, asked = decide([f"https://h.example/{i}.jpg" for i in range(10)], {"/robots.txt": fault})
    assert [(error.reason, error.retry) for error in found] == [(reason, retry)] * 10
    assert all(fault.detail in error.detail for error in found)
    assert asked == ["https://h.example/robots.txt"]
    assert not cache.exists()
