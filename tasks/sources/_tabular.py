"""The base of sources of tabular files, and the cursor that reads their chunks."""

from abc import abstractmethod
from collections import deque
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from typing import Any, ClassVar, NamedTuple

import pyarrow as pa
from pydantic import Field

from catalog.errors import UserError
from tasks.sources._base import Chunk, Identify, Source, Survey, batches_of, local_state
from tasks.sources._captions import ABOUT, CaptionFrom
from tasks.sources._columns import File, Layout, TypeName, Wanted, layouts, partition_of
from tasks.sources._files import FileKind, SourceFile, find
from tasks.sources._notes import Notes
from tasks.stage import Batches, Step
from tasks.vectors.seeds import text_key


class FileFacts(NamedTuple):
    """The number of rows and the columns of one file."""

    rows: int
    columns: pa.Schema
    """By their names in the file; empty if it has no row and no header."""


class Tabular(Source):
    """A source of tabular files. Subclasses define how one file is read.

    Column names are compared without surrounding space and case. A column that only some files have, or whose type
    differs between files, gets the common type, with a note. Values that cannot be converted to it become null, and
    are counted. `year=2024/` in a file's path, below the folder that was searched, is a column.
    """

    kind: ClassVar[FileKind]
    """Which files it reads from folders."""

    url: str | None = Field(None, description="column of the URL; default: a known name (url, URL, image_url, ...)")
    caption: str | None = Field(None, description="column of the text; default: a known name (caption, TEXT, ...)")
    label: str | None = Field(None, description="column of the class; default: a known name (label, class, ...)")
    caption_from: CaptionFrom = Field("first", description=ABOUT)
    types: dict[str, TypeName] = Field(default_factory=dict, description="column -> type, where the guess is wrong")

    @abstractmethod
    def look(self, uri: str) -> FileFacts:
        """Return a file's number of rows and its columns, in one pass at most. Raises UserError if no row of it can be
        read."""

    @abstractmethod
    def restart(self, uri: str, row: int) -> int:
        """Return the last row at or before `row` from which `stream` can begin."""

    @abstractmethod
    def stream(self, uri: str, row: int, layout: Layout) -> Iterator[pa.Table]:
        """Yield the rows of a file from a restart row, at most PIECE_ROWS at once, with at least `layout.names`."""

    def survey(self, identify: Identify) -> Survey:
        notes = Notes()
        files = find(self.paths, self.kind, notes, self.follow_links)
        states = [local_state(file.uri) for file in files]
        with ThreadPoolExecutor(8) as pool:
            facts = list(pool.map(lambda file: self.look(file.uri), files))
        if not any(len(f.columns) for f in facts):
            raise UserError(f"the source is empty: no column in {', '.join(self.paths)}")
        empty = [file.uri for file, found in zip(files, facts, strict=True) if not found.rows]
        notes.add(len(empty), "files without a row", empty[0] if empty else "")
        read = [File(f.uri, found.columns, partition_of(f.below)) for f, found in zip(files, facts, strict=True)]
        wanted = Wanted({"url": self.url, "caption": self.caption, "label": self.label}, self.types, self.caption_from)
        planned = layouts(read, wanted, notes)
        chunks = self._chunks(files, [found.rows for found in facts], planned, identify, states)
        return Survey(self.require_rows(chunks, notes.all()), planned[0].schema(), notes.all())

    def _chunks(
        self, files: list[SourceFile], rows: list[int], planned: list[Layout], identify: Identify, states: list[str]
    ) -> list[Chunk]:
        packed: dict[Layout, str] = {}
        chunks: list[Chunk] = []
        for file, count, layout, state in zip(files, rows, planned, states, strict=True):
            if count:
                text = packed.get(layout) or packed.setdefault(layout, layout.packed())
                chunks += self.chunks_of_file(file.uri, identify(file.uri), count, text, state)
        return chunks

    def made_of(self, chunk: Chunk) -> dict[str, str]:
        return unpacked(chunk.layout).made_of()

    def open(self, device: str, sides: Mapping[str, pa.Table]) -> Step:
        cursor = Cursor(self)

        def step(batches: Iterator[pa.Table]) -> Batches:
            return batches_of(cursor.read, batches)

        return step

    def parameters(self) -> dict[str, Any]:
        """Return the parameters without the settings for columns, which are in the layout of each chunk."""
        hidden = {"url", "caption", "label", "caption_from", "types"}
        return {k: v for k, v in super().parameters().items() if k not in hidden}


@lru_cache(64)
def unpacked(text: str) -> Layout:
    """Return the layout of a chunk (cached: most chunks share one)."""
    return Layout.unpacked(text)


class Cursor:
    """A position in an open file, so that reading the chunks of a file in order is one pass over it."""

    def __init__(self, source: Tabular) -> None:
        self._source = source
        self._file: tuple[str, str, str] | None = None
        self._pieces: Iterator[pa.Table] = iter(())
        self._ahead: deque[pa.Table] = deque()
        self._row = 0

    def read(self, chunk: Chunk) -> Iterator[pa.Table]:
        """Yield the rows of a chunk as rows of table `source`. Raises UserError if the file has fewer."""
        layout = unpacked(chunk.layout)
        self._seek(chunk, layout)
        end = chunk.start + chunk.rows
        seed = text_key(chunk.identity)
        while self._row < end:
            first = self._row
            piece = self._next(end - first)
            if piece is None:
                raise UserError(
                    f"{chunk.uri} changed after it was planned: it ends at row {self._row}, not {end}; build again"
                )
            yield layout.apply(piece, chunk.uri, seed, first)

    def _seek(self, chunk: Chunk, layout: Layout) -> None:
        restart = self._source.restart(chunk.uri, chunk.start)
        file = (chunk.uri, chunk.identity, chunk.layout)
        if self._file != file or not restart <= self._row <= chunk.start:
            self._file = file
            self._pieces = self._source.stream(chunk.uri, restart, layout)
            self._ahead.clear()
            self._row = restart
        while self._row < chunk.start and self._next(chunk.start - self._row) is not None:
            pass

    def _next(self, most: int) -> pa.Table | None:
        """Return the next rows, at most `most`; None at the end of the file."""
        while not self._ahead:
            piece = next(self._pieces, None)
            if piece is None:
                return None
            if piece.num_rows:
                self._ahead.append(piece)
        piece = self._ahead.popleft()
        if piece.num_rows > most:
            self._ahead.appendleft(piece.slice(most))
            piece = piece.slice(0, most)
        self._row += piece.num_rows
        return piece
