"""What a source is: a list of chunks, found when a build is planned, and a step that turns a chunk into rows.

A chunk becomes one part of table `source`. Its identity says what was in it, so a file that is touched, copied or
moved makes no new part, and a new file makes only its own.
"""

from abc import abstractmethod
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from typing import Any, ClassVar, Final

import pyarrow as pa
from pydantic import Field

from catalog.errors import UserError
from catalog.schema import SAMPLE_BITS
from tasks.sources._columns import Layout
from tasks.sources._files import find
from tasks.stage import Batches, Columns, MapStage, Step, Tables

PIECE_ROWS: Final = 16_384
"""A step yields at most this many rows at once."""
PIECE_BYTES: Final = 64 << 20
"""A piece of a text file ends early when it holds this much."""

Identify = Callable[[str], str]
"""Path or URI of a file -> SHA-256 of its content (an object store's entity tag and size will do)."""


@dataclass(frozen=True)
class Chunk:
    """The rows `start` .. `start + rows` of one file (of one folder's sorted listing)."""

    uri: str
    """Absolute path, or URI on an object store."""
    identity: str
    """Hash of everything outside the recipe that the rows depend on: content, and how columns are read."""
    start: int
    rows: int

    SCHEMA: ClassVar[pa.Schema] = pa.schema(
        [("uri", pa.string()), ("identity", pa.string()), ("start", pa.int64()), ("rows", pa.int64())]
    )

    def table(self) -> pa.Table:
        """Return the batch of one row that a source's step takes."""
        return pa.Table.from_pylist([asdict(self)], self.SCHEMA)

    @classmethod
    def read(cls, batch: pa.Table) -> Iterator["Chunk"]:
        """Yield the chunks in a batch."""
        for row in batch.select(cls.SCHEMA.names).to_pylist():
            yield cls(**row)


class Source(MapStage):
    """Where a dataset begins. Writes table `source`; its step takes chunks (`Chunk.table`), not samples."""

    table: ClassVar[str] = "source"
    alive_only: ClassVar[bool] = False

    path: str | tuple[str, ...] = Field(
        description="file, folder or glob, or a list of them; local or s3://, gs://, az://"
    )
    rows_per_part: int = Field(10_000, ge=1, le=1 << SAMPLE_BITS, description="rows of one part, the unit of work")

    @property
    def paths(self) -> tuple[str, ...]:
        """`path`, always a tuple."""
        return (self.path,) if isinstance(self.path, str) else self.path

    @abstractmethod
    def chunks(self, identify: Identify) -> list[Chunk]:
        """Return the chunks, in sorted order of their files. Lists files and reads footers; called at plan time.

        Raises NotFoundError where the path names nothing, RecipeError where a column is missing, UserError where a
        file cannot be read or the source has no row.
        """

    def inputs(self, available: Tables) -> Columns:
        return {}

    def parameters(self) -> dict[str, Any]:
        """Without `path` and `rows_per_part`: a chunk says what it holds, wherever it lies."""
        return {k: v for k, v in super().parameters().items() if k not in {"path", "rows_per_part"}}

    def cut(self, uri: str, identity: str, rows: int) -> list[Chunk]:
        """Return the chunks of a file with `rows` rows."""
        size = self.rows_per_part
        return [Chunk(uri, identity, at, min(size, rows - at)) for at in range(0, rows, size)]

    def some(self, chunks: list[Chunk]) -> list[Chunk]:
        """Return `chunks`. Raises UserError where there is none."""
        if not chunks:
            raise UserError(f"the source is empty: no row in {', '.join(self.paths)}")
        return chunks


class Tabular(Source):
    """A source of files with rows and columns. Subclasses say how one file is read."""

    suffixes: ClassVar[tuple[str, ...]]
    """What its files end with, lower case."""

    url: str | None = Field(None, description="column of the URL; default: a known name (url, URL, image_url, ...)")
    caption: str | None = Field(None, description="column of the text; default: a known name (caption, TEXT, ...)")
    label: str | None = Field(None, description="column of the class; default: a known name (label, class, ...)")

    @abstractmethod
    def count(self, uri: str) -> tuple[int, pa.Schema | None]:
        """Return a file's number of rows, and its columns where reading them tells (else None: as in the first)."""

    @abstractmethod
    def columns(self, uri: str) -> pa.Schema:
        """Return the columns of the first file."""

    @abstractmethod
    def restart(self, uri: str, row: int) -> int:
        """Return the last row at or before `row` from which `stream` can begin."""

    @abstractmethod
    def stream(self, uri: str, row: int, columns: pa.Schema) -> Iterator[pa.Table]:
        """Yield the rows of a file from a restart row on, at most PIECE_ROWS at once, with at least `columns`."""

    def layout(self, files: Sequence[str] | None = None) -> tuple[Layout, pa.Schema]:
        """Return what becomes of the columns, and the columns of the first file that has any."""
        files = files or find(self.paths, self.suffixes)
        first = next((f for f in files if len(self.columns(f))), None)
        if first is None:
            raise UserError(f"the source is empty: no column in {', '.join(self.paths)}")
        found = self.columns(first)
        return Layout.of(found, {"url": self.url, "caption": self.caption, "label": self.label}, first), found

    def output(self, available: Tables) -> pa.Schema:
        return self.layout()[0].schema()

    def chunks(self, identify: Identify) -> list[Chunk]:
        files = find(self.paths, self.suffixes)
        layout, _ = self.layout(files)
        with ThreadPoolExecutor(8) as pool:
            counts = list(pool.map(self.count, files))
        chunks = []
        for uri, (rows, found) in zip(files, counts, strict=True):
            if rows:
                if found is not None:
                    layout.check(found, uri)
                chunks += self.cut(uri, f"{identify(uri)}-{layout.digest()}", rows)
        return self.some(chunks)

    def open(self, device: str, sides: Mapping[str, pa.Table]) -> Step:
        layout, columns = self.layout()
        cursor = Cursor(self, columns)

        def step(batches: Iterator[pa.Table]) -> Batches:
            for batch in batches:
                for chunk in Chunk.read(batch):
                    if not chunk.identity.endswith(layout.digest()):
                        raise UserError(f"{chunk.uri}: the first file's columns changed since the plan; plan again")
                    for rows in cursor.read(chunk):
                        yield layout.apply(rows, chunk.uri)

        return step


class Cursor:
    """A place in a file that stays open, so that the chunks of a file, in order, are one pass over it."""

    def __init__(self, source: Tabular, columns: pa.Schema) -> None:
        self._source = source
        self._columns = columns
        self._file: tuple[str, str] | None = None
        self._pieces: Iterator[pa.Table] = iter(())
        self._ahead: deque[pa.Table] = deque()
        self._row = 0

    def read(self, chunk: Chunk) -> Iterator[pa.Table]:
        """Yield the rows of a chunk, at most PIECE_ROWS at once. Raises UserError where the file has fewer."""
        self._go(chunk)
        end = chunk.start + chunk.rows
        while self._row < end:
            piece = self._next(end - self._row)
            if piece is None:
                raise UserError(
                    f"{chunk.uri} changed since the plan: it ends at row {self._row}, not {end}; plan again"
                )
            yield piece

    def _go(self, chunk: Chunk) -> None:
        restart = self._source.restart(chunk.uri, chunk.start)
        if self._file != (chunk.uri, chunk.identity) or not restart <= self._row <= chunk.start:
            self._file = (chunk.uri, chunk.identity)
            self._pieces = self._source.stream(chunk.uri, restart, self._columns)
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
