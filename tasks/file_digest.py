"""What a local file is, for fingerprints: its content, so that moving or touching it changes nothing."""

import hashlib
from functools import lru_cache
from pathlib import Path


def digest_of(path: Path) -> str:
    """Return a file's SHA-256 in hex; read anew only where its size or time changed."""
    state = path.stat()
    return _digest_of(path, state.st_size, state.st_mtime_ns)


@lru_cache(maxsize=256)
def _digest_of(path: Path, size: int, mtime_ns: int) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
