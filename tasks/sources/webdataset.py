"""`webdataset`: tar files in which the files of a sample share their name up to the first dot."""

import hashlib
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from typing import ClassVar, Final, Literal, NamedTuple

import pyarrow as pa
import pyarrow.compute as pc
from pydantic import Field

from catalog.errors import UserError
from catalog.schema import FAULT, LOCAL, SAMPLE_ID, SOURCE
from tasks.sources._base import PIECE_BYTES, PIECE_ROWS, Chunk, Identify, Source, Survey, batches_of, local_state
from tasks.sources._captions import ABOUT, CaptionFrom
from tasks.sources._columns import TYPES_OF, Column, File, Layout, Wanted, layouts
from tasks.sources._files import FileKind, find, printable
from tasks.sources._json import MAX_OBJECT_BYTES, SAMPLE_OBJECTS, TEXTS, columns_of, extract
from tasks.sources._notes import Notes
from tasks.sources._samples import DUPLICATE, NO_IMAGE, SPARSE, Keys, Sample, samples, scattered
from tasks.sources._tabular import unpacked
from tasks.sources._tar import Member, opened
from tasks.sources._text import FLAWS_AT, Flaws, cleaned
from tasks.stage import Batches, Step
from tasks.vectors.seeds import text_key

_FEW_OBJECTS: Final = 20
"""The number of objects of each tar after the first from which the columns are inferred."""
_ABOUT: Final[Mapping[str, str]] = {
    NO_IMAGE: "samples without a picture",
    DUPLICATE: "pictures whose caption is ambiguous, as the tar has a file of their sample twice",
    SPARSE: "pictures that are stored sparsely (with holes) and cannot be read",
}
NO_OBJECT: Final = "json files in tars that are not objects"


class Webdataset(Source):
    """WebDataset tars, such as those of img2dataset. Image bytes are not copied: rows refer to byte ranges in the tars.

    `url` is `tar#member`, for display. The caption comes from `.txt` (or from `.json` without it), the label from
    `.cls`, and the other keys of `.json` become columns (its `url` becomes `source_url`), inferred from the first 1,000
    samples of the first tar and the first 20 of every other. The members of a sample may be anywhere in their tar. The
    image is recognised by its ending (also `002.image.jpg`) or by its bytes. Incomplete rows have a reason in
    `row_fault`: `no_image_member`, `duplicate_key` (the picture exists, but its text is ambiguous), `sparse_member`. A
    damaged tar yields the samples before the damage. Compressed tars are refused: single images cannot be read from
    them. Headers are read when a build is planned.
    """

    version: ClassVar[int] = 3
    kind: ClassVar[FileKind] = FileKind((".tar", ".tar.gz", ".tgz", ".tar.zst", ".tar.bz2", ".tar.xz"), marked=True)

    use: Literal["webdataset"] = "webdataset"
    caption_from: CaptionFrom = Field("first", description=ABOUT)

    def survey(self, identify: Identify) -> Survey:
        notes = Notes()
        files = [file.uri for file in find(self.paths, self.kind, notes, self.follow_links)]
        most = [SAMPLE_OBJECTS] + [_FEW_OBJECTS] * (len(files) - 1)
        states = [local_state(uri) for uri in files]
        with ThreadPoolExecutor(8) as pool:
            looks = list(pool.map(_look, files, most))
        layout = _layout(
            [File(uri, look.columns) for uri, look in zip(files, looks, strict=True)], self.caption_from, notes
        )
        text = layout.packed()
        chunks: list[Chunk] = []
        for uri, look, state in zip(files, looks, states, strict=True):
            for note in look.notes.all():
                notes.add(*note)
            if look.rows:
                chunks += self.chunks_of_file(uri, _place(uri, identify), look.rows, text, state)
            else:
                notes.add(1, "tars without a sample", uri)
        return Survey(self.require_rows(chunks, notes.all()), _schema(layout), notes.all())

    def identity(self, chunk: Chunk, identify: Identify) -> str:
        return _place(chunk.uri, identify)

    def made_of(self, chunk: Chunk) -> dict[str, str]:
        return unpacked(chunk.layout).made_of()

    def parameters(self) -> dict[str, object]:
        """Return the parameters without the rule for captions, which is in the layout of each chunk."""
        return {k: v for k, v in super().parameters().items() if k != "caption_from"}

    def open(self, device: str, sides: Mapping[str, pa.Table]) -> Step:
        apart: dict[tuple[str, str], Keys] = {}

        def read(chunk: Chunk) -> Iterator[pa.Table]:
            with opened(chunk.uri) as file:
                place = (chunk.uri, chunk.identity)
                if place not in apart:
                    apart.clear()  # tars are read one after the other, each indexed once
                    apart[place] = scattered(file, chunk.uri, Notes())
                yield from _read(file, chunk, apart[place])

        def step(batches: Iterator[pa.Table]) -> Batches:
            return batches_of(read, batches)

        return step


def _place(uri: str, identify: Identify) -> str:
    """Return what the rows of a tar depend on: its content, and its location, which is stored in the rows."""
    return hashlib.sha256(f"{uri}\n{identify(uri)}".encode()).hexdigest()


class _TarFacts(NamedTuple):
    """The number of samples, the columns and the notes of one tar."""

    rows: int
    columns: pa.Schema
    notes: Notes


def _look(uri: str, most: int) -> _TarFacts:
    notes = Notes()
    with opened(uri) as file:
        rows = samples(file, uri, scattered(file, uri, notes), notes)
        first = list(islice(rows, most))
        columns = columns_of(_text(file, s.json) or b"" for s in first)
        count = len(first)
        for sample in first:
            _note(sample, uri, notes)
        for sample in rows:
            _note(sample, uri, notes)
            count += 1
    return _TarFacts(count, columns, notes)


def _note(sample: Sample, uri: str, notes: Notes) -> None:
    if sample.fault is not None:
        notes.add(1, f"{_ABOUT[sample.fault]} ({sample.fault})", f"{uri}#{sample.key}")


def _layout(files: list[File], rule: CaptionFrom, notes: Notes) -> Layout:
    """Return one layout for all tars: a key is read from every tar, whichever sample had it first."""
    found = Notes()
    planned = layouts(files, Wanted({}, {}, rule, needs_url=False), found)
    for note in found.all():
        if note.what.startswith(TYPES_OF):  # notes on missing keys mean nothing: few samples of each tar were seen
            notes.add(*note)
    columns = []
    for at, column in enumerate(planned[0].columns):
        origin = next((p.columns[at].origin for p in planned if p.columns[at].origin is not None), None)
        columns.append(Column(column.field, origin))
    return Layout(tuple(columns), rule)


def _schema(layout: Layout) -> pa.Schema:
    others = [c.field for c in layout.columns if c.field.name not in SOURCE.names]
    return pa.schema([*SOURCE, *LOCAL, *others, *FAULT])


class _Texts(NamedTuple):
    sample: Sample
    caption: bytes | None
    label: bytes | None
    json: bytes | None


def _text(file: pa.NativeFile, member: Member | None) -> bytes | None:
    """Return the content of a member; None if it does not exist or is huge."""
    if member is None or member.size > MAX_OBJECT_BYTES:
        return None
    return bytes(file.read_at(member.size, member.offset))


def _read(file: pa.NativeFile, chunk: Chunk, apart: Keys) -> Iterator[pa.Table]:
    rows = chunk.start
    layout = unpacked(chunk.layout)
    found = islice(samples(file, chunk.uri, apart, Notes()), chunk.start, chunk.start + chunk.rows)
    for piece in _pieces(file, found):
        yield _table(chunk, piece, layout, rows)
        rows += len(piece)
    if rows < chunk.start + chunk.rows:
        raise UserError(
            f"{chunk.uri} changed after it was planned: it ends at sample {rows}, not {chunk.start + chunk.rows}; "
            "build again"
        )


def _pieces(file: pa.NativeFile, found: Iterator[Sample]) -> Iterator[list[_Texts]]:
    piece: list[_Texts] = []
    size = 0
    for sample in found:
        texts = _Texts(sample, _text(file, sample.caption), _text(file, sample.label), _text(file, sample.json))
        piece.append(texts)
        size += sum(len(text or b"") for text in texts[1:])
        if len(piece) == PIECE_ROWS or size > PIECE_BYTES:
            yield piece
            piece, size = [], 0
    if piece:
        yield piece


def _table(chunk: Chunk, piece: list[_Texts], layout: Layout, first_row: int) -> pa.Table:
    caption_key = next((c.origin for c in layout.columns if c.field.name == "caption"), None)
    wanted = pa.schema([pa.field(f.name, TEXTS if f.name == caption_key else f.type) for f in layout.wanted()])
    flaws = Flaws(len(piece))
    objects, caption, label = (
        flaws.texts(texts) for texts in ((t.json for t in piece), (t.caption for t in piece), (t.label for t in piece))
    )
    values, _, ok = extract(objects, wanted, flaws)
    if not len(wanted):
        values = pa.table({"": objects})
    notes = Notes()
    broken = len(piece) - objects.null_count - pc.sum(ok).as_py()
    notes.add(broken, NO_OBJECT, f"{chunk.uri}, near sample {first_row:,}")
    values = values.append_column(FLAWS_AT, flaws.column())
    rows = layout.apply(values, chunk.uri, text_key(chunk.identity), first_row)
    for note in Notes.of(rows.schema).all():
        notes.add(*note)
    images = [t.sample.image for t in piece]
    own = {
        "url": _plain(f"{chunk.uri}#{t.sample.image.name if t.sample.image else t.sample.key}" for t in piece),
        "caption": pc.coalesce(caption, rows.column("caption")),
        "label": pc.coalesce(pc.utf8_trim(label, " \t\n\r\v\f"), rows.column("label")),
        "local_path": pa.array([chunk.uri if image else None for image in images], pa.string()),
        "local_offset": pa.array([image and image.offset for image in images], pa.int64()),
        "local_size": pa.array([image and image.size for image in images], pa.int64()),
        "row_fault": pa.array([t.sample.fault for t in piece], pa.string()),
        "row_detail": _plain(t.sample.detail or None for t in piece),
    }
    schema = pa.schema([f for f in _schema(layout) if f.name != SAMPLE_ID.name])
    columns = [own[f.name] if f.name in own else rows.column(f.name) for f in schema]
    return pa.table(columns, schema=schema).replace_schema_metadata(notes.packed())


def _plain(texts: Iterable[str | None]) -> pa.Array:
    """Return names of files as valid text."""
    return cleaned(pa.array([text and printable(text) for text in texts], pa.string()))
