"""The contract of a source: a list of chunks, found when a build is planned, and a step that turns a chunk into rows.

A chunk becomes one part of table `source`. Its identity depends on its content, so a file that is touched, copied or
moved makes no new part, and a new file adds only its own parts.
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
"""Path or URI of a file -> SHA-256 of its content (on an object store, of its entity tag and size)."""


@dataclass(frozen=True)
class Chunk:
    """The rows `start` .. `start + rows` of one file (or of one folder's sorted listing)."""

    uri: str
    """Absolute path, or URI on an object store."""
    identity: str
    """Hash of everything outside the recipe that the rows depend on, except for how columns are read."""
    start: int
    rows: int
    layout: str = ""
    """How the columns of its file are read, which may depend on the source's other files."""
    state: str = field(default="", compare=False)
    """Hash of the states of its local files before they were surveyed; it is part of no fingerprint."""

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
    """The result of surveying a source's files."""

    chunks: list[Chunk]
    """Sorted by file."""
    schema: pa.Schema
    """The schema of table `source`."""
    notes: tuple[Note, ...]
    """What was skipped, and which values differ from those in the files."""


class Source(MapStage):
    """The first stage of a dataset. Writes table `source`; its step takes chunks (`Chunk.table`), not samples."""

    table: ClassVar[str] = "source"
    alive_only: ClassVar[bool] = False
    divisible: ClassVar[bool] = True
    """Whether any stretch of a chunk's rows is a chunk too, with another `start` and other `rows`."""

    path: str | tuple[str, ...] = Field(
        description="file, folder or glob, or a list of them; local or s3://, gs://, az://"
    )
    rows_per_part: int = Field(10_000, ge=1, le=1 << SAMPLE_BITS, description="rows of one part, the unit of work")
    follow_links: bool = Field(
        False, description="follow links in folders, also to places outside; false: links are counted"
    )

    @property
    def paths(self) -> tuple[str, ...]:
        """Return `path` as a tuple."""
        return (self.path,) if isinstance(self.path, str) else self.path

    @abstractmethod
    def survey(self, identify: Identify) -> Survey:
        """Return the chunks, the table's schema, and notes for the user. Called at plan time; reads no file twice.

        Raises NotFoundError if the path matches nothing, RecipeError if a column is missing, UserError if a file
        cannot be read or the source has no row.
        """

    def chunks(self, identify: Identify) -> list[Chunk]:
        """Return the chunks of `survey`."""
        return self.survey(identify).chunks

    def made_of(self, chunk: Chunk) -> dict[str, str] | None:
        """Return column -> what its values depend on besides the chunk's content; None if columns are not tracked.

        When a file adds a column to the table, stages that do not read it are not run again for the earlier rows.
        """
        return None

    def inputs(self, available: Tables) -> Columns:
        return {}

    def output(self, available: Tables) -> pa.Schema:
        return self.survey(lambda uri: "").schema

    def parameters(self) -> dict[str, Any]:
        """Return the parameters without `path`, `rows_per_part` and `follow_links`: content identifies a chunk."""
        hidden = {"path", "rows_per_part", "follow_links"}
        return {k: v for k, v in super().parameters().items() if k not in hidden}

    def chunks_of_file(self, uri: str, identity: str, rows: int, layout: str = "", state: str = "") -> list[Chunk]:
        """Return the chunks of a file with `rows` rows."""
        size = self.rows_per_part
        return [Chunk(uri, identity, at, min(size, rows - at), layout, state) for at in range(0, rows, size)]

    def files(self, chunk: Chunk) -> list[str]:
        """Return the local files that the rows of a chunk depend on; an empty list for object stores."""
        return [] if "://" in chunk.uri else [chunk.uri]

    def identity(self, chunk: Chunk, identify: Identify) -> str:
        """Return the current identity of a chunk's files."""
        return identify(chunk.uri)

    def check_unchanged(self, chunk: Chunk) -> None:
        """Raise UserError if the local files of a chunk have changed since it was planned."""
        files = self.files(chunk)
        if not chunk.state or state_of(files) == chunk.state:
            return
        try:
            same = self.identity(chunk, lambda uri: digest_of(Path(uri))) == chunk.identity
        except OSError:
            same = False
        if not same:
            raise changed(printable(_last_changed(files)))

    def require_rows(self, chunks: list[Chunk], notes: tuple[Note, ...] = ()) -> list[Chunk]:
        """Return `chunks`. Raises UserError if there are none."""
        if not chunks:
            found = "; ".join(map(str, notes))
            raise UserError(
                f"the source is empty: no row in {', '.join(self.paths)}" + (f" ({found})" if found else "")
            )
        return chunks


class Origin(NamedTuple):
    """The files that a part is made from."""

    source: Source
    chunk: Chunk

    def check_unchanged(self) -> None:
        """Raise UserError if they have changed since the part was planned."""
        self.source.check_unchanged(self.chunk)


def state_of(files: Iterable[str]) -> str:
    """Return a hash of the states of local files, which need not exist."""
    return hashlib.sha256(repr([_state(file) for file in files]).encode()).hexdigest()


def local_state(uri: str) -> str:
    """Return the state of one file; an empty string on an object store."""
    return "" if "://" in uri else state_of([uri])


def _state(file: str) -> FileState | None:
    try:
        return FileState.of(file)
    except OSError:
        return None


def _last_changed(files: Sequence[str]) -> str:
    """Return a file that no longer exists, or else the one that changed last."""
    states = {file: _state(file) for file in files}

    def when(file: str) -> tuple[bool, int]:
        state = states[file]
        return state is None, state.ctime_ns if state else 0

    return max(files, key=when)


def batches_of(step: Callable[[Chunk], Iterator[pa.Table]], batches: Iterator[pa.Table]) -> Iterator[pa.Table]:
    """Apply a function of chunks to batches of chunks; yield its tables."""
    for batch in batches:
        for chunk in Chunk.read(batch):
            yield from step(chunk)
