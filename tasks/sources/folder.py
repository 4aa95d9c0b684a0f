"""`folder`: image files in a folder tree, captions in text files next to them, folder names as classes."""

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any, ClassVar, Final, Literal

import pyarrow as pa
from pydantic import Field

from catalog.errors import NotFoundError, UserError
from catalog.image_formats import DECODED, HEAD_BYTES, sniff
from catalog.schema import FAULT, LOCAL, SOURCE, local_file, local_name
from catalog.storage import Storage
from tasks.sources._base import PIECE_ROWS, Chunk, Identify, Source, Survey, batches_of, state_of
from tasks.sources._files import SourceFile, absolute, head_of, is_file, is_glob, not_there, printable, walk
from tasks.sources._notes import Notes
from tasks.sources._text import FLAWS, Flaws
from tasks.stage import Batches, Step

IMAGES: Final = (
    ".jpg", ".jpeg", ".jpe", ".jfif", ".jif", ".pjpeg", ".pjp", ".png", ".apng", ".webp", ".gif", ".bmp", ".dib",
    ".tif", ".tiff", ".avif", ".avifs", ".heic", ".heif", ".jxl", ".jp2",
)  # fmt: skip
"""Endings of image files, in any case. A file with another ending is an image if its first bytes are those of one."""
_NO_IMAGES: Final = (
    ".txt", ".json", ".jsonl", ".csv", ".tsv", ".parquet", ".md", ".html", ".htm", ".xml", ".yaml", ".yml", ".tar",
    ".zip", ".gz", ".npy", ".npz", ".pt", ".py", ".log",
)  # fmt: skip
"""Endings of files that are not opened: captions, and others that are common next to pictures."""
MAX_CAPTION_BYTES: Final = 1 << 20
"""At most this much of a caption file is read."""
NO_PICTURES: Final = "files that are not pictures"
LONG: Final = f"captions of which only the first {MAX_CAPTION_BYTES >> 20} MB was read"
NO_PICTURE: Final = "text files without a picture"


class Folder(Source):
    """Folder trees of images. A chunk is within one folder, so a new file makes new parts only in its folder, from its
    place in the sorted listing; a new folder makes its own parts.

    `url` is the file's path, for display; the bytes are read through `local_path`. Every file that is a picture by its
    ending or by its first bytes is a row; others are counted, as are hidden files and links. The caption of `a.jpg` is
    the text in `a.txt` (shared by all pictures named `a`), or in `a.jpg.txt`; the case of the text file's name is
    ignored unless another picture's name matches it better. The label is the name of the folder.
    """

    SCHEMA: ClassVar[pa.Schema] = pa.schema([*SOURCE, *LOCAL, *FAULT])

    version: ClassVar[int] = 3
    divisible = False  # a chunk is named by the list of its files

    use: Literal["folder"] = "folder"
    label: Literal["folder", "none"] = Field("folder", description="folder: the class is the name of the folder")

    def survey(self, identify: Identify) -> Survey:
        notes = Notes()
        chunks = []
        for folder, files in self._folders(notes):
            listing = _Listing.of(folder, [file.below.rpartition("/")[2] for file in files])
            others, unread = listing.others(), listing.unread()
            notes.add(len(others), NO_PICTURES, printable(f"{folder}/{others[0]}") if others else "")
            notes.add(len(unread), NO_PICTURE, printable(f"{folder}/{unread[0]}") if unread else "")
            chunks += list(self._chunks(listing, identify))
        chunks.sort(key=lambda chunk: (chunk.uri, chunk.start))
        return Survey(self.require_rows(chunks, notes.all()), self.SCHEMA, notes.all())

    def output(self, available: Any) -> pa.Schema:
        return self.SCHEMA

    def _folders(self, notes: Notes) -> Iterator[tuple[str, list[SourceFile]]]:
        """Yield every folder once, with its files."""
        seen: set[str] = set()
        for path in self.paths:
            place = absolute(path)
            if is_file(place) or is_glob(place):
                raise UserError(f"{path} is a {'file' if is_file(place) else 'pattern'}; expected a folder")
            try:
                for folder, files in walk(place, notes, self.follow_links):
                    if folder not in seen:
                        seen.add(folder)
                        yield folder, files
            except NotFoundError as error:
                raise not_there(place) from error

    def _chunks(self, listing: "_Listing", identify: Identify) -> Iterator[Chunk]:
        for at in range(0, len(listing.images), self.rows_per_part):
            names = listing.images[at : at + self.rows_per_part]
            captions = [c for name in names if (c := listing.caption(name))]
            state = "" if "://" in listing.folder else state_of(_paths(listing.folder, [*names, *captions]))
            identity = _identity(listing.folder, names, captions, identify)
            layout = json.dumps([names[0], names[-1], _digest([*names, *captions])])
            yield Chunk(local_name(listing.folder), identity, at, len(names), layout, state)

    def files(self, chunk: Chunk) -> list[str]:
        listing = self._listing(chunk)
        return _paths(listing.folder, [*listing.images, *listing.captions()])

    def identity(self, chunk: Chunk, identify: Identify) -> str:
        listing = self._listing(chunk)
        return _identity(listing.folder, listing.images, listing.captions(), identify)

    def _listing(self, chunk: Chunk) -> "_Listing":
        """Return the pictures of a chunk. Raises UserError if they are no longer those that were planned."""
        folder = local_file(chunk.uri)
        first, last, digest = json.loads(chunk.layout)
        files = next((files for at, files in walk(folder, Notes(), self.follow_links) if at == folder), [])
        listing = _Listing.of(folder, [file.below.rpartition("/")[2] for file in files], first, last)
        if digest != _digest([*listing.images, *listing.captions()]):
            raise UserError(f"{printable(folder)}: files were added or removed after it was planned; build again")
        return listing

    def open(self, device: str, sides: Mapping[str, pa.Table]) -> Step:
        def step(batches: Iterator[pa.Table]) -> Batches:
            return batches_of(self._read, batches)

        return step

    def _read(self, chunk: Chunk) -> Iterator[pa.Table]:
        listing = self._listing(chunk)
        names, folder = listing.images, listing.folder
        label = printable(PurePosixPath(folder).name) if self.label == "folder" else None
        for at in range(0, len(names), PIECE_ROWS):
            yield _table(listing, names[at : at + PIECE_ROWS], label)


@dataclass(frozen=True)
class _Listing:
    """The images directly in one folder, sorted, and the text files next to them."""

    folder: str
    names: list[str]
    images: list[str]
    exact: dict[str, str]
    """A text file's name without `.txt` -> its name."""
    folded: dict[str, str]
    """The same in lower case, for text files that match no picture exactly."""

    @classmethod
    def of(cls, folder: str, names: Iterable[str], first: str = "", last: str | None = None) -> "_Listing":
        """Return the listing of a folder's files, with the images from `first` to `last` only."""
        names = sorted(names)
        images = [n for n in names if first <= n and (last is None or n <= last) and _is_image(folder, n)]
        exact = {n[: -len(".txt")]: n for n in reversed(names) if n.lower().endswith(".txt")}
        exact |= {n.removesuffix(".txt"): n for n in names if n.endswith(".txt")}
        own = {n for name in names if not name.lower().endswith(".txt") for n in (name, name.rpartition(".")[0])}
        folded = {stem.casefold(): n for stem, n in sorted(exact.items(), reverse=True) if stem not in own}
        return cls(folder, names, images, exact, folded)

    def caption(self, name: str) -> str | None:
        """Return the name of an image's caption file, or None."""
        stems = (name, name.rpartition(".")[0] or name)
        found = next((self.exact[stem] for stem in stems if stem in self.exact), None)
        return found or next((self.folded[s.casefold()] for s in stems if s.casefold() in self.folded), None)

    def captions(self) -> list[str]:
        """Return the names of the images' caption files, in the images' order."""
        return [c for name in self.images if (c := self.caption(name))]

    def others(self) -> list[str]:
        """Return the names of the files that are neither images nor text files."""
        images = set(self.images)
        return [n for n in self.names if n not in images and not n.lower().endswith(".txt")]

    def unread(self) -> list[str]:
        """Return the names of the text files that are not a caption of any image."""
        read = {self.caption(name) for name in self.images}
        return [n for n in self.names if n.lower().endswith(".txt") and n not in read]

    def read_caption(self, name: str) -> bytes | None:
        """Return the bytes of an image's caption file, at most `MAX_CAPTION_BYTES` and one more."""
        beside = self.caption(name)
        if beside is None:
            return None
        try:
            return Storage(self.folder).read_range(beside, 0, MAX_CAPTION_BYTES + 1)
        except NotFoundError:
            return None


def _is_image(folder: str, name: str) -> bool:
    lower = name.lower()
    if lower.endswith(IMAGES):
        return True
    return not lower.endswith(_NO_IMAGES) and sniff(head_of(f"{folder}/{name}", HEAD_BYTES)) in DECODED


def _table(listing: _Listing, names: list[str], label: str | None) -> pa.Table:
    """Return the rows of some pictures, with notes on their captions."""
    notes, flaws = Notes(), Flaws(len(names))
    data = [listing.read_caption(name) for name in names]
    long = [name for name, text in zip(names, data, strict=True) if text and len(text) > MAX_CAPTION_BYTES]
    notes.add(len(long), LONG, _caption_path(listing, long[0]) if long else "")
    captions = flaws.texts(None if text is None else _beginning(text) for text in data)
    for what in FLAWS:
        count, at = flaws.first(what)
        notes.add(count, what, _caption_path(listing, names[at]))
    paths = [f"{listing.folder}/{name}" for name in names]
    columns = {
        "url": [printable(path) for path in paths],
        "caption": [(text or "").strip() or None for text in captions.to_pylist()],
        "label": [label] * len(names),
        "local_path": [local_name(path) for path in paths],
    }
    schema = pa.schema(list(Folder.SCHEMA)[1:])
    arrays = [pa.array(columns[f.name], f.type) if f.name in columns else pa.nulls(len(names), f.type) for f in schema]
    return pa.table(arrays, schema=schema).replace_schema_metadata(notes.packed())


def _caption_path(listing: _Listing, name: str) -> str:
    return printable(f"{listing.folder}/{listing.caption(name)}")


def _beginning(data: bytes) -> bytes:
    """Return the part of a caption file that is read, without an incomplete UTF-8 character at its end."""
    end = MAX_CAPTION_BYTES
    while len(data) > MAX_CAPTION_BYTES and end and data[end] & 0xC0 == 0x80 and end > MAX_CAPTION_BYTES - 4:
        end -= 1
    return data[:end]


def _paths(folder: str, names: Iterable[str]) -> list[str]:
    return [f"{folder}/{name}" for name in names]


def _identity(folder: str, names: list[str], captions: list[str], identify: Identify) -> str:
    """Return a hash of everything that the rows of some pictures depend on."""
    contents = list(map(identify, _paths(folder, [*names, *captions])))
    return _digest([folder, *names, *captions, *contents])


def _digest(texts: list[str]) -> str:
    return hashlib.sha256("\n".join(texts).encode("utf-8", "surrogateescape")).hexdigest()
