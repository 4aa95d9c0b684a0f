"""A failing host costs a bounded time, however many rows need it, and does not delay other hosts."""

import asyncio
import threading
import time
from collections import Counter
from collections.abc import Callable, Coroutine, Iterator
from contextlib import ExitStack
from types import SimpleNamespace
from typing import Any

import pytest
from aiohttp import web

from tasks.download import Download
from tasks.download import _hosts as hosts
from tasks.download._base import Outcome, Request
from tasks.download._hosts import BUSY_AFTER, DOWN_AFTER, Hosts
from tasks.download._http import HttpEngine
from tasks.download._reasons import FetchError
from tests.hostile_server import HostileServer
from tests.pictures import jpeg
from tests.tasks.download.test_http import check, fetch

JPEG = jpeg()
ROWS = 200
PLACE = ("h", 80)


@pytest.fixture
def sites() -> Iterator[tuple[HostileServer, HostileServer, HostileServer]]:
    """Three hosts: two that fail, one that works."""
    with HostileServer() as one, HostileServer() as two, HostileServer() as well:
        yield one, two, well


def all_hosts(sites: list[HostileServer] | tuple[HostileServer, HostileServer, HostileServer]) -> list[str]:
    return [host for site in sites for host in site.hosts]


def test_waiting_time_does_not_grow_with_the_rows(sites: tuple[HostileServer, HostileServer, HostileServer]) -> None:
    """200 rows of a silent host and 200 of one that always responds 429, among 200 good ones, which are all stored."""
    silent, busy, well = sites
    quiet = silent.silent()
    full = busy.body(b"", status=429, headers={"Retry-After": "1"})
    good = well.body(JPEG)
    urls = [f"{url}?{i}" for i in range(ROWS) for url in (quiet, full, good)]
    outcomes = fetch(well, *urls, allow_hosts=all_hosts(sites), timeout_s=1, retries=2, host_wait_s=3)
    for i, outcome in enumerate(outcomes):
        if i % 3 == 2:
            assert outcome.image
        elif i % 3 == 1:
            check(outcome, "host_busy", f"127.0.0.1:{busy.port}: refused {BUSY_AFTER} rows in a row")
        else:
            check(outcome, "host_down", f"{DOWN_AFTER} requests in a row without a response (the last: timeout)")
    asked = sum(silent.hits.values()), sum(busy.hits.values())
    assert asked[0] <= 3 * DOWN_AFTER
    assert asked[1] <= 16 + BUSY_AFTER + 4  # the first 16 at once, then one at a time; robots.txt and the like


def test_a_host_that_sends_heads_without_bodies_is_suspended(
    sites: tuple[HostileServer, HostileServer, HostileServer],
) -> None:
    stuck, _, well = sites

    async def stall(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Length": "9999"})
        await response.prepare(request)
        await asyncio.sleep(30)
        return response

    url, good = stuck.add(stall), well.body(JPEG)
    urls = [f"{u}?{i}" for i in range(100) for u in (url, good)]
    outcomes = fetch(well, *urls, allow_hosts=all_hosts(sites), timeout_s=1, retries=2)
    assert all(o.image for o in outcomes[1::2])
    reasons = Counter(o.reason for o in outcomes[::2])
    assert set(reasons) <= {"timeout", "host_down"}
    assert reasons["host_down"] >= 100 - 2 * DOWN_AFTER


def test_503_is_a_refusal_of_the_host_only_with_retry_after(
    sites: tuple[HostileServer, HostileServer, HostileServer],
) -> None:
    busy, failing, well = sites
    refused = [f"{busy.body(b'', status=503, headers={'Retry-After': '1'})}?{i}" for i in range(60)]
    failed = [f"{failing.body(b'', status=503)}?{i}" for i in range(60)]
    outcomes = fetch(well, *refused, *failed, allow_hosts=all_hosts(sites), retries=1, host_wait_s=1)
    assert {o.reason for o in outcomes[:60]} <= {"host_busy", "server_error"}
    assert outcomes[59].reason == "host_busy"
    assert {o.reason for o in outcomes[60:]} == {"server_error"}


def test_one_strange_retry_after_costs_no_other_row() -> None:
    """Each value on a separate host, twice, among rows that must all be stored."""
    soon = int(time.time()) + 9999
    values = [str(soon), str(soon * 1000), "99999999", "-5", "1e999", "soon", ""]
    with ExitStack() as stack:
        odd = [stack.enter_context(HostileServer()) for _ in values]
        rows = []
        for site, value in zip(odd, values, strict=True):
            limited, good = site.body(b"", status=429, headers={"Retry-After": value}), site.body(JPEG)
            rows += [(limited, "rate_limited"), *((f"{good}?{i}", None) for i in range(30))]
            rows += [(f"{limited}?again", "rate_limited"), *((f"{good}?{i}", None) for i in range(30, 35))]
        outcomes = fetch(odd[0], *(url for url, _ in rows), allow_hosts=all_hosts(odd), per_host=4, host_wait_s=1)
    assert [o.reason for o in outcomes] == [reason for _, reason in rows]


def test_urls_that_always_answer_429_do_not_affect_their_host(
    sites: tuple[HostileServer, HostileServer, HostileServer],
) -> None:
    """Every fifth URL always answers 429: the others are stored, also after the host's waiting time is used up."""
    mixed, _, _ = sites
    limited, good = mixed.body(b"", status=429), mixed.body(JPEG)
    urls = [f"{limited if i % 5 == 0 else good}?{i}" for i in range(150)]
    outcomes = fetch(mixed, *urls, host_wait_s=1, retries=1)
    assert [o.reason for o in outcomes] == ["rate_limited" if i % 5 == 0 else None for i in range(150)]


def test_a_host_that_recovers_gets_its_later_rows(
    sites: tuple[HostileServer, HostileServer, HostileServer],
) -> None:
    """Probes are sent while the host is suspended, until one of them succeeds: then all later rows do."""
    site, _, _ = sites
    well = threading.Event()

    async def answer(_: web.Request) -> web.Response:
        return web.Response(body=JPEG) if well.is_set() else web.Response(status=429)

    url = site.add(answer)
    outcomes: list[Outcome] = []

    def requests() -> Iterator[Request]:
        yield from (Request(f"{url}?{i}") for i in range(80))
        for i in range(2000):
            yield Request(f"{url}?later{i}")
            if len(outcomes) >= 80:
                well.set()
            if outcomes and outcomes[-1].image:
                break
            time.sleep(0.02)
        yield from (Request(f"{url}?last{i}") for i in range(20))

    settings = Download(allow_hosts=all_hosts(sites), retries=0, backoff_s=0.05, host_wait_s=0.5, timeout_s=20)
    for outcome in HttpEngine(settings, first_probe_s=0.2).outcomes(requests()):
        outcomes.append(outcome)  # noqa: PERF402  (`requests` looks at it)
    assert {o.reason for o in outcomes[:80]} == {"rate_limited", "host_busy"}
    assert all(o.image for o in outcomes[-20:])


def test_results_do_not_depend_on_the_engine_instance(
    sites: tuple[HostileServer, HostileServer, HostileServer],
) -> None:
    """Two engines, as in two actors, and hosts with the same responses: the same rows, reasons and details."""
    silent, busy, well = sites
    quiet, full = silent.silent(), busy.body(b"", status=429)
    urls = [f"{u}?{i}" for i in range(50) for u in (quiet, full, well.body(JPEG))]
    runs = [
        fetch(well, *urls, allow_hosts=all_hosts(sites), timeout_s=1, retries=2, host_wait_s=1, concurrency=c)
        for c in (128, 64)
    ]
    assert [(o.reason, o.detail, o.http_status, o.sha256) for o in runs[0]] == [
        (o.reason, o.detail, o.http_status, o.sha256) for o in runs[1]
    ]


# ---- the rules, without a network


def play(rule: Callable[[Hosts], Coroutine[Any, Any, Any]], **options: Any) -> Any:
    asked = Hosts(**({"per_host": 4, "crawl_wait_s": 60, "wait_s": 60, "backoff_s": 0.01} | options))
    return asyncio.run(rule(asked))


async def ask(asked: Hosts, what: str, *said: float | str) -> None:
    async with asked.slot(PLACE) as turn:
        getattr(turn, what)(*said)


async def refusal(asked: Hosts) -> FetchError:
    with pytest.raises(FetchError) as caught:
        await ask(asked, "answered")
    return caught.value


def test_a_response_resets_the_count_of_misses() -> None:
    async def rule(asked: Hosts) -> Any:
        for _ in range(DOWN_AFTER - 1):
            await ask(asked, "missed", "timeout")
        await ask(asked, "answered")
        for _ in range(DOWN_AFTER):
            await ask(asked, "missed", "dns_failed")
        return await refusal(asked)

    error = play(rule)
    assert (error.reason, error.retry) == ("dns_failed", "later")


def test_a_probe_is_a_single_request_and_its_failure_doubles_the_pause(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = SimpleNamespace(now=1000.0)
    clock.monotonic = lambda: clock.now
    monkeypatch.setattr(hosts, "time", clock)

    async def rule(asked: Hosts) -> None:
        for _ in range(DOWN_AFTER):
            await ask(asked, "missed", "timeout")
        assert (await refusal(asked)).reason == "host_down"
        clock.now += hosts.FIRST_PROBE_S
        async with asked.slot(PLACE) as turn:
            assert (await refusal(asked)).reason == "host_down"  # while the probe is out
            turn.missed("timeout")
        clock.now += hosts.FIRST_PROBE_S
        assert (await refusal(asked)).reason == "host_down"  # the pause is twice as long by now
        clock.now += hosts.FIRST_PROBE_S
        await ask(asked, "answered")
        await ask(asked, "answered")

    play(rule)


def test_concurrent_refusals_count_once_and_then_requests_are_sequential() -> None:
    async def rule(asked: Hosts) -> Any:
        async def refused() -> None:
            async with asked.slot(PLACE) as turn:
                await asyncio.sleep(0.01)
                turn.refused(None)

        await asyncio.gather(*(refused() for _ in range(4)))
        now, most = 0, 0

        async def count() -> None:
            nonlocal now, most
            async with asked.slot(PLACE) as turn:
                now += 1
                most = max(most, now)
                await asyncio.sleep(0.01)
                now -= 1
                turn.refused(None)

        await asyncio.gather(*(count() for _ in range(BUSY_AFTER - 1)))
        return most, (await refusal(asked)).reason

    assert play(rule) == (1, "host_busy")


def test_all_pauses_of_a_host_together_have_a_limit() -> None:
    async def rule(asked: Hosts) -> Any:
        began = time.monotonic()
        for _ in range(BUSY_AFTER):
            await ask(asked, "refused", 3600.0)
        assert (await refusal(asked)).reason == "host_busy"
        return time.monotonic() - began

    assert play(rule, wait_s=0.3) >= 0.3


def test_a_503_pauses_its_row_and_from_the_third_in_a_row_the_host() -> None:
    async def rule(asked: Hosts) -> Any:
        async def failed() -> tuple[float, float]:
            async with asked.slot(PLACE) as turn:
                return turn.failed(0.2), asked._hosts[PLACE].not_before

        first = await failed()
        await ask(asked, "answered")
        return [first, await failed(), await failed()], await failed()

    alone, third = play(rule)
    assert [pause_s for pause_s, _ in alone] == pytest.approx([0.2] * 3)
    assert [not_before for _, not_before in alone] == [0.0] * 3
    assert third[0] == 0
    assert third[1] > 0


def test_overlapping_pauses_of_rows_count_once_and_are_limited() -> None:
    async def rule(asked: Hosts) -> Any:
        granted = []
        for _ in range(100):
            async with asked.slot(PLACE) as turn:
                granted.append(turn.failed(30.0))
            await ask(asked, "answered")
        return granted

    assert play(rule, wait_s=60)[-1] == pytest.approx(30)
    granted = play(rule, wait_s=10)
    assert max(granted) == pytest.approx(10)


def test_idle_hosts_are_dropped() -> None:
    async def rule(asked: Hosts) -> None:
        await ask(asked, "answered")
        assert not asked._hosts
        await ask(asked, "missed", "timeout")
        assert asked._hosts
        await ask(asked, "answered")
        assert not asked._hosts

    play(rule)
