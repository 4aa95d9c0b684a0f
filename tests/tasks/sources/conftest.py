"""Fixtures that run a source as the engine does: plan it, then turn every chunk into rows."""

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from tasks.sources import Chunk, Notes, Source


def sha256(uri: str) -> str:
    return hashlib.sha256(Path(uri).read_bytes()).hexdigest()


def run(source: Source, identify: Callable[[str], str] = sha256) -> pa.Table:
    """Return all rows, in chunk order; assert that the step keeps its contract.

    Without the columns `row_fault` and `row_detail` where no row has a fault. The schema's metadata has the notes.
    """
    chunks = source.chunks(identify)
    schema = source.output({})
    assert schema.names[:4] == ["sample_id", "url", "caption", "label"]
    step = source.open("cpu", {})
    parts = []
    for chunk in chunks:
        pieces = list(step(iter([chunk.table()])))
        assert all(0 < p.num_rows <= 16_384 for p in pieces)
        assert schema.names[-2:] == ["row_fault", "row_detail"]
        assert all(p.schema.equals(pa.schema(list(schema)[1:])) for p in pieces)
        assert sum(p.num_rows for p in pieces) == chunk.rows
        for piece in pieces:
            piece.validate(full=True)
        parts += pieces
    notes = Notes(note for piece in parts for note in Notes.of(piece.schema).all())
    rows = pa.concat_tables([piece.replace_schema_metadata() for piece in parts])
    if rows.column("row_fault").null_count == rows.num_rows:
        rows = rows.drop_columns(["row_fault", "row_detail"])
    return rows.replace_schema_metadata(notes.packed())


def said(source: Source) -> list[str]:
    """Return the notes of a source when it is planned and read, one line each."""
    notes = Notes(source.survey(sha256).notes)
    notes.add_all(run(source).schema)
    return [str(note) for note in notes.all()]


@pytest.fixture
def rows_of() -> Callable[..., pa.Table]:
    return run


@pytest.fixture
def notes_of() -> Callable[[Source], list[str]]:
    return said


@pytest.fixture
def plan() -> Callable[[Source], list[Chunk]]:
    return lambda source: source.chunks(sha256)


@pytest.fixture
def lines(tmp_path: Path) -> Callable[[str, bytes | str], str]:
    """Write a file; return its path."""

    def write(name: str, content: Any) -> str:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content.encode() if isinstance(content, str) else content)
        return str(path)

    return write
