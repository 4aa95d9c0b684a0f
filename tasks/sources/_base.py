"""What a source is: a list of chunks, found when a build is planned, and a step that turns a chunk into rows.

A chunk becomes one part of table `source`. Its identity says what was in it, so a file that is touched, copied or
moved makes no new part, and a new file makes only its own.
"""

from abc import abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from typing import Any, ClassVar, Final, NamedTuple

import pyarrow as pa
from pydantic import Field

from catalog.errors import UserError
from catalog.schema import SAMPLE_BITS
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

    SCHEMA: ClassVar[pa.Schema] = pa.schema(
        [
            ("uri", pa.string()),
            ("identity", pa.string()),
            ("start", pa.int64()),
            ("rows", pa.int64()),
            ("layout", pa.string()),
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

    def cut(self, uri: str, identity: str, rows: int, layout: str = "") -> list[Chunk]:
        """Return the chunks of a file with `rows` rows."""
        size = self.rows_per_part
        return [Chunk(uri, identity, at, min(size, rows - at), layout) for at in range(0, rows, size)]

    def some(self, chunks: list[Chunk], notes: tuple[Note, ...] = ()) -> list[Chunk]:
        """Return `chunks`. Raises UserError where there is none."""
        if not chunks:
            beside = "; ".join(map(str, notes))
            raise UserError(
                f"the source is empty: no row in {', '.join(self.paths)}" + (f" ({beside})" if beside else "")
            )
        return chunks


def batches_of(step: Callable[[Chunk], Iterator[pa.Table]], batches: Iterator[pa.Table]) -> Iterator[pa.Table]:
    """Yield what a function of chunks makes of batches of them."""
    for batch in batches:
        for chunk in Chunk.read(batch):
            yield from step(chunk)
