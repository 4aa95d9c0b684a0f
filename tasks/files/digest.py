"""What a local file is, for fingerprints: its content, so that moving or touching it changes nothing.

A digest that was taken before counts as long as size, times of modification and of change, and inode are the same: no
program can set the time of change, so a file that was replaced is noticed whatever it says of itself.
"""

import hashlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

from catalog.errors import UserError


class FileState(NamedTuple):
    """What changes whenever a file does, without reading it."""

    size: int
    mtime_ns: int
    ctime_ns: int
    inode: int

    @classmethod
    def of(cls, path: str | Path) -> "FileState":
        """Return the state of a file. Raises OSError."""
        found = Path(path).stat()
        return cls(found.st_size, found.st_mtime_ns, found.st_ctime_ns, found.st_ino)


class Digested(NamedTuple):
    """A file as it was when its digest was taken."""

    state: FileState
    sha256: str


_seen: ContextVar[dict[str, Digested] | None] = ContextVar("_seen", default=None)


def digest_of(path: Path) -> str:
    """Return a file's SHA-256 in hex; read anew only where it may have changed."""
    state = FileState.of(path)
    found = _digest_of(path, state)
    seen = _seen.get()
    if seen is not None:
        seen[str(path)] = Digested(state, found)
    return found


@contextmanager
def digested() -> Iterator[dict[str, Digested]]:
    """Give the files whose digests are taken within the block, by path."""
    found: dict[str, Digested] = {}
    token = _seen.set(found)
    try:
        yield found
    finally:
        _seen.reset(token)


def check_unchanged(files: Mapping[str, Digested]) -> None:
    """Raise UserError where a file no longer has the content that it had."""
    for path, (state, sha256) in files.items():
        try:
            same = FileState.of(path) == state or digest_of(Path(path)) == sha256
        except OSError:
            same = False
        if not same:
            raise changed(path)


def changed(path: str) -> UserError:
    """Return the error for a file that is not what it was when the build was planned."""
    return UserError(f"{path} changed while it was read: build again")


@lru_cache(maxsize=256)
def _digest_of(path: Path, state: FileState) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
