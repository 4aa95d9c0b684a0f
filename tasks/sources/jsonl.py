"""`jsonl`: JSON objects, one per line (NDJSON), or in an array, or as lists; plain or compressed."""

from collections.abc import Iterator
from itertools import islice
from typing import ClassVar, Literal

import pyarrow as pa
import pyarrow.compute as pc

from catalog.errors import UserError
from tasks.sources._base import PIECE_BYTES, PIECE_ROWS
from tasks.sources._columns import (
    BAD_ROW,
    DETAIL_AT,
    DETAIL_CHARS,
    FAULT_AT,
    LOST_AT,
    Layout,
    choose,
    with_text_urls,
)
from tasks.sources._files import COMPRESSED, FileKind, open_text
from tasks.sources._json import SAMPLE_OBJECTS, TEXTS, columns_of, extract
from tasks.sources._json_forms import LIMITS, Limits, objects
from tasks.sources._tabular import FileFacts, Tabular
from tasks.sources._text import FLAWS_AT, Flaws


class Jsonl(Tabular):
    """JSON lines, arrays of objects, or one object of lists of one length (see `_json_forms`).

    The keys of each file's first 1,000 objects are the columns; nested values are stored as JSON text. A line that is
    not a JSON object (or is longer than 16 MiB) becomes a row without values, with fault `bad_row` and the text; an
    empty line is skipped. Rows are counted when a build is planned, which reads every file once.
    """

    version: ClassVar[int] = 3
    kind: ClassVar[FileKind] = FileKind(tuple(s + c for s in (".jsonl", ".ndjson", ".json") for c in ("", *COMPRESSED)))

    sample_objects: ClassVar[int] = SAMPLE_OBJECTS
    """The number of objects of a file from which its columns are taken."""
    limits: ClassVar[Limits] = LIMITS

    use: Literal["jsonl"] = "jsonl"

    def look(self, uri: str) -> FileFacts:
        with open_text(uri) as file:
            rows = objects(uri, file, self.limits)
            first = list(islice(rows, self.sample_objects))
            columns = self._columns(columns_of(first), uri)
            count = len(first) + sum(1 for _ in rows)
        if count and not len(columns):
            raise UserError(f"{uri} has no JSON object in its first {len(first):,} rows; found {_shown(first[0])}")
        return FileFacts(count, columns)

    def _columns(self, found: pa.Schema, uri: str) -> pa.Schema:
        """Return the columns; only the caption is read as a list."""
        caption = choose("caption", self.caption, found, uri)
        texts = [pa.field(f.name, pa.string()) if f.type == TEXTS and f.name != caption else f for f in found]
        return with_text_urls(pa.schema(texts), self.url)

    def restart(self, uri: str, row: int) -> int:
        return 0

    def stream(self, uri: str, row: int, layout: Layout) -> Iterator[pa.Table]:
        wanted = pa.schema([_read_as(f, layout) for f in layout.wanted()])
        with open_text(uri) as file:
            for texts in _pieces(objects(uri, file, self.limits)):
                yield _read(texts, wanted)


def _read_as(f: pa.Field, layout: Layout) -> pa.Field:
    caption = next((c.origin for c in layout.columns if c.field.name == "caption"), None)
    return pa.field(f.name, TEXTS if f.name == caption else f.type)


def _read(texts: list[bytes], wanted: pa.Schema) -> pa.Table:
    flaws = Flaws(len(texts))
    rows, lost, ok = extract(flaws.texts(texts), wanted, flaws)
    if flaws.any():
        rows = rows.append_column(FLAWS_AT, flaws.column())
    for name, values in lost.items():
        rows = rows.append_column(LOST_AT + name, values)
    if pc.all(ok).as_py():
        return rows
    details = [None if fine else _detail(text) for text, fine in zip(texts, ok.to_pylist(), strict=True)]
    faults = pc.if_else(ok, pa.scalar(None, pa.string()), BAD_ROW)
    return rows.append_column(FAULT_AT, faults).append_column(DETAIL_AT, pa.array(details, pa.string()))


def _detail(text: bytes) -> str:
    return text.decode("utf-8", "replace").strip()[:DETAIL_CHARS]


def _shown(text: bytes) -> str:
    return repr(" ".join(text[:60].decode("utf-8", "replace").split()))


def _pieces(lines: Iterator[bytes]) -> Iterator[list[bytes]]:
    """Yield lines in bounded lists."""
    piece: list[bytes] = []
    size = 0
    for line in lines:
        piece.append(line)
        size += len(line)
        if len(piece) == PIECE_ROWS or size > PIECE_BYTES:
            yield piece
            piece, size = [], 0
    if piece:
        yield piece
