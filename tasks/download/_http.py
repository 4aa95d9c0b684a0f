"""Engine `http`: concurrent requests in one event loop, decoding in threads, results in order, bounded memory.

The loop runs in a separate thread for the duration of a part, so fetching continues while the caller writes.
"""

import asyncio
import socket
import ssl
import threading
import time
import zlib
from collections import deque
from collections.abc import Coroutine, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache, partial
from types import TracebackType
from typing import Any, Final, Self, TypeVar

import aiohttp
from aiohttp.abc import AbstractResolver
from yarl import URL

from tasks.download._addresses import (
    AllowedHosts,
    PrivateAddressError,
    PublicResolver,
    check_target,
    check_url,
    public_socket,
)
from tasks.download._base import LocalFile, Outcome, Request, Settings
from tasks.download._budget import ByteBudget, Holding, NoRoomError
from tasks.download._headers import cut_short, decompressed, encodings, opted_out, retry_after_s
from tasks.download._hosts import FIRST_PROBE_S, LONGEST_PAUSE_S, Hosts, Place, Turn
from tasks.download._permission import Memory, Permission
from tasks.download._picture import PictureMaker, begins_as_picture, read_local
from tasks.download._reasons import FetchError, of_status
from tasks.download._robots import AGENT
from tasks.download._wire import LenientConnector, WireError

WINDOW_ROWS: Final = 4096
"""Rows between the oldest unfinished one and the newest started: within it a slow server delays no other row."""
BUDGET_BYTES: Final = 128 << 20
_FIRST_BYTES: Final = 256 << 10
"""Reserved before a response is read; most images fit."""
_NEXT_BYTES: Final = 1 << 20
_REDIRECTS: Final = (301, 302, 303, 307, 308)
_NETWORK: Final = ("timeout", "connection_failed", "dns_failed")
"""Failures that concern the host and not the row."""
_RESOLVER_THREADS: Final = 16
_SITE_BYTES: Final = 500 << 10
"""Size limit of robots.txt and similar files; the rest is not read (RFC 9309, section 2.5)."""
_SITE_REDIRECTS: Final = 5

T = TypeVar("T")


class HttpEngine:
    """The built-in fetcher. `cpus` threads decode; bodies and images in memory have at most `budget_bytes`.

    `resolver`, `budget_bytes` and `first_probe_s` (see `Hosts`) are other than the defaults only in tests.
    """

    def __init__(
        self,
        settings: Settings,
        cpus: int = 1,
        resolver: AbstractResolver | None = None,
        *,
        budget_bytes: int = BUDGET_BYTES,
        first_probe_s: float = FIRST_PROBE_S,
    ) -> None:
        memory = Memory()
        self._open = partial(_Fetcher, settings, cpus, resolver, memory, budget_bytes, first_probe_s)

    def outcomes(self, requests: Iterable[Request]) -> Iterator[Outcome]:
        """See `Engine.outcomes`."""
        waiting: deque[Future[Outcome]] = deque()
        with self._open() as fetcher:
            for row, request in enumerate(requests):
                while waiting and (len(waiting) >= WINDOW_ROWS or fetcher.budget.exhausted or waiting[0].done()):
                    yield fetcher.take(row - len(waiting), waiting.popleft())
                waiting.append(fetcher.submit(fetcher.row(row, request)))
            last = row + 1 if waiting else 0
            while waiting:
                yield fetcher.take(last - len(waiting), waiting.popleft())


@lru_cache(maxsize=1)
def _tls() -> ssl.SSLContext:
    """Return the process's context: loading the certificates takes 30 ms, more than everything else for an image."""
    return ssl.create_default_context()


class _Fetcher:
    """The event loop, its session and its limits, for one run over requests."""

    def __init__(
        self,
        settings: Settings,
        cpus: int,
        resolver: AbstractResolver | None,
        memory: Memory,
        budget_bytes: int,
        first_probe_s: float,
    ) -> None:
        self.budget = ByteBudget(budget_bytes)
        self._settings = settings
        self._allowed = AllowedHosts(settings.allow_hosts)
        self._pictures = PictureMaker(settings)
        self._decoders = ThreadPoolExecutor(cpus, "decode")
        self._names = ThreadPoolExecutor(_RESOLVER_THREADS, "resolve")
        self._loop = asyncio.new_event_loop()
        self._loop.set_default_executor(self._names)
        self._thread = threading.Thread(target=self._loop.run_forever, name="download", daemon=True)
        self._slots = asyncio.Semaphore(settings.concurrency)
        self._site_slots = asyncio.Semaphore(settings.concurrency)  # separate: waiters may hold one of the others
        waits_s = settings.crawl_wait_s, settings.host_wait_s, settings.backoff_s, first_probe_s
        self._hosts = Hosts(settings.per_host, *waits_s)
        self._permission = Permission(settings, self._allowed, memory, self._site_file, self._decoders)
        self._resolver = resolver

    def __enter__(self) -> Self:
        self._thread.start()
        self.submit(self._open()).result()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.submit(self._close()).result()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._decoders.shutdown(cancel_futures=True)
        self._pictures.close()
        self._names.shutdown(wait=False, cancel_futures=True)  # a name lookup that hangs must not delay the build
        self._loop.close()

    async def _open(self) -> None:
        connector = LenientConnector(
            limit=0,  # `_slots` and `_hosts` set the limits
            ssl=_tls(),
            resolver=PublicResolver(self._allowed, self._resolver),
            socket_factory=public_socket(self._allowed),
            ttl_dns_cache=300,
        )
        agent = f"Mozilla/5.0 (compatible; {self._settings.user_agent_token or AGENT})"
        self._session = aiohttp.ClientSession(
            connector=connector,
            cookie_jar=aiohttp.DummyCookieJar(),
            timeout=aiohttp.ClientTimeout(total=None),  # `_attempt` sets the limit
            auto_decompress=False,  # `decompressed` has a limit
            headers={"User-Agent": agent, "Accept": "image/*,*/*;q=0.5", "Accept-Encoding": "identity"},
        )

    async def _close(self) -> None:
        rows = [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]
        for task in rows:
            task.cancel()
        await asyncio.gather(*rows, return_exceptions=True)
        await self._session.close()

    def submit(self, work: Coroutine[Any, Any, T]) -> Future[T]:
        """Run a coroutine in the loop's thread."""
        return asyncio.run_coroutine_threadsafe(work, self._loop)

    def take(self, row: int, future: Future[Outcome]) -> Outcome:
        """Wait for a row, the oldest not yet handed over, and remove it from the budget."""
        self.budget.advance(row)
        if not future.done():
            self._loop.call_soon_threadsafe(self.budget.wake)
        outcome = future.result()
        self.budget.give_back(len(outcome.image or b""))
        return outcome

    # ---- one row

    async def row(self, row: int, request: Request) -> Outcome:
        """Return the outcome of one request. The budget still holds the image afterwards; `take` releases it."""
        outcome = Outcome()
        holding = Holding(self.budget, row)
        try:
            body = await (self._read(request.file, holding) if request.file else self._fetch(request, outcome, holding))
            holding.shrink(len(body))
            work = partial(self._pictures.fill, outcome, body, request.digest)
            await asyncio.get_running_loop().run_in_executor(self._decoders, work)
        except FetchError as error:
            outcome.failed(error.reason, error.detail)
        except Exception as error:  # noqa: BLE001  (one bad row must not stop the others)
            outcome.failed("unforeseen", f"{type(error).__name__}: {error}")
        finally:
            holding.shrink(len(outcome.image or b""))
        return outcome

    async def _read(self, file: LocalFile, holding: Holding) -> bytes:
        await holding.wait_for(
            self._settings.max_bytes if file.size is None else min(file.size, self._settings.max_bytes)
        )
        work = partial(read_local, file, self._settings.max_bytes)
        return await asyncio.get_running_loop().run_in_executor(self._decoders, work)

    async def _fetch(self, request: Request, outcome: Outcome, holding: Holding) -> bytes:
        """Request the image, with retries, until it arrives or a retry is pointless."""
        if request.fault:
            raise FetchError(*request.fault)
        if not request.url:
            raise FetchError("bad_url", "no URL")
        url = check_url(request.url, self._allowed)
        delay_s = await self._permission.check_request(url)
        for attempt in range(self._settings.retries + 1):
            try:
                return await self._in_turn(url, delay_s, attempt == 0, outcome, holding)
            except FetchError as error:
                holding.shrink(0)
                if error.retry != "now" or attempt == self._settings.retries:
                    raise
                pause_s = max(error.pause_s or 0.0, self._backoff_s(request.url, attempt))
            await asyncio.sleep(pause_s)
        raise AssertionError("the last attempt returns or raises")

    def _backoff_s(self, url: str, attempt: int) -> float:
        return self._settings.backoff_s * float(2**attempt) * (0.75 + _jitter(url) / 2)

    async def _in_turn(self, url: URL, delay_s: float, first: bool, outcome: Outcome, holding: Holding) -> bytes:
        """Make one attempt, including redirects, when the hosts' turns, the slots and the memory allow it; repeat it if
        the memory was insufficient."""
        outcome.http_status = outcome.final_url = None
        left = _Left(self._settings.timeout_s, self._settings.max_redirects)
        needed = _FIRST_BYTES
        while True:
            try:
                async with self._hosts.slot(_place(url), delay_s, first) as turn, self._slots:
                    holding.grow(needed)
                    return await self._attempt(url, turn, left, outcome, holding)
            except _MovedError as moved:
                target: URL | None = moved.url
            except NoRoomError as error:
                target, needed = None, error.size
            # Outside of the except block: the error's frames would keep the body in memory while this row waits.
            if target is None:
                left.seconds = self._settings.timeout_s
                await holding.wait_for(needed)
            else:
                holding.shrink(0)  # a row that waits for a slot must not hold bytes that others need to complete
                url, delay_s = target, await self._permission.check_request(target)

    async def _attempt(self, url: URL, turn: Turn, left: "_Left", outcome: Outcome, holding: Holding) -> bytes:
        """Make one request to a host within the rest of `timeout_s`, and record the result for the host.

        Raises _MovedError if it redirects to another one.
        """
        allowed_s = left.seconds
        try:
            body = await self._within(url, left, outcome, holding)
        except FetchError as error:
            if error.reason == "rate_limited" or (error.reason == "server_error" and error.pause_s is not None):
                _refused(error, turn)
            elif error.reason not in _NETWORK:
                turn.answered()
            elif error.reason != "timeout" or allowed_s >= self._settings.timeout_s / 2:  # else others used it
                turn.missed(error.reason)
            raise
        except _MovedError:
            turn.answered()
            raise
        turn.answered()
        return body

    async def _within(self, url: URL, left: "_Left", outcome: Outcome, holding: Holding) -> bytes:
        """Make one request to a host within the rest of `timeout_s`."""
        before, outcome.http_status = outcome.http_status, None
        began = time.monotonic()
        try:
            async with asyncio.timeout(left.seconds):
                return await self._follow(url, left, outcome, holding)
        except TimeoutError as error:
            raise FetchError("timeout", f"over {self._settings.timeout_s:g} s") from error
        except (aiohttp.ClientError, OSError, ValueError) as error:
            raise _classified(error) from error
        finally:
            left.seconds -= time.monotonic() - began
            if outcome.http_status is None:
                outcome.http_status = before

    async def _follow(self, url: URL, left: "_Left", outcome: Outcome, holding: Holding) -> bytes:
        place = _place(url)
        while True:
            async with self._session.get(url, allow_redirects=False) as response:
                outcome.http_status = response.status
                if response.status not in _REDIRECTS:
                    self._check(response)
                    await self._permission.check_response(url, response.headers)
                    return await self._body(response, holding)
            url = self._target(response, url)
            outcome.final_url = str(url)
            if left.redirects == 0:
                raise FetchError("redirect_limit", f"more than {self._settings.max_redirects}")
            left.redirects -= 1
            if _place(url) != place or await self._permission.check_request(url):
                raise _MovedError(url)

    def _target(self, response: aiohttp.ClientResponse, url: URL) -> URL:
        """Return the target of a redirect."""
        target = response.headers.get("Location")
        if not target:
            raise FetchError("bad_redirect", f"{response.status} without Location")
        try:
            return check_target(target, self._allowed, url)
        except FetchError as error:
            if error.reason == "bad_url":
                raise FetchError("bad_redirect", f"to {target}: {error.detail}") from error
            raise FetchError(error.reason, f"redirected to {target}") from error

    def _check(self, response: aiohttp.ClientResponse) -> None:
        if not 200 <= response.status < 300:
            pause_s = retry_after_s(response.headers.get("Retry-After"))
            raise FetchError(of_status(response.status), f"HTTP {response.status}", pause_s)
        s = self._settings
        tags = response.headers.getall("X-Robots-Tag", [])
        tag = opted_out(tags, s.user_agent_token or AGENT, s.disallowed_header_directives)
        if tag is not None:
            raise FetchError("opted_out", f"X-Robots-Tag: {tag}")
        part = cut_short(response.headers.get("Content-Range")) if response.status == 206 else None
        if part is not None:
            raise FetchError("incomplete_body", f"HTTP 206: {part}")
        if (response.content_length or 0) > s.max_bytes:
            raise FetchError("body_too_large", f"{response.content_length} bytes announced, limit {s.max_bytes}")

    async def _body(self, response: aiohttp.ClientResponse, holding: Holding) -> bytes:
        max_bytes = self._settings.max_bytes
        codings = encodings(response.headers.getall("Content-Encoding", []))
        holding.grow(max(response.content_length or 0, 2 * max_bytes if codings else 0))
        chunks, size = [], 0  # a growing buffer would take twice its size while it is copied
        async for chunk in response.content.iter_any():
            chunks.append(chunk)
            size += len(chunk)
            if size > max_bytes:
                raise FetchError("body_too_large", f"over {max_bytes} bytes")
            if size > holding.size:
                try:
                    holding.grow(size + _NEXT_BYTES)
                except NoRoomError:
                    raise NoRoomError(max_bytes) from None  # at most once: the next attempt reserves the maximum
        if not size and response.status != 200:
            raise FetchError("unexpected_status", f"HTTP {response.status}")
        body = b"".join(chunks)
        return decompressed(body, codings, max_bytes, begins_as_picture) if codings else body

    # ---- site-wide files

    async def _site_file(self, url: URL) -> str:
        """Return the text of robots.txt or a similar file; "" if the host has none. Raises FetchError.

        Retries are those of a picture. Neither `per_host` nor Crawl-delay applies.
        """
        for attempt in range(self._settings.retries + 1):
            try:
                async with self._site_slots, asyncio.timeout(self._settings.timeout_s):
                    return await self._site_text(url)
            except TimeoutError:
                failed = FetchError("timeout", f"over {self._settings.timeout_s:g} s")
            except FetchError as error:
                failed = error.bare()
            except (aiohttp.ClientError, OSError, ValueError) as error:
                failed = _classified(error)
            if failed.retry != "now" or attempt == self._settings.retries:
                raise failed
            await asyncio.sleep(self._backoff_s(str(url), attempt))
        raise AssertionError("the last attempt returns or raises")

    async def _site_text(self, url: URL) -> str:
        """Make one request. 4xx, or more than five redirects, mean that there is no file (RFC 9309, section 2.3.1)."""
        for _ in range(_SITE_REDIRECTS + 1):
            async with self._session.get(url, allow_redirects=False, headers={"Accept": "*/*"}) as response:
                if 400 <= response.status < 500:
                    return ""
                if response.status not in _REDIRECTS:
                    return await self._text(response)
            url = self._target(response, url)
        return ""

    async def _text(self, response: aiohttp.ClientResponse) -> str:
        if not 200 <= response.status < 300:
            raise FetchError(of_status(response.status), f"HTTP {response.status}")
        body = bytearray()
        async for chunk in response.content.iter_any():
            body += chunk
            if len(body) > _SITE_BYTES:
                break
        codings = encodings(response.headers.getall("Content-Encoding", []))
        if codings:
            body = bytearray(decompressed(bytes(body), codings, _SITE_BYTES, _is_text))
        if len(body) > _SITE_BYTES:
            lines = max(body.rfind(end, 0, _SITE_BYTES) for end in (b"\n", b"\r"))
            del body[lines + 1 :]  # a truncated rule would have another meaning
        return body.decode("utf-8", "replace")


class _MovedError(Exception):
    """A redirect to a host, or a URL, that needs its own turn."""

    def __init__(self, url: URL) -> None:
        super().__init__(url)
        self.url = url


@dataclass(slots=True)
class _Left:
    """The rest of one attempt's limits."""

    seconds: float
    """Time to wait for servers; waiting for slots, turns and memory does not count."""
    redirects: int


def _place(url: URL) -> Place:
    """Return the key of a host in `Hosts`."""
    return url.host or "", url.port or 0


def _refused(error: FetchError, turn: Turn) -> None:
    """Record a host's refusal. `error` keeps only the row's own pause: `Hosts` waits for the host's."""
    asked_s = error.pause_s
    if (asked_s or 0.0) > LONGEST_PAUSE_S:
        error.retry = "later"
    if error.reason == "rate_limited":
        turn.refused(asked_s)
        error.pause_s = None
    else:
        error.pause_s = turn.failed(asked_s or 0.0)


def _is_text(body: bytes) -> bool:
    return b"\0" not in body and not body.startswith(b"\x1f\x8b")


def _jitter(url: str) -> float:
    """Return a number in 0..1 that depends on the URL, so that retries are not synchronised."""
    return zlib.crc32(url.encode("utf-8", "replace")) / 2**32


def _classified(error: Exception) -> FetchError:
    """Convert an exception of aiohttp or of the system to a FetchError."""
    cause = error.os_error if isinstance(error, aiohttp.ClientConnectorError) else error
    text = str(cause) or type(cause).__name__
    if isinstance(cause, PrivateAddressError):
        return FetchError("private_address", text)
    if isinstance(error, aiohttp.ClientConnectorDNSError) or isinstance(cause, socket.gaierror):
        busy = isinstance(cause, socket.gaierror) and cause.errno == socket.EAI_AGAIN
        return FetchError("dns_failed", text, retry="now" if busy else "later")
    if isinstance(error, aiohttp.ClientSSLError | ssl.SSLError):
        return FetchError("tls_failed", text)
    if isinstance(error, WireError):
        return FetchError("bad_response", text)
    if isinstance(error, aiohttp.ClientPayloadError):
        return FetchError("incomplete_body", text)
    if isinstance(error, aiohttp.ClientResponseError):
        return FetchError("bad_response", error.message)
    if isinstance(error, aiohttp.ClientConnectionError | OSError):
        return FetchError("connection_failed", text)
    if isinstance(error, ValueError):  # a host, or credentials, that cannot be encoded: no request was sent
        return FetchError("bad_url", text)
    return FetchError("bad_response", text)
