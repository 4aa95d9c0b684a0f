"""The server of the planted web: files on loopback, and every misbehaviour of a server that the demo tests.

The URL determines the behaviour (`hazards.py` lists the URLs); the server knows neither the plan nor the truth. Its
only state is the number of requests of each URL that recovers after retries, so a new server presents the same web.

It runs in a separate process, which ends when its standard input closes, and so when its parent dies.
"""

import argparse
import asyncio
import gzip
import os
import subprocess
import sys
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Final

from aiohttp import web

from catalog.errors import BuildError

DEFAULT_PORT: Final = 8723
SLOW_S: Final = 60.0
"""Duration of slow responses, longer than any sensible limit on a request."""
TRICKLE_S: Final = 0.3
"""Duration of a response that arrives in small pieces."""
HUGE_BYTES: Final = 50 * 2**30
START_S: Final = 30.0

_REDIRECTS: Final = {
    "private": "http://10.0.0.1/secret.jpg",
    "metadata": "http://169.254.169.254/latest/meta-data/",
    "loopback": "http://127.0.0.2:{port}/files/00000.jpg",
    "file": "file:///etc/hostname",
}
_TYPES: Final = {".jpg": "image/jpeg", ".png": "image/png", ".webp": "image/webp", ".svg": "image/svg+xml"}
_PAGE: Final = b"<!doctype html><title>Gone</title><p>This picture has moved. <a href=/>Home</a>" + b" " * 2000

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


@contextmanager
def serve(folder: Path, port: int = DEFAULT_PORT) -> Iterator[str]:
    """Serve the files of `corpus.plant` in `folder` and provide the address, such as `http://127.0.0.1:8723`.

    If the port is in use, another one is chosen; the address matters, because the cache of a build depends on it.
    Raises BuildError if the server does not start.
    """
    command = [sys.executable, "-m", "flows.demo.server", "--folder", str(folder.resolve()), "--port", str(port)]
    path = os.pathsep.join(filter(None, [str(Path(__file__).parents[2]), os.environ.get("PYTHONPATH")]))
    process = subprocess.Popen(  # noqa: S603  # our own module
        command,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONPATH": path},
        start_new_session=True,  # Ctrl-C is for the build; the server ends after the build
    )
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        line = process.stdout.readline().strip()
        if not line:
            raise BuildError(f"the demo's server did not start (exit code {process.wait(START_S)})")
        yield f"http://127.0.0.1:{line}"
    finally:
        process.stdin.close()
        try:
            process.wait(5)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        process.stdout.close()


def application(folder: Path) -> web.Application:
    """Return the aiohttp application that serves `folder`."""
    box = _Box(folder / "files")
    app = web.Application(middlewares=[box.guard])
    for path, handler in box.routes().items():
        app.router.add_get(path, handler)
    return app


class _Box:
    """The handlers. `{file}` in a path is the name of a file in `files/`."""

    def __init__(self, files: Path) -> None:
        self.files = files
        self.asked: Counter[str] = Counter()

    def routes(self) -> dict[str, Handler]:
        file = "/files/{file}"
        return {
            file: self.file,
            "/mirror-{number}" + file: self.file,
            "/status/{status}/{rest}": self.status,
            "/empty/{rest}": self.empty,
            "/page/{rest}": self.page,
            "/heals/{kind}/{times}" + file: self.heals,
            "/slow-body" + file: self.slow_body,
            "/slow-headers" + file: self.slow_headers,
            "/trickle" + file: self.trickle,
            "/endless/{rest}": self.endless,
            "/huge/{rest}": self.huge,
            "/gzip-bomb/{rest}": self.gzip_bomb,
            "/gzip" + file: self.gzip,
            "/gzip-broken" + file: self.gzip_broken,
            "/cut" + file: self.cut,
            "/truncated" + file: self.truncated,
            "/redirect/{times}" + file: self.redirect,
            "/redirect-loop/{rest}": self.redirect_loop,
            "/redirect-to/{where}/{rest}": self.redirect_to,
            "/typed/{kind}/{subkind}" + file: self.typed,
            "/robots/{directive}" + file: self.robots,
            "/robots.txt": self.robots_txt,
            "/closed" + file: self.file,
            "/reserved" + file: self.reserved,
        }

    @web.middleware
    async def guard(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        """Serve nothing but plain names: `..` and `/`, however they are spelt, end here. Who hangs up is let go."""
        name = request.match_info.get("file", "")
        if name != Path(name).name or name.startswith("."):
            raise web.HTTPBadRequest
        try:
            return await handler(request)
        except ConnectionError:
            return web.Response()

    def read(self, request: web.Request) -> tuple[bytes, str]:
        """Return the bytes of the file that a request names, and their type."""
        name = request.match_info["file"]
        try:
            data = (self.files / name).read_bytes()
        except OSError:
            raise web.HTTPNotFound from None
        return data, _TYPES.get(Path(name).suffix, "application/octet-stream")

    # answers that are whole

    async def file(self, request: web.Request) -> web.StreamResponse:
        data, type_ = self.read(request)
        return web.Response(body=data, content_type=type_)

    async def status(self, request: web.Request) -> web.StreamResponse:
        status = int(request.match_info["status"])
        headers = {"Retry-After": "1"} if status in (429, 503) else {}
        return web.Response(status=status, headers=headers, text="" if status == 204 else f"{status}\n")

    async def empty(self, request: web.Request) -> web.StreamResponse:
        return web.Response(body=b"", content_type="image/jpeg")

    async def page(self, request: web.Request) -> web.StreamResponse:
        return web.Response(body=_PAGE, content_type="image/jpeg")

    async def typed(self, request: web.Request) -> web.StreamResponse:
        """Respond with an image under a wrong content type."""
        type_ = "{kind}/{subkind}".format_map(request.match_info)
        return web.Response(body=self.read(request)[0], content_type=type_)

    async def robots(self, request: web.Request) -> web.StreamResponse:
        data, type_ = self.read(request)
        return web.Response(body=data, content_type=type_, headers={"X-Robots-Tag": request.match_info["directive"]})

    async def robots_txt(self, request: web.Request) -> web.StreamResponse:
        return web.Response(text="User-agent: *\nDisallow: /closed/\n")

    async def reserved(self, request: web.Request) -> web.StreamResponse:
        """Respond with an image whose rightsholder reserves text and data mining."""
        data, type_ = self.read(request)
        headers = {"tdm-reservation": "1", "tdm-policy": "https://rights.example/policy.json"}
        return web.Response(body=data, content_type=type_, headers=headers)

    async def truncated(self, request: web.Request) -> web.StreamResponse:
        """Respond with the first 60 % of a file as if they were the whole file."""
        data, type_ = self.read(request)
        return web.Response(body=data[: len(data) * 6 // 10], content_type=type_)

    async def gzip(self, request: web.Request) -> web.StreamResponse:
        data, type_ = self.read(request)
        return web.Response(body=gzip.compress(data, mtime=0), content_type=type_, headers={"Content-Encoding": "gzip"})

    async def gzip_broken(self, request: web.Request) -> web.StreamResponse:
        """Respond with the first half of a compressed file."""
        data, type_ = self.read(request)
        packed = gzip.compress(data, mtime=0)
        half = packed[: len(packed) // 2]
        return web.Response(body=half, content_type=type_, headers={"Content-Encoding": "gzip"})

    async def gzip_bomb(self, request: web.Request) -> web.StreamResponse:
        """Respond with 128 kB that decompress to 128 MB."""
        return web.Response(
            body=(self.files / "bomb.gz").read_bytes(), content_type="image/jpeg", headers={"Content-Encoding": "gzip"}
        )

    # answers that change

    async def heals(self, request: web.Request) -> web.StreamResponse:
        """Fail the first requests of a URL."""
        self.asked[request.path] += 1
        if self.asked[request.path] > int(request.match_info["times"]):
            return await self.file(request)
        kind = request.match_info["kind"]
        if kind == "reset":
            _hang_up(request)
            return web.Response()
        return web.Response(status=int(kind), headers={"Retry-After": "1"} if kind in ("429", "503") else {})

    async def redirect(self, request: web.Request) -> web.StreamResponse:
        """Redirect as often as the path specifies, then to the file; alternately relative and absolute."""
        left, file = int(request.match_info["times"]) - 1, request.match_info["file"]
        path = f"/redirect/{left}/files/{file}" if left else f"/files/{file}"
        target = path if left % 2 else f"http://{request.host}{path}"
        return web.Response(status=302 if left else 301, headers={"Location": target})

    async def redirect_loop(self, request: web.Request) -> web.StreamResponse:
        return web.Response(status=302, headers={"Location": request.path})

    async def redirect_to(self, request: web.Request) -> web.StreamResponse:
        target = _REDIRECTS[request.match_info["where"]].format(port=request.url.port)
        return web.Response(status=302, headers={"Location": target})

    # incomplete responses

    async def slow_headers(self, request: web.Request) -> web.StreamResponse:
        await asyncio.sleep(SLOW_S)
        return await self.file(request)

    async def slow_body(self, request: web.Request) -> web.StreamResponse:
        """Send single bytes slowly: every read succeeds in time, but the whole response does not."""
        data, type_ = self.read(request)
        return await self._in_pieces(request, data, type_, pieces=min(len(data), 600), duration_s=SLOW_S)

    async def trickle(self, request: web.Request) -> web.StreamResponse:
        data, type_ = self.read(request)
        return await self._in_pieces(request, data, type_, pieces=6, duration_s=TRICKLE_S)

    async def endless(self, request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Type": "image/jpeg"})
        await response.prepare(request)
        await response.write(b"\xff\xd8\xff\xe0")
        block = bytes(2**16)
        while True:  # until the client disconnects: writing then raises
            await response.write(block)

    async def huge(self, request: web.Request) -> web.StreamResponse:
        """Announce 50 GiB, and send slowly."""
        response = web.StreamResponse(headers={"Content-Type": "image/jpeg", "Content-Length": str(HUGE_BYTES)})
        await response.prepare(request)
        await response.write(bytes(2**16))
        await asyncio.sleep(SLOW_S)
        return response

    async def cut(self, request: web.Request) -> web.StreamResponse:
        """Announce a file, send half of it, and disconnect."""
        data, type_ = self.read(request)
        response = web.StreamResponse(headers={"Content-Type": type_, "Content-Length": str(len(data))})
        await response.prepare(request)
        await response.write(data[: len(data) // 2])
        _hang_up(request, politely=True)
        return response

    async def _in_pieces(
        self, request: web.Request, data: bytes, type_: str, pieces: int, duration_s: float
    ) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Type": type_, "Content-Length": str(len(data))})
        await response.prepare(request)
        each = -(-len(data) // pieces)
        for at in range(0, len(data), each):
            await response.write(data[at : at + each])
            await asyncio.sleep(duration_s / pieces)
        return response


def _hang_up(request: web.Request, politely: bool = False) -> None:
    """Close the connection: with a reset, or after the written data has been sent."""
    if request.transport is None:
        return
    if politely:
        request.transport.close()
    else:
        request.transport.abort()


@asynccontextmanager
async def _listening(folder: Path, port: int) -> AsyncIterator[int]:
    """Listen on loopback on `port`, or on a free port if that is in use."""
    runner = web.AppRunner(application(folder), access_log=None, shutdown_timeout=0.5)
    await runner.setup()
    try:
        try:
            site = web.TCPSite(runner, "127.0.0.1", port, backlog=1024)
            await site.start()
        except OSError:
            site = web.TCPSite(runner, "127.0.0.1", 0, backlog=1024)
            await site.start()
        yield int(runner.addresses[0][1])
    finally:
        await runner.cleanup()


async def _run(folder: Path, port: int) -> None:
    async with _listening(folder, port) as taken:
        sys.stdout.write(f"{taken}\n")
        sys.stdout.flush()
        await asyncio.to_thread(sys.stdin.read)  # until the parent closes it, or dies


def main() -> None:
    """Serve a planted folder until standard input ends; print the port first."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--port", type=int, default=DEFAULT_PORT, help="0: any free one")
    arguments = parser.parse_args()
    asyncio.run(_run(arguments.folder, arguments.port))


if __name__ == "__main__":
    main()
