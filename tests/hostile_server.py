"""A web server on loopback that misbehaves on purpose, over real sockets, for tests of whatever downloads.

with HostileServer() as server:
    url = server.body(jpeg, headers={"X-Robots-Tag": "noai"})
"""

import asyncio
import itertools
import threading
import zlib
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable, Sequence
from typing import Any, Self
from urllib.parse import unquote_to_bytes

from aiohttp import web

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


class HostileServer:
    """Every method that takes a behaviour returns the URL that shows it. `hits` counts requests by URL."""

    def __init__(self) -> None:
        self.hits: Counter[str] = Counter()
        self.requests: dict[str, Any] = {}
        """The headers of the last request, by URL."""
        self._handlers: dict[str, Handler] = {}
        self._raw: dict[bytes, tuple[Iterable[bytes], float]] = {}
        self.raw_connections = 0
        self._names = itertools.count()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)

    @property
    def hosts(self) -> tuple[str, str]:
        """What `allow_hosts` must hold: HTTP, and the port that speaks no proper HTTP."""
        return f"127.0.0.1:{self.port}", f"127.0.0.1:{self.raw_port}"

    def __enter__(self) -> Self:
        self._thread.start()
        asyncio.run_coroutine_threadsafe(self._open(), self._loop).result()
        return self

    def __exit__(self, *_: object) -> None:
        asyncio.run_coroutine_threadsafe(self._close(), self._loop).result()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    async def _open(self) -> None:
        app = web.Application()
        app.router.add_route("*", "/{name:.*}", self._answer)
        self._runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
        await self._runner.setup()
        site = web.TCPSite(self._runner, "127.0.0.1", 0, backlog=1024)
        await site.start()
        self.port: int = self._runner.addresses[0][1]
        self._raw_server = await asyncio.start_server(self._answer_raw, "127.0.0.1", 0)
        self.raw_port: int = self._raw_server.sockets[0].getsockname()[1]

    async def _close(self) -> None:
        self._raw_server.close()
        await self._runner.cleanup()
        left = [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]
        for task in left:  # silent handlers outlive their connections
            task.cancel()
        await asyncio.gather(*left, return_exceptions=True)

    async def _answer(self, request: web.Request) -> web.StreamResponse:
        url = f"http://127.0.0.1:{self.port}{request.path}"
        self.hits[url] += 1
        self.requests[url] = request.headers.copy()
        handler = self._handlers.get(request.match_info["name"])
        return await handler(request) if handler else web.Response(status=404)

    async def _answer_raw(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.raw_connections += 1
        try:
            while line := await reader.readline():
                await self._answer_one(line, reader, writer)
                if not line.split()[1].endswith(b"?keep"):
                    break
        except (ConnectionError, IndexError):
            pass
        finally:
            writer.close()

    async def _answer_one(self, line: bytes, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        name = line.split()[1].decode().removeprefix("/")
        self.hits[f"http://127.0.0.1:{self.raw_port}/{name}"] += 1
        while (await reader.readline()).strip():
            pass
        missing = b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n"
        pieces, pause_s = self._raw.get(unquote_to_bytes(name.partition("?")[0]), ([missing], 0.0))
        for piece in pieces:
            writer.write(piece)
            await writer.drain()
            if pause_s:
                await asyncio.sleep(pause_s)

    # ---- behaviours

    def add(self, handler: Handler) -> str:
        """Answer with `handler`."""
        name = str(next(self._names))
        self._handlers[name] = handler
        return f"http://127.0.0.1:{self.port}/{name}"

    def at(self, path: str, url: str) -> str:
        """Let `path` (`robots.txt`) show the behaviour of a URL that another method gave; return its own URL."""
        self._handlers[path] = self._handlers[url.rpartition("/")[2]]
        return f"http://127.0.0.1:{self.port}/{path}"

    def body(
        self, data: bytes, content_type: str = "image/jpeg", status: int = 200, headers: dict[str, str] | None = None
    ) -> str:
        """Answer with these bytes."""

        async def handler(_: web.Request) -> web.Response:
            return web.Response(body=data, status=status, headers={"Content-Type": content_type, **(headers or {})})

        return self.add(handler)

    def heals(self, data: bytes, failures: Sequence[tuple[int, dict[str, str]]]) -> str:
        """Answer with each of (status, headers) once, then with the bytes."""
        left = iter(failures)

        async def handler(_: web.Request) -> web.Response:
            failure = next(left, None)
            if failure is None:
                return web.Response(body=data, content_type="image/jpeg")
            return web.Response(status=failure[0], headers=failure[1])

        return self.add(handler)

    def redirect(self, target: str, status: int = 302) -> str:
        """Redirect to `target`, which is sent as it is."""

        async def handler(_: web.Request) -> web.Response:
            return web.Response(status=status, headers={"Location": target} if target else {})

        return self.add(handler)

    def loop(self) -> str:
        """Redirect to itself."""

        async def handler(request: web.Request) -> web.Response:
            return web.Response(status=302, headers={"Location": request.path})

        return self.add(handler)

    def drips(self, data: bytes, step: int = 10, pause_s: float = 0.1) -> str:
        """Send the bytes a few at a time (slow-loris)."""

        async def handler(request: web.Request) -> web.StreamResponse:
            response = web.StreamResponse()
            await response.prepare(request)
            try:
                for i in range(0, len(data), step):
                    await response.write(data[i : i + step])
                    await asyncio.sleep(pause_s)
            except ConnectionError:
                pass
            return response

        return self.add(handler)

    def endless(self, chunk: bytes = b"\xff\xd8\xff" + b"\0" * 65533) -> str:
        """Send and never stop."""

        async def handler(request: web.Request) -> web.StreamResponse:
            response = web.StreamResponse()
            await response.prepare(request)
            try:
                while True:
                    await response.write(chunk)
            except ConnectionError:
                pass
            return response

        return self.add(handler)

    def silent(self) -> str:
        """Take the request and say nothing."""

        async def handler(_: web.Request) -> web.Response:
            await asyncio.sleep(30)
            return web.Response()

        return self.add(handler)

    def raw(self, data: bytes) -> str:
        """Answer with these very bytes, headers and all or none, and hang up; not so for a URL with `?keep`."""
        return self.raw_pieces([data])

    def raw_at(self, path: bytes, data: bytes) -> None:
        """Answer with these very bytes at a path (without its first slash) of any bytes."""
        self._raw[path] = [data], 0.0

    def raw_pieces(self, pieces: Iterable[bytes], pause_s: float = 0.0) -> str:
        """Answer with these very bytes, one piece after the other, which may never end, and hang up."""
        name = str(next(self._names))
        self._raw[name.encode()] = pieces, pause_s
        return f"http://127.0.0.1:{self.raw_port}/{name}"

    def gzip_bomb(self, size: int = 1 << 27) -> str:
        """Send a small gzip body that becomes `size` bytes."""
        block, packer = bytes(1 << 20), zlib.compressobj(1, wbits=31)
        packed = b"".join(packer.compress(block) for _ in range(size >> 20)) + packer.flush()
        return self.body(packed, headers={"Content-Encoding": "gzip"})
