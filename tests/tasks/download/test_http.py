"""Every reason, over real sockets."""

import gzip
import hashlib
import re
import socket
import threading
import time
from collections.abc import Callable, Generator, Iterator
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

from tasks.download import Download
from tasks.download._base import LocalFile, Outcome, Request
from tasks.download._hosts import DOWN_AFTER
from tasks.download._http import BUDGET_BYTES, HttpEngine
from tasks.reasons import REASONS
from tests.hostile_server import HostileServer
from tests.pictures import encoded, jpeg, jpeg_bomb, picture, png_bomb, slow_bmp
from tests.tasks.download.test_addresses import Scripted

JPEG = jpeg()
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:PIL")


def fetch(
    server: HostileServer,
    *requests: Request | str | None,
    resolver: Scripted | None = None,
    budget_bytes: int = BUDGET_BYTES,
    **options: Any,
) -> list[Outcome]:
    settings = Download(**({"allow_hosts": server.hosts, "timeout_s": 20, "retries": 0, "backoff_s": 0.05} | options))
    wanted = [request if isinstance(request, Request) else Request(request) for request in requests]
    outcomes = list(HttpEngine(settings, resolver=resolver, budget_bytes=budget_bytes).outcomes(wanted))
    assert len(outcomes) == len(wanted)
    return outcomes


def check(outcome: Outcome, reason: str, detail: str = "") -> None:
    assert (outcome.status, outcome.reason) == ("failed", reason), outcome.detail
    assert outcome.image is None
    assert detail in (outcome.detail or "")


@pytest.fixture
def site() -> Iterator[HostileServer]:
    """A separate host, whose site-wide files affect no other test."""
    with HostileServer() as running:
        yield running


def test_a_good_image(server: HostileServer) -> None:
    url = server.body(JPEG, "text/html")  # servers lie about types: the bytes count
    (good,) = fetch(server, url, user_agent_token="gardener")
    assert (good.status, good.reason, good.detail) == ("success", None, None)
    assert good.sha256 == hashlib.sha256(JPEG).hexdigest()
    assert (good.original_width, good.original_height, good.width, good.height) == (320, 240, 256, 256)
    assert (good.http_status, good.final_url, good.received_bytes, good.format) == (200, None, len(JPEG), "jpg")
    assert "gardener" in server.requests[url]["User-Agent"]
    assert server.requests[url]["Accept-Encoding"] == "identity"


def test_outcomes_come_in_order_and_connections_are_kept(server: HostileServer) -> None:
    urls = [server.body(jpeg(64 + i, 64)) for i in range(150)]
    urls[3] = server.drips(JPEG, step=len(JPEG) // 3, pause_s=0.15)
    outcomes = fetch(server, *urls)
    assert [o.original_width for o in outcomes] == [320 if i == 3 else 64 + i for i in range(150)]


@pytest.mark.parametrize(
    ("url", "reason"),
    [
        (None, "bad_url"),
        ("", "bad_url"),
        ("UNLIKELY", "bad_url"),
        ("file:///etc/passwd", "bad_scheme"),
        ("http://169.254.169.254/latest/meta-data/", "private_address"),
        ("http://no-such-host.invalid/x.jpg", "dns_failed"),
    ],
)
def test_urls(server: HostileServer, url: str | None, reason: str) -> None:
    check(fetch(server, url)[0], reason)


def test_credentials_in_a_url(server: HostileServer) -> None:
    url = server.body(JPEG)
    good, impossible = fetch(server, url.replace("//", "//user:pass@"), url.replace("//", "//us%3Aer:pass@"))
    assert good.image
    assert server.requests[url]["Authorization"] == "Basic dXNlcjpwYXNz"
    check(impossible, "bad_url", "not allowed in login")


def test_a_name_for_a_private_address(server: HostileServer) -> None:
    check(fetch(server, f"http://localhost:{server.port}/0")[0], "private_address", "localhost is ")


def test_dns_rebinding(server: HostileServer) -> None:
    """First public, then loopback: the second result is checked too, and no request arrives."""
    before = sum(server.hits.values())
    resolver = Scripted("127.0.0.1")
    check(fetch(server, f"http://rebind.example:{server.port}/0", resolver=resolver)[0], "private_address")
    assert sum(server.hits.values()) == before


def test_connections(server: HostileServer) -> None:
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))
        place = f"127.0.0.1:{nobody.getsockname()[1]}"
        check(fetch(server, f"http://{place}/x", allow_hosts=[place])[0], "connection_failed")
    check(fetch(server, server.raw(b""))[0], "connection_failed")
    check(fetch(server, f"https://127.0.0.1:{server.port}/0")[0], "tls_failed")


def test_responses_that_are_not_http(server: HostileServer) -> None:
    for data in (
        b"220 smtp.example ESMTP\r\n\r\n",
        b"HTTP/1.1 two hundred\r\n\r\n",
        b"\x00\xff\xfe" * 50 + b"\r\n\r\n",
    ):
        check(fetch(server, server.raw(data))[0], "bad_response")
    long = b"HTTP/1.1 200 OK\r\nX: " + b"a" * 100_000 + b"\r\n\r\n"
    check(fetch(server, server.raw(long))[0], "bad_response")


@pytest.mark.parametrize(
    ("status", "reason"),
    [
        (404, "not_found"), (410, "not_found"), (401, "forbidden"), (403, "forbidden"), (451, "forbidden"),
        (429, "rate_limited"), (400, "client_error"), (418, "client_error"), (500, "server_error"),
        (503, "server_error"), (204, "unexpected_status"), (206, "unexpected_status"), (304, "unexpected_status"),
    ],
)  # fmt: skip
def test_statuses(server: HostileServer, status: int, reason: str) -> None:
    (outcome,) = fetch(server, server.body(b"", status=status))
    check(outcome, reason, f"HTTP {status}")
    assert outcome.http_status == status


def test_redirects(server: HostileServer) -> None:
    good = server.body(JPEG)
    for status in (301, 302, 303, 307, 308):
        (outcome,) = fetch(server, server.redirect(good, status))
        assert (outcome.status, outcome.final_url) == ("success", good)
    assert fetch(server, server.redirect(good.rsplit("/", 1)[1]))[0].final_url == good  # relative
    check(fetch(server, server.loop())[0], "redirect_limit")
    check(fetch(server, server.redirect(""))[0], "bad_redirect")
    check(fetch(server, server.redirect("http://[oops"))[0], "bad_redirect")
    check(fetch(server, server.redirect("file:///etc/passwd"))[0], "bad_scheme", "redirected to")
    check(fetch(server, server.redirect("http://10.0.0.1/x"))[0], "private_address", "redirected to")
    check(fetch(server, server.redirect(f"http://localhost:{server.port}/0"))[0], "private_address")
    twice = server.redirect(server.redirect(good))
    check(fetch(server, twice, max_redirects=1)[0], "redirect_limit")


def test_slow_silent_and_endless_servers(server: HostileServer) -> None:
    slow, silent, endless, large = fetch(
        server,
        server.drips(JPEG),
        server.silent(),
        server.endless(),
        server.body(bytes(2_000_001)),
        max_bytes=2_000_000,
        timeout_s=1,
    )
    check(slow, "timeout", "over 1 s")
    assert slow.http_status == 200  # it answered, and did not end
    check(silent, "timeout", "over 1 s")
    assert silent.http_status is None
    check(endless, "body_too_large")
    check(large, "body_too_large", "2000001 bytes announced")


def test_bodies(server: HostileServer) -> None:
    check(fetch(server, server.body(b""))[0], "empty_body")
    short = b"HTTP/1.1 200 OK\r\nContent-Length: 99999\r\n\r\n" + JPEG[:999]
    check(fetch(server, server.raw(short))[0], "incomplete_body")
    check(fetch(server, server.gzip_bomb(), max_bytes=5_000_000)[0], "body_too_large", "decompressed")
    check(fetch(server, server.body(JPEG[4:], headers={"Content-Encoding": "br"}))[0], "bad_encoding")
    check(fetch(server, server.body(JPEG[4:], headers={"Content-Encoding": "gzip"}))[0], "bad_encoding")


def test_opt_outs(server: HostileServer) -> None:
    check(fetch(server, server.body(JPEG, headers={"X-Robots-Tag": "noai"}))[0], "opted_out", "noai")
    named = server.body(JPEG, headers={"X-Robots-Tag": "gardener: noindex"})
    assert fetch(server, named)[0].status == "success"
    check(fetch(server, named, user_agent_token="Gardener")[0], "opted_out")
    for tag in ("espalier: noai", "max-snippet: 50, noai"):  # espalier is our name where a recipe gives none
        check(fetch(server, server.body(JPEG, headers={"X-Robots-Tag": tag}))[0], "opted_out", tag)
    assert fetch(server, server.body(JPEG, headers={"X-Robots-Tag": "noai"}), disallowed_header_directives=[])[0].image


@pytest.mark.parametrize("kind", ["md5", "sha256", "sha512"])
def test_hashes(server: HostileServer, kind: str) -> None:
    url = server.body(JPEG)
    right = hashlib.new(kind, JPEG).hexdigest()
    verify = {"column": "digest", "type": kind}
    good, unknown, wrong = fetch(
        server, Request(url, right.upper()), Request(url, None), Request(url, "0" * len(right)), verify_hash=verify
    )
    assert (good.status, unknown.status) == ("success", "success")
    check(wrong, "hash_mismatch", right)


def test_images(server: HostileServer) -> None:
    def one(data: bytes, **options: Any) -> Outcome:
        return fetch(server, server.body(data), **options)[0]

    check(one(b"<html>gone</html>"), "not_an_image", "<html>")
    check(one(b"\0\0\0\x14ftypheic\0\0\0\0heic"), "unsupported_format", "heic")
    check(one(JPEG[: len(JPEG) // 2]), "truncated")
    check(one(encoded(picture(), "PNG")[:20_000]), "truncated")
    check(one(b"GIF89a=1;alert(1)//"), "undecodable")
    bomb = one(png_bomb())
    check(bomb, "too_many_pixels", "30000 x 30000")
    assert (bomb.original_width, bomb.sha256 is not None) == (30_000, True)
    check(one(png_bomb(1_000_000, 1, 1)), "too_long_side")
    check(one(encoded(picture(2000, 1), "PNG"), resize_mode="keep_ratio"), "too_long_side", "512000 x 256")
    check(one(encoded(picture(60, 20), "PNG"), resize_mode="keep_ratio", image_size=5000), "too_many_pixels", "15000 x")
    check(one(jpeg_bomb(1000, 800, 2000)), "too_complex", "scans")
    check(one(slow_bmp(), decode_cpu_s=1), "decode_timeout", "1 s")
    check(one(jpeg(100, 90), min_size_px=91), "too_small", "100 x 90")
    check(one(jpeg(300, 90), max_aspect_ratio=3), "too_narrow")
    check(one(encoded(picture(20_000, 2), "PNG"), resize_mode="no", encode_format="webp"), "unencodable")


@pytest.mark.parametrize("data", [encoded(picture(300, 200), f) for f in ("PNG", "WEBP", "GIF", "BMP")])
def test_bytes_can_be_stored_as_received(server: HostileServer, data: bytes) -> None:
    (kept,) = fetch(server, server.body(data), reencode=False, resize_mode="no")
    assert (kept.width, kept.height) == (300, 200)
    assert (kept.image == data) == (kept.format in ("png", "webp"))  # nothing else is a stored format


def test_retries_by_kind(server: HostileServer) -> None:
    healing = server.heals(JPEG, [(503, {}), (500, {})])
    assert fetch(server, healing, retries=2)[0].status == "success"
    assert server.hits[healing] == 3
    dying = server.heals(JPEG, [(503, {})] * 9)
    check(fetch(server, dying, retries=2)[0], "server_error")
    assert server.hits[dying] == 3
    for status in (404, 403, 410, 400):
        gone = server.body(b"", status=status)
        assert fetch(server, gone, retries=2)[0].status == "failed"
        assert server.hits[gone] == 1
    short = server.raw(b"HTTP/1.1 200 OK\r\nContent-Length: 99999\r\n\r\n")
    check(fetch(server, short, retries=1)[0], "incomplete_body")
    assert server.hits[short] == 2


def test_retry_after_is_waited_for_when_it_is_short(server: HostileServer) -> None:
    began = time.monotonic()
    polite = server.heals(JPEG, [(429, {"Retry-After": "1"})])
    assert fetch(server, polite, retries=1)[0].status == "success"
    assert time.monotonic() - began >= 1
    long = server.heals(JPEG, [(429, {"Retry-After": "3600"})])
    check(fetch(server, long, retries=1)[0], "rate_limited")
    assert server.hits[long] == 1


def test_a_host_that_only_times_out_is_suspended(server: HostileServer) -> None:
    silent = server.silent()
    outcomes = fetch(server, *[f"{silent}?{i}" for i in range(3 * DOWN_AFTER)], timeout_s=0.2, per_host=10)
    reasons = [outcome.reason for outcome in outcomes]
    assert reasons.count("timeout") in range(DOWN_AFTER, DOWN_AFTER + 10)
    assert reasons.count("host_down") == 3 * DOWN_AFTER - reasons.count("timeout")
    check(outcomes[-1], "host_down")


def crowd(server: HostileServer) -> tuple[str, Callable[..., Any]]:
    """Return a URL of a picture, and a function that returns the largest number of concurrent requests for it."""
    now, most, lock = 0, 0, threading.Lock()

    async def handler(request: web.Request) -> web.Response:
        import asyncio

        from aiohttp import web

        nonlocal now, most
        with lock:
            now += 1
            most = max(most, now)
        await asyncio.sleep(0.02)
        with lock:
            now -= 1
        return web.Response(body=JPEG)

    return server.add(handler), lambda: most


def test_concurrent_requests_to_a_host_are_limited(server: HostileServer) -> None:
    url, most = crowd(server)
    assert all(o.image for o in fetch(server, *[f"{url}?{i}" for i in range(40)], per_host=5, timeout_s=5))
    assert most() == 5


def test_the_limit_applies_to_targets_of_redirects(server: HostileServer, site: HostileServer) -> None:
    url, most = crowd(site)
    with HostileServer() as other:
        hosts = (*server.hosts, *other.hosts, *site.hosts)
        urls = [f"{one.redirect(url)}?{i}" for i in range(30) for one in (server, other)]
        outcomes = fetch(server, *urls, per_host=4, timeout_s=5, allow_hosts=hosts)
    assert {(o.status, o.http_status, o.final_url) for o in outcomes} == {("success", 200, url)}
    assert most() == 4


def test_hosts_of_a_redirect_chain_share_one_time_limit(server: HostileServer, site: HostileServer) -> None:
    """Each host answers within the limit; together they exceed it."""
    import asyncio

    from aiohttp import web

    async def picture(_: web.Request) -> web.Response:
        await asyncio.sleep(2.5)
        return web.Response(body=JPEG)

    async def slow(_: web.Request) -> web.Response:
        await asyncio.sleep(1)
        return web.Response(status=302, headers={"Location": site.add(picture)})

    hosts = (*server.hosts, *site.hosts)
    (outcome,) = fetch(server, server.add(slow), allow_hosts=hosts, respect_robots=False, timeout_s=3)
    check(outcome, "timeout", "over 3 s")
    assert outcome.http_status == 302
    (outcome,) = fetch(server, server.redirect("http://127.0.0.1:9/"), allow_hosts=["127.0.0.1"], respect_robots=False)
    check(outcome, "connection_failed")
    assert outcome.http_status == 302


def test_local_files(server: HostileServer, tmp_path: Path) -> None:
    file = tmp_path / "a.tar"
    file.write_bytes(b"x" * 100 + JPEG + b"y" * 50)
    part, cut, missing, whole = fetch(
        server,
        Request(None, file=LocalFile(str(file), 100, len(JPEG))),
        Request(None, file=LocalFile(str(file), 100, len(JPEG) + 51)),
        Request(None, file=LocalFile(str(tmp_path / "none.jpg"), 0, None)),
        Request(None, file=LocalFile(str(file), 100, None)),
    )
    assert part.sha256 == hashlib.sha256(JPEG).hexdigest()
    check(cut, "unreadable_file")
    check(missing, "unreadable_file", "none.jpg")
    assert whole.received_bytes == len(JPEG) + 50
    check(fetch(server, Request(None, file=LocalFile(str(file), 0, None)), max_bytes=99)[0], "body_too_large")


def test_an_unexpected_error_is_a_reason(server: HostileServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tasks.images.statistics", lambda *_, **__: 1 / 0)
    check(fetch(server, server.body(JPEG))[0], "unforeseen", "ZeroDivisionError")


def test_large_bodies_share_a_small_budget(server: HostileServer) -> None:
    """Far more concurrent bytes than fit, and results larger than the budget: slower, without deadlock."""
    noise = encoded(picture(600, 400), "BMP")  # 720 kB, and nobody announces it
    url = server.drips(noise, step=200_000, pause_s=0.001)
    urls = [f"{url}?{i}" for i in range(30)]
    outcomes = fetch(server, *urls, budget_bytes=1 << 20, timeout_s=10, encode_format="png", image_size=128)
    assert [o.received_bytes for o in outcomes] == [len(noise)] * 30


@pytest.mark.timeout(120)
def test_closing_early_cancels_everything(server: HostileServer) -> None:
    """Requests that would wait for an hour end with their caller."""
    threads = threading.active_count()
    settings = Download(allow_hosts=server.hosts, timeout_s=3600)
    urls = [server.body(JPEG), *[server.silent() for _ in range(20)]]
    outcomes = HttpEngine(settings).outcomes(map(Request, urls))
    assert isinstance(outcomes, Generator)
    assert next(outcomes).image
    outcomes.close()
    assert threading.active_count() <= threads


def pictures(host: HostileServer, count: int, **headers: str) -> list[str]:
    return [host.body(JPEG, headers=headers) for _ in range(count)]


def test_robots_txt_is_fetched_once_and_obeyed(site: HostileServer) -> None:
    robots = site.at("robots.txt", site.body(b"User-agent: *\nDisallow: /1\nCrawl-delay: 0", "text/plain"))
    urls = [f"{url}?{i}" for url in pictures(site, 2) for i in range(50)]
    outcomes = fetch(site, *urls)
    forbidden = [o for url, o in zip(urls, outcomes, strict=True) if "/1?" in url]
    assert [o.status for o in outcomes].count("success") == 50 == len(forbidden)
    for outcome in forbidden:
        check(
            outcome, "robots_disallowed", f"robots.txt of 127.0.0.1:{site.port}: Disallow: /1 (user-agent *), fetched 2"
        )
    assert site.hits[robots] == 1
    assert site.hits[f"http://127.0.0.1:{site.port}/.well-known/tdmrep.json"] == 1
    assert not any(o.http_status for o in forbidden)  # it was not even asked


def test_robots_txt_rules_for_our_name(site: HostileServer) -> None:
    site.at("robots.txt", site.body(b"User-agent: gardener\nDisallow: /", "text/plain"))
    url = site.body(JPEG)
    assert fetch(site, url)[0].status == "success"
    check(fetch(site, url, user_agent_token="Gardener")[0], "robots_disallowed", "(user-agent gardener)")
    assert fetch(site, url, user_agent_token="Gardener", respect_robots=False)[0].status == "success"


def test_the_next_part_of_an_engine_fetches_no_site_file_again(site: HostileServer) -> None:
    robots = site.at("robots.txt", site.body(b"User-agent: *\nDisallow: /none", "text/plain"))
    engine = HttpEngine(Download(allow_hosts=site.hosts))
    for _ in range(3):
        assert [bool(o.image) for o in engine.outcomes(map(Request, pictures(site, 3)))] == [True] * 3
    assert site.hits[robots] == 1


@pytest.mark.parametrize("status", [400, 401, 403, 404, 410, 429])
def test_a_host_without_robots_txt_allows_everything(site: HostileServer, status: int) -> None:
    site.at("robots.txt", site.body(b"User-agent: *\nDisallow: /", status=status))
    assert fetch(site, site.body(JPEG))[0].status == "success"


def test_an_unreachable_robots_txt_forbids_everything(site: HostileServer) -> None:
    robots = site.at("robots.txt", site.body(b"", status=503))
    urls = pictures(site, 5)
    for outcome in fetch(site, *urls, retries=1):
        check(outcome, "robots_unreachable", f"robots.txt of 127.0.0.1:{site.port}: server_error, HTTP 503")
    assert (site.hits[robots], site.hits[urls[0]]) == (2, 0)  # asked once more, then left alone
    site.at("robots.txt", site.silent())
    check(fetch(site, urls[0], timeout_s=0.3)[0], "robots_unreachable", "timeout, over 0.3 s")
    site.at("robots.txt", site.heals(b"", [(503, {})]))
    assert fetch(site, urls[0], retries=1)[0].status == "success"


def test_robots_txt_with_redirects_and_denied_access(site: HostileServer) -> None:
    rules = site.body(b"User-agent: *\nDisallow: /", "text/plain")
    url = site.body(JPEG)
    site.at("robots.txt", site.redirect(site.redirect(rules)))
    check(fetch(site, url)[0], "robots_disallowed")
    site.at("robots.txt", site.loop())  # more than five redirects: as if it were not there
    assert fetch(site, url)[0].status == "success"
    site.at("robots.txt", site.redirect("http://169.254.169.254/latest/meta-data"))
    check(fetch(site, url)[0], "private_address", "redirected to http://169.254.169.254")
    site.at("robots.txt", site.redirect("file:///etc/passwd"))
    check(fetch(site, url)[0], "robots_unreachable", "bad_scheme")


def test_a_large_robots_txt_is_read_up_to_the_limit(site: HostileServer) -> None:
    filler = b"# " + b"x" * 98 + b"\n"
    text = b"User-agent: *\nDisallow: /1\n" + filler * 6000 + b"Disallow: /2\n"
    site.at("robots.txt", site.body(text, "text/plain"))
    forbidden, beyond, url = pictures(site, 3)
    assert [fetch(site, u)[0].reason for u in (forbidden, beyond)] == ["robots_disallowed", None]
    site.at("robots.txt", site.body(text.replace(b"\n", b"\r"), "text/plain"))  # a line ends so too
    assert [fetch(site, u)[0].reason for u in (forbidden, beyond)] == ["robots_disallowed", None]
    site.at("robots.txt", site.endless(b"User-agent: *\nDisallow: /\n" * 1000))
    check(fetch(site, url)[0], "robots_disallowed")
    site.at("robots.txt", site.body(gzip.compress(b"User-agent: *\nDisallow: /"), headers={"Content-Encoding": "gzip"}))
    check(fetch(site, url)[0], "robots_disallowed")


def test_redirects_obey_the_robots_txt_of_their_target(site: HostileServer, server: HostileServer) -> None:
    site.at("robots.txt", site.body(b"User-agent: *\nDisallow: /", "text/plain"))
    target = site.body(JPEG)
    hosts = (*site.hosts, *server.hosts)
    (outcome,) = fetch(server, server.redirect(target), allow_hosts=hosts)
    check(outcome, "robots_disallowed", f"robots.txt of 127.0.0.1:{site.port}")
    assert site.hits[target] == 0
    assert outcome.final_url == target


def test_crawl_delay_spaces_requests_and_late_turns_are_rate_limited(site: HostileServer) -> None:
    site.at("robots.txt", site.body(b"User-agent: *\nCrawl-delay: 0.2", "text/plain"))
    urls = pictures(site, 4)
    began = time.monotonic()
    assert all(o.image for o in fetch(site, *urls))
    assert time.monotonic() - began >= 0.6
    outcomes = fetch(site, *urls, crawl_wait_s=0.3)
    assert [o.status for o in outcomes].count("success") in (2, 3)  # at 0, 0.2 and perhaps, where it is slow, later
    late = next(o for o in outcomes if o.reason)
    check(late, "rate_limited", "Crawl-delay 0.2 s")


def test_a_crawl_delay_applies_to_redirects(site: HostileServer, server: HostileServer) -> None:
    site.at("robots.txt", site.body(b"User-agent: *\nCrawl-delay: 0.2", "text/plain"))
    urls = [server.redirect(url) for url in pictures(site, 3)] + [site.redirect(url) for url in pictures(site, 1)]
    began = time.monotonic()
    assert all(o.image for o in fetch(server, *urls, allow_hosts=(*site.hosts, *server.hosts)))
    assert time.monotonic() - began >= 0.8  # five requests to the site


def test_reservations_by_header(site: HostileServer) -> None:
    reserved = site.body(JPEG, headers={"TDM-Reservation": "1", "tdm-policy": "https://p.example/1"})
    check(fetch(site, reserved)[0], "tdm_reserved", "tdm-reservation: 1, tdm-policy https://p.example/1")
    assert fetch(site, reserved, respect_tdm=False)[0].status == "success"
    assert fetch(site, site.body(JPEG, headers={"tdm-reservation": "0"}))[0].status == "success"


def test_reservations_by_file_unless_a_header_says_otherwise(site: HostileServer) -> None:
    file = b'[{"location": "/", "tdm-reservation": 1, "tdm-policy": "https://p.example/2"}]'
    asked = site.at(".well-known/tdmrep.json", site.body(file, "application/json"))
    urls = [*pictures(site, 20), site.body(JPEG, headers={"tdm-reservation": "0"})]
    *reserved, free = fetch(site, *urls)
    for outcome in reserved:
        check(
            outcome, "tdm_reserved", f"tdmrep.json of 127.0.0.1:{site.port}: location /, tdm-policy https://p.example/2"
        )
    assert free.status == "success"
    assert site.hits[asked] == 1
    site.at(".well-known/tdmrep.json", site.body(b"", status=500))
    assert fetch(site, urls[0])[0].status == "success"  # no file, no reservation


def test_local_files_send_no_request(site: HostileServer, tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_bytes(JPEG)
    (local,) = fetch(site, Request(None, file=LocalFile(str(tmp_path / "a.jpg"), 0, None)))
    assert local.image
    assert not site.hits


def test_faults_of_the_source_send_no_request(server: HostileServer) -> None:
    url = server.body(encoded(picture()))
    good = Request(url)
    faults = [(reason, f"of {reason}") for reason in ("bad_row", "no_image_member", "sparse_member")]
    outcomes = fetch(server, *(Request(url if i else None, None, None, f) for i, f in enumerate(faults)), good)
    for outcome, (reason, detail) in zip(outcomes, faults, strict=False):
        check(outcome, reason, detail)
        assert REASONS[reason].retry == "never"
    assert outcomes[-1].reason is None
    assert server.hits[url] == 1


def test_every_reason_has_a_test() -> None:
    here = Path(__file__).parent
    tests = [*here.glob("test_*.py"), *(here.parent / "sources").glob("test_*.py")]  # sources have reasons of their own
    assert set(REASONS) - {"taken_down"} <= {
        name for test in tests for name in re.findall(r'"(\w+)"', test.read_text())
    }  # "taken_down": tests/flows/govern/test_takedown.py


def test_an_invalid_host_is_bad_url_before_any_request(server: HostileServer) -> None:
    (outcome, private) = fetch(server, "http://1.1/a.jpg", "http://127.1/a.jpg")
    check(outcome, "bad_url")
    check(private, "private_address")
