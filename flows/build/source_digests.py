"""What a source file is: the SHA-256 of its content, so that touching or moving it changes nothing.

Reading every byte at every plan would be slow, so the digest is kept with the file's state (`FileState`), under a
digest of its path: in a folder of pictures the name of a file may tell what nobody is to know after a takedown. Files
in object stores are known by their entity tag, which their store keeps.
"""

import hashlib
import time
from pathlib import Path
from typing import Final

from catalog.dataset import Dataset
from catalog.errors import NotFoundError
from catalog.storage import Storage
from tasks.files.digest import FileState

_STATE = "identities"
_SETTLED_NS: Final = 50_000_000
"""A file that changed less than this before its digest was taken may change again without another time of change: the
clock of file systems has coarse steps. Its digest is not kept."""


class Identities:
    """Content digests of source files, kept in the dataset's state."""

    def __init__(self, dataset: Dataset) -> None:
        self._dataset = dataset
        kept: dict[str, list[str | int]] = dict(dataset.state(_STATE))
        self._known = {_key(name) if "/" in name else name: facts for name, facts in kept.items()}
        self._changed = self._known.keys() != kept.keys()  # older states have paths

    def __call__(self, uri: str) -> str:
        """Return the identity of a local path or an object-store URI. Raises NotFoundError."""
        if "://" in uri and not uri.startswith("file://"):
            folder, _, name = uri.rpartition("/")
            return Storage.open(folder).tag(name)
        path = Path(uri.removeprefix("file://")).absolute()
        try:
            state = FileState.of(path)
        except OSError:
            raise NotFoundError(f"no file {uri!r}") from None
        known = self._known.get(_key(str(path)))
        if known is None or known[:-1] != list(state):
            with path.open("rb") as file:
                known = [*state, hashlib.file_digest(file, "sha256").hexdigest()]
            if time.time_ns() - state.ctime_ns > _SETTLED_NS:
                self._known[_key(str(path))] = known
                self._changed = True
        return str(known[-1])

    def save(self) -> None:
        """Store the digests."""
        if self._changed:
            self._dataset.set_state(_STATE, dict(self._known))
            self._changed = False


def _key(path: str) -> str:
    """Return what stands for a path: BLAKE2b, 128 bits, hex."""
    return hashlib.blake2b(path.encode("utf-8", "surrogateescape"), digest_size=16).hexdigest()
