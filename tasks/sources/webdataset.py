"""`webdataset`: tar files in which the files of a sample follow each other and share the name up to its first dot."""

import hashlib
import re
import tarfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import groupby, islice
from typing import ClassVar, Final, Literal, NamedTuple

import pyarrow as pa
import pyarrow.compute as pc

from catalog.errors import UserError
from catalog.schema import LOCAL, SOURCE
from tasks.sources._base import PIECE_BYTES, PIECE_ROWS, Chunk, Identify, Source
from tasks.sources._columns import KNOWN, Column, clean, others, text_of
from tasks.sources._files import find, one_line, open_random
from tasks.sources._json import MAX_OBJECT_BYTES, SAMPLE_OBJECTS, columns_of, extract
from tasks.stage import Batches, Step, Tables

IMAGES: Final = ("jpg", "jpeg", "png", "webp", "gif", "bmp", "tif", "tiff")
"""Extensions of a sample's image, best first."""
CAPTIONS: Final = ("txt", "caption", "text")
LABELS: Final = ("cls", "label")
"""Extensions whose content is the caption, and the class."""

_NAME: Final = re.compile(r"^((?:.*/|)[^.]+)[.]([^/]*)$")
_META: Final = re.compile(r"__[^/]*__($|/)")
# both as the webdataset library has them


class Webdataset(Source):
    """WebDataset tars, as img2dataset writes them. Images stay where they are: rows say which bytes of which tar.

    `url` is `tar#member`, to be read by people. The caption comes from `.txt`, the label from `.cls` (or from
    `.json` where there is none), and the other keys of `.json` become columns (its `url` becomes `source_url`), as the
    first 1,000 samples of the first tar have them. A sample without an image is kept, with no place. A tar that ends
    in the middle gives the samples before. Compressed tars are refused: no single image can be read from them.
    Headers are read when a build is planned.
    """

    suffixes: ClassVar[tuple[str, ...]] = (".tar",)

    use: Literal["webdataset"] = "webdataset"

    def output(self, available: Tables) -> pa.Schema:
        return pa.schema([*SOURCE, *LOCAL, *(c.field for c in self._layout().others)])

    def chunks(self, identify: Identify) -> list[Chunk]:
        digest = self._layout().digest()
        chunks = []
        for uri in find(self.paths, self.suffixes):
            with _opened(uri) as file:
                rows = sum(1 for _ in _samples(file, uri))
            if rows:
                place = hashlib.sha256(f"{uri}\n{identify(uri)}".encode()).hexdigest()
                chunks += self.cut(uri, f"{place}-{digest}", rows)
        return self.some(chunks)

    def open(self, device: str, sides: Mapping[str, pa.Table]) -> Step:
        layout = self._layout()

        def step(batches: Iterator[pa.Table]) -> Batches:
            for batch in batches:
                for chunk in Chunk.read(batch):
                    if not chunk.identity.endswith(layout.digest()):
                        raise UserError(f"{chunk.uri}: the first tar's columns changed since the plan; plan again")
                    yield from _read(chunk, layout)

        return step

    def _layout(self) -> "_Layout":
        for uri in find(self.paths, self.suffixes):
            with _opened(uri) as file:
                samples = islice(_samples(file, uri), SAMPLE_OBJECTS)
                found = columns_of(s.text(file, ("json",)) or b"" for s in samples)
            if len(found):
                return _Layout.of(found)
        return _Layout.of(pa.schema([]))


@dataclass(frozen=True)
class _Layout:
    """What becomes of the keys of `.json` members."""

    caption: str | None
    label: str | None
    others: tuple[Column, ...]

    @classmethod
    def of(cls, found: pa.Schema) -> "_Layout":
        caption, label = (next((n for n in KNOWN[ours] if n in found.names), None) for ours in ("caption", "label"))
        return cls(caption, label, others(f for f in found if f.name not in {caption, label}))

    def digest(self) -> str:
        said = "\n".join([f"{self.caption!r} {self.label!r}", *(f"{c.origin!r} {c.field}" for c in self.others)])
        return hashlib.sha256(said.encode()).hexdigest()[:16]

    def schema(self) -> pa.Schema:
        """Return what is to be extracted: caption and label first, where there are such keys."""
        ours = [pa.field(name, pa.string()) for name in (self.caption, self.label) if name is not None]
        return pa.schema([*ours, *(pa.field(str(c.origin), c.field.type) for c in self.others)])


class _Sample(NamedTuple):
    """Where the files of one sample lie in their tar: extension -> (member, offset, size)."""

    key: str
    files: dict[str, tuple[str, int, int]]

    def text(self, file: pa.NativeFile, extensions: tuple[str, ...]) -> bytes | None:
        """Return the content of the first file with one of the extensions; None where there is none, or a huge one."""
        for extension in extensions:
            if extension in self.files:
                _, offset, size = self.files[extension]
                return bytes(file.read_at(size, offset)) if size <= MAX_OBJECT_BYTES else None
        return None


class _Texts(NamedTuple):
    sample: _Sample
    caption: bytes | None
    label: bytes | None
    json: bytes | None


def _read(chunk: Chunk, layout: _Layout) -> Batches:
    rows = 0
    with _opened(chunk.uri) as file:
        samples = islice(_samples(file, chunk.uri), chunk.start, chunk.start + chunk.rows)
        for piece in _pieces(file, samples):
            yield _table(chunk.uri, piece, layout)
            rows += len(piece)
    if rows < chunk.rows:
        raise UserError(f"{chunk.uri} changed since the plan: {rows} samples, not {chunk.rows}; plan again")


def _pieces(file: pa.NativeFile, samples: Iterator[_Sample]) -> Iterator[list[_Texts]]:
    piece: list[_Texts] = []
    size = 0
    for sample in samples:
        texts = _Texts(sample, sample.text(file, CAPTIONS), sample.text(file, LABELS), sample.text(file, ("json",)))
        piece.append(texts)
        size += sum(len(text or b"") for text in texts[1:])
        if len(piece) == PIECE_ROWS or size > PIECE_BYTES:
            yield piece
            piece, size = [], 0
    if piece:
        yield piece


def _table(uri: str, piece: list[_Texts], layout: _Layout) -> pa.Table:
    found = extract(text_of(t.json for t in piece), layout.schema())
    nothing = pa.nulls(len(piece), pa.string())
    caption, label = text_of(t.caption for t in piece), text_of(t.label and t.label.strip() for t in piece)
    images = [next((t.sample.files[e] for e in IMAGES if e in t.sample.files), None) for t in piece]
    own = {
        "url": pa.array(
            [f"{uri}#{image[0] if image else t.sample.key}" for t, image in zip(piece, images, strict=True)]
        ),
        "caption": pc.coalesce(caption, found.column(layout.caption) if layout.caption else nothing),
        "label": pc.coalesce(label, found.column(layout.label) if layout.label else nothing),
        "local_path": pa.array([uri if image else None for image in images], pa.string()),
        "local_offset": pa.array([image and image[1] for image in images], pa.int64()),
        "local_size": pa.array([image and image[2] for image in images], pa.int64()),
    }
    own |= {c.field.name: found.column(c.origin) for c in layout.others}
    return pa.table({name: clean(column) for name, column in own.items()})


@contextmanager
def _opened(uri: str) -> Iterator[pa.NativeFile]:
    with open_random(uri) as file:
        if file.read_at(2, 0) == b"\x1f\x8b" or file.read_at(4, 0) == b"\x28\xb5\x2f\xfd":
            raise UserError(f"{uri} is compressed; expected a plain tar: unpack it first")
        yield file


def _samples(file: pa.NativeFile, uri: str) -> Iterator[_Sample]:
    """Yield the samples of a tar, in order; those before the damage where it is damaged."""
    for key, members in groupby(_members(file, uri), key=lambda found: found[0]):
        yield _Sample(key, {extension: place for _, extension, place in members})


def _members(file: pa.NativeFile, uri: str) -> Iterator[tuple[str, str, tuple[str, int, int]]]:
    """Yield (key, extension, (name, offset, size)) of the regular files that are whole."""
    end = file.size()
    for name, offset, size in _files(file, uri):
        if offset + size > end:
            return
        split = _NAME.match(name)
        if split is not None and not _META.match(name):
            yield split[1], split[2].lower(), (name, offset, size)


def _files(file: pa.NativeFile, uri: str) -> Iterator[tuple[str, int, int]]:
    """Yield (name, offset, size) of the regular files.

    Plain headers are read here, several times faster than by tarfile, which reads the others (long names, links).
    """
    if file.size() == 0:
        return
    file.seek(0)
    try:
        archive = tarfile.open(fileobj=file, mode="r:")  # noqa: SIM115  # the file is the caller's
    except tarfile.TarError as error:
        raise UserError(f"{uri} is not a tar file: {one_line(error)}") from error
    at = 0
    try:
        while True:
            plain = _plain_header(file.read_at(tarfile.BLOCKSIZE, at))
            if plain is not None:
                name, size = plain
                yield name, at + tarfile.BLOCKSIZE, size
                at += tarfile.BLOCKSIZE + -(-size // tarfile.BLOCKSIZE) * tarfile.BLOCKSIZE
                continue
            file.seek(at)
            archive.offset, archive.firstmember = at, None  # type: ignore[attr-defined]
            member = archive.next()
            if member is None:
                return
            archive.members = []  # type: ignore[attr-defined]  # else it remembers every header
            if member.isreg():
                yield member.name.encode("utf-8", "replace").decode(), member.offset_data, member.size
            at = archive.offset
    except (tarfile.TarError, OSError):
        return


def _plain_header(block: bytes) -> tuple[str, int] | None:
    """Return name and size from the header (POSIX.1-1988 ustar) of a regular file; None for anything unusual."""
    if len(block) < tarfile.BLOCKSIZE or block[156:157] not in {b"0", b"\0"} or block[345:346] != b"\0":
        return None
    name = block[:100].partition(b"\0")[0]
    try:
        size, checksum = int(block[124:135], 8), int(block[148:155].rstrip(b"\0 "), 8)
    except ValueError:
        return None
    if checksum != sum(block[:148]) + 8 * ord(" ") + sum(block[156:]) or name.endswith(b"/"):
        return None
    return name.decode("utf-8", "replace"), size
