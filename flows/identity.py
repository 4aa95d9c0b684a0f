"""What a source file is: the SHA-256 of its content, so that touching or moving it changes nothing.

Reading every byte at every plan would be slow, so the digest is kept with the file's size and time of change, under a
digest of its path: in a folder of pictures the name of a file may tell what nobody is to know after a takedown. Files
in object stores are known by their entity tag, which their store keeps.
"""

import hashlib
from pathlib import Path

from catalog.dataset import Dataset
from catalog.errors import NotFoundError
from catalog.storage import Storage

_STATE = "identities"


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
            stat = path.stat()
        except OSError:
            raise NotFoundError(f"no file {uri!r}") from None
        known = self._known.get(_key(str(path)))
        if known is None or known[:2] != [stat.st_size, stat.st_mtime_ns]:
            with path.open("rb") as file:
                known = [stat.st_size, stat.st_mtime_ns, hashlib.file_digest(file, "sha256").hexdigest()]
            self._known[_key(str(path))] = known
            self._changed = True
        return str(known[2])

    def save(self) -> None:
        """Keep what was learnt."""
        if self._changed:
            self._dataset.set_state(_STATE, dict(self._known))


def _key(path: str) -> str:
    """Return what stands for a path: BLAKE2b, 128 bits, hex."""
    return hashlib.blake2b(path.encode("utf-8", "surrogateescape"), digest_size=16).hexdigest()
