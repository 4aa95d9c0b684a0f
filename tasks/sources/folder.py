"""`folder`: image files in a folder tree, captions in text files beside them, classes as the names of folders."""

import hashlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import PurePosixPath
from typing import Any, ClassVar, Final, Literal

import pyarrow as pa
from pydantic import Field

from catalog.errors import NotFoundError, UserError
from catalog.schema import LOCAL, SOURCE
from catalog.storage import Storage
from tasks.sources._base import PIECE_ROWS, Chunk, Identify, Source
from tasks.sources._files import find, names_in
from tasks.stage import Batches, Step, Tables

IMAGES: Final = (".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff")
"""Endings of image files, in any case."""
MAX_CAPTION_BYTES: Final = 1 << 20
"""No more of a caption file is read."""


class Folder(Source):
    """Folder trees of images. A chunk lies within one folder, so a new file makes new parts only there, and only from
    its place in the sorted listing on; a new folder makes its own.

    `url` is the file's path, to be read by people; the bytes are read through `local_path`. The caption of `a.jpg`
    is the text in `a.txt`, the label the name of the folder that it lies in.
    """

    SCHEMA: ClassVar[pa.Schema] = pa.schema([*SOURCE, *LOCAL])

    use: Literal["folder"] = "folder"
    label: Literal["folder", "none"] = Field("folder", description="folder: the class is the name of the folder")

    def output(self, available: Tables) -> pa.Schema:
        return self.SCHEMA

    def chunks(self, identify: Identify) -> list[Chunk]:
        folders: dict[str, list[str]] = {}
        for uri in find(self.paths, (*IMAGES, ".txt"), folders_only=True):
            folder, _, name = uri.rpartition("/")
            folders.setdefault(folder, []).append(name)
        return self.some([c for f in sorted(folders) for c in self._chunks(_Listing.of(f, folders[f]), identify)])

    def _chunks(self, listing: "_Listing", identify: Identify) -> Iterator[Chunk]:
        for at in range(0, len(listing.images), self.rows_per_part):
            names = listing.images[at : at + self.rows_per_part]
            captions = [c for name in names if (c := listing.caption(name))]
            contents = [identify(f"{listing.folder}/{name}") for name in (*names, *captions)]
            identity = f"{_digest([listing.folder, *names, *captions, *contents])}-{_digest(names)[:16]}"
            yield Chunk(listing.folder, identity, at, len(names))

    def open(self, device: str, sides: Mapping[str, pa.Table]) -> Step:
        def step(batches: Iterator[pa.Table]) -> Batches:
            for batch in batches:
                for chunk in Chunk.read(batch):
                    yield from self._read(chunk)

        return step

    def _read(self, chunk: Chunk) -> Batches:
        listing = _Listing.of(chunk.uri, names_in(chunk.uri))
        names = listing.images[chunk.start : chunk.start + chunk.rows]
        if not chunk.identity.endswith("-" + _digest(names)[:16]):
            raise UserError(f"{chunk.uri}: files came or went since the plan; plan again")
        label = PurePosixPath(chunk.uri).name if self.label == "folder" else None
        schema = pa.schema(list(self.SCHEMA)[1:])
        for at in range(0, len(names), PIECE_ROWS):
            rows = [_row(listing, name, label) for name in names[at : at + PIECE_ROWS]]
            yield pa.Table.from_pylist(rows, schema)


@dataclass(frozen=True)
class _Listing:
    """The images right in one folder, sorted, and the text files beside them."""

    folder: str
    images: list[str]
    texts: frozenset[str]

    @classmethod
    def of(cls, folder: str, names: Iterable[str]) -> "_Listing":
        shown = sorted(n for n in names if not n.startswith((".", "_")))
        images = [n for n in shown if n.lower().endswith(IMAGES)]
        return cls(folder, images, frozenset(n for n in shown if n.endswith(".txt")))

    @cached_property
    def storage(self) -> Storage:
        return Storage(self.folder)

    def caption(self, name: str) -> str | None:
        """Return the name of an image's caption file, if there is one."""
        beside = f"{name.rpartition('.')[0]}.txt"
        return beside if beside in self.texts else None

    def read_caption(self, name: str) -> str | None:
        """Return an image's caption."""
        beside = self.caption(name)
        if beside is None:
            return None
        try:
            text = self.storage.read_range(beside, 0, MAX_CAPTION_BYTES)
        except NotFoundError:
            return None
        return text.decode("utf-8-sig", "replace").replace("\0", "").strip() or None


def _row(listing: _Listing, name: str, label: str | None) -> dict[str, Any]:
    path = f"{listing.folder}/{name}".encode("utf-8", "replace").decode()  # a name that is no UTF-8 is not found later
    return {"url": path, "caption": listing.read_caption(name), "label": label, "local_path": path}


def _digest(texts: list[str]) -> str:
    return hashlib.sha256("\n".join(texts).encode("utf-8", "surrogateescape")).hexdigest()
