"""Site-wide files such as robots.txt: fetched once, then cached in memory and on disk.

The cache in memory is bounded, and lives as long as an engine; that on disk serves all processes of this machine and
later builds. Actors that need a host at the same moment may each fetch the file; nothing fetches it again before it
expires.
"""

import asyncio
import hashlib
import json
import os
import time
from collections import OrderedDict
from collections.abc import Awaitable, Callable
from concurrent.futures import Executor
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Final, Generic, NamedTuple, TypeVar

from yarl import URL

from tasks.download._reasons import FetchError

CACHED_S: Final = 86_400.0
"""A file is fetched again after a day (RFC 9309, section 2.4)."""
FAILED_S: Final = 3600.0
"""How long a failure is cached. Only in memory: a later build tries again."""
MOST_IN_MEMORY: Final = 1024
MOST_TEXT: Final = 8 << 20
"""Characters of text whose parsed form is in memory; parsed rules take some ten times as much."""
MOST_ON_DISK: Final = 200_000
"""Files; some 4 kB each."""
_SWEPT_AFTER_S: Final = 7 * CACHED_S
"""Longer than `CACHED_S`, since an expired file is used while its host does not answer."""

T = TypeVar("T")


class SiteFile(NamedTuple):
    """The response of a host."""

    origin: str
    """`http://host:port`, without the scheme's default port."""
    text: str
    """Empty if the host has no such file."""
    fetched_at: float
    """Seconds since 1970."""

    @property
    def when(self) -> str:
        """Return when it was fetched, in the format of evidence: 2026-11-24T10:00Z."""
        return datetime.fromtimestamp(self.fetched_at, UTC).strftime("%Y-%m-%dT%H:%MZ")


class DiskCache:
    """At most `most` files on disk, one for each origin, in one folder.

    Failures to read or write are ignored: it is only a cache.
    """

    def __init__(self, folder: Path, most: int = MOST_ON_DISK) -> None:
        self._folder = folder
        self._most = most
        self._room: int | None = None

    def read(self, origin: str) -> SiteFile | None:
        """Return the file of an origin, expired or not."""
        try:
            kept = json.loads(self._path(origin).read_bytes())
            file = SiteFile(str(kept["origin"]), str(kept["text"]), float(kept["fetched_at"]))
        except (OSError, ValueError, KeyError, TypeError):
            return None
        return file if file.origin == origin and file.fetched_at <= time.time() else None

    def write(self, file: SiteFile) -> None:
        """Store a file atomically."""
        path = self._path(file.origin)
        temporary = path.with_suffix(f".{os.getpid()}.tmp")
        with suppress(OSError):
            self._folder.mkdir(parents=True, exist_ok=True)
            if self._room is None:
                self._room = self._most - self._sweep()
            if self._room > 0:
                temporary.write_text(json.dumps(file._asdict()), encoding="utf-8")
                temporary.replace(path)
                self._room -= 1

    def _path(self, origin: str) -> Path:
        return self._folder / f"{hashlib.sha256(origin.encode()).hexdigest()[:32]}.json"

    def _sweep(self) -> int:
        """Remove files that are too old to be used; return how many are left."""
        stay = 0
        with os.scandir(self._folder) as entries:
            for entry in entries:
                if time.time() - entry.stat().st_mtime > _SWEPT_AFTER_S:
                    Path(entry.path).unlink(missing_ok=True)
                else:
                    stay += 1
        return stay


class MemoryCache(Generic[T]):
    """An LRU cache of parsed files, and of failures. Bounded in number and in text."""

    def __init__(self, most: int = MOST_IN_MEMORY, most_text: int = MOST_TEXT) -> None:
        self._most = most
        self._most_text = most_text
        self._entries: OrderedDict[str, tuple[T | FetchError, int, float]] = OrderedDict()
        self._text = 0

    def __len__(self) -> int:
        return len(self._entries)

    def get(self, origin: str) -> T | FetchError | None:
        """Return the entry of an origin unless it has expired."""
        entry = self._entries.get(origin)
        if entry is None or entry[2] <= time.time():
            return None
        self._entries.move_to_end(origin)
        return entry[0]

    def put(self, origin: str, value: T | FetchError, characters: int, until: float) -> None:
        """Store `value`, parsed from this many characters, until a time (seconds since 1970)."""
        self._drop(origin)
        self._entries[origin] = (value, characters, until)
        self._text += characters
        while len(self._entries) > self._most or (self._text > self._most_text and len(self._entries) > 1):
            self._drop(next(iter(self._entries)))

    def _drop(self, origin: str) -> None:
        entry = self._entries.pop(origin, None)
        self._text -= entry[1] if entry else 0


class SiteFiles(Generic[T]):
    """The files of one kind, in one event loop. `known` outlives it.

    `path`: its path on each host. `ask`: fetches one, "" if the host has none; raises FetchError. `parse`: its parser,
    which runs in `executor` (half a megabyte takes 0.15 s). `disk`: None caches nothing on disk.
    """

    def __init__(
        self,
        path: str,
        ask: Callable[[URL], Awaitable[str]],
        parse: Callable[[SiteFile], T],
        known: MemoryCache[T],
        disk: DiskCache | None,
        executor: Executor,
    ) -> None:
        self._path = path
        self._ask = ask
        self._parse = parse
        self._known = known
        self._disk = disk
        self._executor = executor
        self._asking: dict[str, asyncio.Task[T | FetchError]] = {}

    async def of(self, url: URL, keep: bool) -> T:
        """Return the parsed file of a URL's host. `keep`: it may be cached on disk. Raises FetchError."""
        origin = str(url.origin())
        found = self._known.get(origin)
        if found is None:
            if origin not in self._asking:
                task = self._asking[origin] = asyncio.create_task(self._find(origin, keep))
                task.add_done_callback(lambda _: self._asking.pop(origin, None))
            found = await asyncio.shield(self._asking[origin])  # cancelling one row must not cancel the others
        if isinstance(found, FetchError):
            raise found.bare()
        return found

    async def _find(self, origin: str, keep: bool) -> T | FetchError:
        """Return the parsed file: from disk if it has not expired, else from the host."""
        loop = asyncio.get_running_loop()
        disk = self._disk if keep else None
        file = await loop.run_in_executor(self._executor, disk.read, origin) if disk else None
        until = file.fetched_at + CACHED_S if file else 0.0
        if until <= time.time():
            try:
                file = SiteFile(origin, await self._ask(URL(origin).join(URL(self._path))), time.time())
                until = file.fetched_at + CACHED_S
                if disk:
                    await loop.run_in_executor(self._executor, disk.write, file)
            except FetchError as error:
                until = time.time() + FAILED_S
                if file is None:
                    return self._failed(origin, error, until)
        assert file is not None
        try:
            made = await loop.run_in_executor(self._executor, self._parse, file)
        except Exception as error:  # noqa: BLE001  # a file that crashes its parser must not be fetched for every row
            return self._failed(origin, FetchError("unforeseen", f"{type(error).__name__}: {error}"), until)
        self._known.put(origin, made, len(file.text), until)
        return made

    def _failed(self, origin: str, error: FetchError, until: float) -> FetchError:
        error = error.bare()
        self._known.put(origin, error, 0, until)
        return error
