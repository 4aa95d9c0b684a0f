"""Every hazard over real HTTP, with a client that knows nothing of the server."""

import asyncio
import contextlib
import gzip
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, TypeVar

import aiohttp
import pyarrow.parquet as pq
import pytest
from yarl import URL

from flows.demo.corpus import Plan
from flows.demo.pictures import GZIP_BOMB_BYTES
from flows.demo.server import serve

T = TypeVar("T")


def ask(talk: Callable[[aiohttp.ClientSession], Awaitable[T]], timeout_s: float = 5, **options: Any) -> T:
    async def session() -> T:
        async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=timeout_s), **options) as client:
            return await talk(client)

    return asyncio.run(session())


def get(url: str, timeout_s: float = 5, **options: Any) -> tuple[int, dict[str, str], bytes]:
    async def talk(client: aiohttp.ClientSession) -> tuple[int, dict[str, str], bytes]:
        async with client.get(url, **options) as response:
            return response.status, dict(response.headers), await response.read()

    return ask(talk, timeout_s, auto_decompress=False)


@pytest.fixture(scope="module")
def picture(web: Plan) -> tuple[str, bytes]:
    row = next(r for r in pq.read_table(web.truth).to_pylist() if r["hazard"] == "redirect")
    return row["file"], (web.folder / row["file"]).read_bytes()


def test_rows_that_must_come_through_serve_the_bytes_that_the_truth_names(web: Plan) -> None:
    rows = [row for row in pq.read_table(web.truth).to_pylist() if row["expected_stage"] is None]

    async def talk(client: aiohttp.ClientSession) -> list[tuple[str, bytes]]:
        async def fetch(row: dict[str, Any]) -> tuple[str, bytes]:
            for _ in range(4):  # those that heal
                try:
                    async with client.get(row["url"]) as response:
                        if response.status == 200:
                            return row["file"], await response.read()
                except aiohttp.ServerDisconnectedError:
                    pass
                except aiohttp.ClientOSError:
                    pass
            return row["file"], b""

        return await asyncio.gather(*map(fetch, rows))

    answers = ask(talk, timeout_s=30)
    assert len(answers) > 300
    assert [file for file, data in answers if data != (web.folder / file).read_bytes()] == []


@pytest.mark.parametrize("status", [204, 403, 404, 410, 429, 500])
def test_statuses(web: Plan, status: int) -> None:
    found, headers, _ = get(f"{web.base_url}/status/{status}/1.jpg")
    assert found == status
    assert ("Retry-After" in headers) == (status == 429)


def test_healing_is_counted_by_url(web: Plan, picture: tuple[str, bytes]) -> None:
    file, data = picture
    assert [get(f"{web.base_url}/heals/503/2/{file}")[0] for _ in range(4)] == [503, 503, 200, 200]
    assert get(f"{web.base_url}/heals/500/1/{file}")[0] == 500
    assert get(f"{web.base_url}/heals/500/1/{file}")[2] == data


def test_a_reset_is_a_reset_and_heals(web: Plan, picture: tuple[str, bytes]) -> None:
    """Over a bare socket: aiohttp's client would quietly ask again."""
    file, data = picture
    port = int(web.base_url.rsplit(":", 1)[1])
    for _ in range(2):
        with socket.create_connection(("127.0.0.1", port), timeout=5) as connection:
            connection.sendall(f"GET /heals/reset/2/{file} HTTP/1.1\r\nHost: a\r\n\r\n".encode())
            with contextlib.suppress(ConnectionResetError):
                assert connection.recv(100) == b""
    assert get(f"{web.base_url}/heals/reset/2/{file}")[2] == data


@pytest.mark.parametrize("kind", ["slow-body", "slow-headers"])
def test_slow_answers_outlast_a_limit_on_the_whole_request(web: Plan, picture: tuple[str, bytes], kind: str) -> None:
    with pytest.raises(asyncio.TimeoutError):
        get(f"{web.base_url}/{kind}/{picture[0]}", timeout_s=0.8)


def test_a_slow_body_trickles_so_that_single_reads_succeed(web: Plan, picture: tuple[str, bytes]) -> None:
    async def talk(client: aiohttp.ClientSession) -> int:
        async with client.get(f"{web.base_url}/slow-body/{picture[0]}") as response:
            return sum([len(await response.content.readany()) for _ in range(3)])

    assert 0 < ask(talk) < len(picture[1])


def test_endless_bodies_go_on_and_huge_ones_say_so(web: Plan) -> None:
    async def talk(client: aiohttp.ClientSession) -> tuple[int, str]:
        read = 0
        async with client.get(f"{web.base_url}/endless/1.jpg") as response:
            while read < 30_000_000:
                read += len(await response.content.readany())
        async with client.get(f"{web.base_url}/huge/1.jpg") as response:
            return read, response.headers["Content-Length"]

    read, announced = ask(talk, timeout_s=20)
    assert read >= 30_000_000
    assert int(announced) > 10**10


def test_gzip_in_all_its_ways(web: Plan, picture: tuple[str, bytes]) -> None:
    file, data = picture
    status, headers, body = get(f"{web.base_url}/gzip/{file}")
    assert (status, headers["Content-Encoding"], gzip.decompress(body)) == (200, "gzip", data)
    _, headers, body = get(f"{web.base_url}/gzip-broken/{file}")
    assert headers["Content-Encoding"] == "gzip"
    with pytest.raises(EOFError):
        gzip.decompress(body)
    _, headers, body = get(f"{web.base_url}/gzip-bomb/1.jpg", timeout_s=20)
    assert headers["Content-Encoding"] == "gzip"
    assert len(body) * 500 < GZIP_BOMB_BYTES == len(gzip.decompress(body))


def test_bodies_that_end_early(web: Plan, picture: tuple[str, bytes]) -> None:
    file, data = picture
    assert get(f"{web.base_url}/truncated/{file}")[2] == data[: len(data) * 6 // 10]
    with pytest.raises(aiohttp.ClientPayloadError):
        get(f"{web.base_url}/cut/{file}")


def test_redirects(web: Plan, picture: tuple[str, bytes]) -> None:
    file, data = picture
    for hops in (1, 3):
        assert get(f"{web.base_url}/redirect/{hops}/{file}")[2] == data
        with pytest.raises(aiohttp.TooManyRedirects):
            get(f"{web.base_url}/redirect/{hops}/{file}", max_redirects=hops)
    with pytest.raises(aiohttp.TooManyRedirects):
        get(f"{web.base_url}/redirect-loop/1.jpg")
    for where, target in {
        "private": "http://10.",
        "metadata": "http://169.254.",
        "loopback": "http://127.0.0.2:",
        "file": "file:",
    }.items():
        status, headers, _ = get(f"{web.base_url}/redirect-to/{where}/1.jpg", allow_redirects=False)
        assert status == 302
        assert headers["Location"].startswith(target)


def test_types_and_opt_outs(web: Plan, picture: tuple[str, bytes]) -> None:
    file, data = picture
    status, headers, body = get(f"{web.base_url}/typed/text/html/{file}")
    assert (status, headers["Content-Type"].split(";")[0], body) == (200, "text/html", data)
    status, headers, body = get(f"{web.base_url}/page/1.jpg")
    assert headers["Content-Type"] == "image/jpeg"
    assert body.startswith(b"<!doctype html>")
    assert get(f"{web.base_url}/empty/1.jpg")[2] == b""
    for directive in ("noai", "nofollow"):
        assert get(f"{web.base_url}/robots/{directive}/{file}")[1]["X-Robots-Tag"] == directive
    assert get(f"{web.base_url}/robots.txt")[2] == b"User-agent: *\nDisallow: /closed/\n"
    assert get(f"{web.base_url}/closed/{file}")[2] == data  # it would be served: who asks does not obey
    status, headers, body = get(f"{web.base_url}/reserved/{file}")
    assert (status, headers["tdm-reservation"], body) == (200, "1", data)


@pytest.mark.parametrize(
    "path", ["/files/..%2ftruth.parquet", "/files/..%2f..%2fetc%2fpasswd", "/files/.hidden", "/truth.parquet"]
)
def test_nothing_but_the_files_is_served(web: Plan, path: str) -> None:
    (web.folder / "files" / ".hidden").write_bytes(b"secret")
    try:
        import yarl

        assert get(str(web.base_url) + path, timeout_s=5)[0] in (400, 404)
        assert asyncio.run(_raw(yarl.URL(web.base_url + path, encoded=True))) in (400, 404)
    finally:
        (web.folder / "files" / ".hidden").unlink()


async def _raw(url: URL) -> int:
    async with aiohttp.ClientSession() as client, client.get(url) as response:
        return response.status


def test_a_taken_port_gives_way_to_another(tmp_path: Path) -> None:
    with serve(tmp_path, port=0) as first:
        port = int(first.rsplit(":", 1)[1])
        with serve(tmp_path, port=port) as second:
            assert first != second
    with serve(tmp_path, port=port) as third:  # free again, at once
        assert third == first


def test_the_server_dies_with_whoever_started_it(tmp_path: Path) -> None:
    code = (
        "import sys, time; from pathlib import Path; from flows.demo.server import serve\n"
        "with serve(Path(sys.argv[1]), port=0) as url: print(url, flush=True); time.sleep(60)"
    )
    parent = subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path)], stdout=subprocess.PIPE, text=True, env=os.environ
    )
    assert parent.stdout is not None
    url = parent.stdout.readline().strip()
    assert get(f"{url}/status/404/1.jpg")[0] == 404
    parent.send_signal(signal.SIGKILL)
    parent.wait()
    parent.stdout.close()
    for _ in range(100):
        try:
            get(f"{url}/status/404/1.jpg")
        except aiohttp.ClientConnectorError:
            return
        time.sleep(0.05)
    pytest.fail("the server outlived its parent by 5 seconds")
