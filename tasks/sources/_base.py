"""What a source is: a list of chunks, found when a build is planned, and a step that turns a chunk into rows.

A chunk becomes one part of table `source`. Its identity says what was in it, so a file that is touched, copied or
moved makes no new part, and a new file makes only its own.
"""

import hashlib
from abc import abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Final, NamedTuple

import pyarrow as pa
from pydantic import Field

from catalog.errors import UserError
from catalog.schema import SAMPLE_BITS
from tasks.files.digest import FileState, changed, digest_of
from tasks.sources._files import printable
from tasks.sources._notes import Note
from tasks.stage import Columns, MapStage, Tables

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
    """Hash of everything outside the recipe that the rows depend on, but for how columns are read."""
    start: int
    rows: int
    layout: str = ""
    """How the columns of its file are read: what a source needs to know of the other files."""
    state: str = field(default="", compare=False)
    """Hash of the states of its local files before they were looked at; it is in no fingerprint."""

    SCHEMA: ClassVar[pa.Schema] = pa.schema(
        [
            ("uri", pa.string()),
            ("identity", pa.string()),
            ("start", pa.int64()),
            ("rows", pa.int64()),
            ("layout", pa.string()),
            ("state", pa.string()),
        ]
    )

    def table(self) -> pa.Table:
        """Return the batch of one row that a source's step takes."""
        return pa.Table.from_pylist([asdict(self)], self.SCHEMA)

    @classmethod
    def read(cls, batch: pa.Table) -> Iterator["Chunk"]:
        """Yield the chunks in a batch."""
        for row in batch.select(cls.SCHEMA.names).to_pylist():
            yield cls(**row)


class Survey(NamedTuple):
    """What a look at a source's files found."""

    chunks: list[Chunk]
    """In sorted order of their files."""
    schema: pa.Schema
    """Of table `source`."""
    notes: tuple[Note, ...]
    """What is not in the rows, or not as the files have it."""


class Source(MapStage):
    """Where a dataset begins. Writes table `source`; its step takes chunks (`Chunk.table`), not samples."""

    table: ClassVar[str] = "source"
    alive_only: ClassVar[bool] = False

    path: str | tuple[str, ...] = Field(
        description="file, folder or glob, or a list of them; local or s3://, gs://, az://"
    )
    rows_per_part: int = Field(10_000, ge=1, le=1 << SAMPLE_BITS, description="rows of one part, the unit of work")
    follow_links: bool = Field(
        False, description="read through links in folders, out of them too; false: links are counted"
    )

    @property
    def paths(self) -> tuple[str, ...]:
        """`path`, always a tuple."""
        return (self.path,) if isinstance(self.path, str) else self.path

    @abstractmethod
    def survey(self, identify: Identify) -> Survey:
        """Return the chunks, the table's schema, and what is to be known. Called at plan time; reads no file twice.

        Raises NotFoundError where the path names nothing, RecipeError where a column is missing, UserError where a
        file cannot be read or the source has no row.
        """

    def chunks(self, identify: Identify) -> list[Chunk]:
        """Return the chunks of `survey`."""
        return self.survey(identify).chunks

    def made_of(self, chunk: Chunk) -> dict[str, str] | None:
        """Return column -> what its values are made from, beside the chunk's content; None: no column is told apart.

        Where a file adds a column to the table, stages that do not read it are not run again for the rows before.
        """
        return None

    def inputs(self, available: Tables) -> Columns:
        return {}

    def output(self, available: Tables) -> pa.Schema:
        return self.survey(lambda uri: "").schema

    def parameters(self) -> dict[str, Any]:
        """Without `path`, `rows_per_part` and `follow_links`: a chunk says what it holds, wherever it lies."""
        hidden = {"path", "rows_per_part", "follow_links"}
        return {k: v for k, v in super().parameters().items() if k not in hidden}

    def cut(self, uri: str, identity: str, rows: int, layout: str = "", state: str = "") -> list[Chunk]:
        """Return the chunks of a file with `rows` rows."""
        size = self.rows_per_part
        return [Chunk(uri, identity, at, min(size, rows - at), layout, state) for at in range(0, rows, size)]

    def files(self, chunk: Chunk) -> list[str]:
        """Return the local files that the rows of a chunk depend on; nothing for object stores."""
        return [] if "://" in chunk.uri else [chunk.uri]

    def identity(self, chunk: Chunk, identify: Identify) -> str:
        """Return what a chunk's identity would be now."""
        return identify(chunk.uri)

    def check_unchanged(self, chunk: Chunk) -> None:
        """Raise UserError where the local files of a chunk are no longer what they were when it was planned."""
        files = self.files(chunk)
        if not chunk.state or state_of(files) == chunk.state:
            return
        try:
            same = self.identity(chunk, lambda uri: digest_of(Path(uri))) == chunk.identity
        except OSError:
            same = False
        if not same:
            raise changed(printable(_last_changed(files)))

    def some(self, chunks: list[Chunk], notes: tuple[Note, ...] = ()) -> list[Chunk]:
        """Return `chunks`. Raises UserError where there is none."""
        if not chunks:
            beside = "; ".join(map(str, notes))
            raise UserError(
                f"the source is empty: no row in {', '.join(self.paths)}" + (f" ({beside})" if beside else "")
            )
        return chunks


class Origin(NamedTuple):
    """The files that a part is made from."""

    source: Source
    chunk: Chunk

    def check_unchanged(self) -> None:
        """Raise UserError where they are no longer what they were when the part was planned."""
        self.source.check_unchanged(self.chunk)


def state_of(files: Iterable[str]) -> str:
    """Return a hash of the states of local files; of files that are not there, too."""
    return hashlib.sha256(repr([_state(file) for file in files]).encode()).hexdigest()


def local_state(uri: str) -> str:
    """Return the state of one file; nothing on an object store."""
    return "" if "://" in uri else state_of([uri])


def _state(file: str) -> FileState | None:
    try:
        return FileState.of(file)
    except OSError:
        return None


def _last_changed(files: Sequence[str]) -> str:
    """Return the file that is gone, or else that changed last."""
    states = {file: _state(file) for file in files}

    def when(file: str) -> tuple[bool, int]:
        state = states[file]
        return state is None, state.ctime_ns if state else 0

    return max(files, key=when)


def batches_of(step: Callable[[Chunk], Iterator[pa.Table]], batches: Iterator[pa.Table]) -> Iterator[pa.Table]:
    """Yield what a function of chunks makes of batches of them."""
    for batch in batches:
        for chunk in Chunk.read(batch):
            yield from step(chunk)
