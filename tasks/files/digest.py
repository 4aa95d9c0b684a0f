"""Digests of local files, for fingerprints: by content, so that moving or touching a file changes nothing.

A cached digest is valid as long as size, modification time, change time and inode are the same: no program can set the
change time, so a file that was replaced is always noticed.
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
    """The metadata that changes whenever a file does."""

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
    """The state and digest of a file at one time."""

    state: FileState
    sha256: str


_seen: ContextVar[dict[str, Digested] | None] = ContextVar("_seen", default=None)


def digest_of(path: Path) -> str:
    """Return a file's SHA-256 in hex; the file is read again only if it may have changed."""
    state = FileState.of(path)
    found = _digest_of(path, state)
    seen = _seen.get()
    if seen is not None:
        seen[str(path)] = Digested(state, found)
    return found


@contextmanager
def digested() -> Iterator[dict[str, Digested]]:
    """Record the files whose digests are computed within the block, by path."""
    found: dict[str, Digested] = {}
    token = _seen.set(found)
    try:
        yield found
    finally:
        _seen.reset(token)


def check_unchanged(files: Mapping[str, Digested]) -> None:
    """Raise UserError if the content of a file has changed."""
    for path, (state, sha256) in files.items():
        try:
            same = FileState.of(path) == state or digest_of(Path(path)) == sha256
        except OSError:
            same = False
        if not same:
            raise changed(path)


def changed(path: str) -> UserError:
    """Return the error for a file that changed after the build was planned."""
    return UserError(f"{path} changed while it was read: build again")


@lru_cache(maxsize=256)
def _digest_of(path: Path, state: FileState) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
