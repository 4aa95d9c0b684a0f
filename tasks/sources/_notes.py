"""Counts of what a source observed besides its rows: files that it skipped, columns of several types, lost values."""

import json
from collections.abc import Iterable, Mapping
from typing import Any, Final, NamedTuple

import pyarrow as pa

NOTES: Final = b"espalier.source_notes"
"""Key in the schema metadata of a piece that a source yields: notes on its values, from `Notes.packed`."""


class Note(NamedTuple):
    """One observation: how often it was made, and one example."""

    number: int
    what: str
    """In the plural: `hidden files skipped`."""
    example: str

    def __str__(self) -> str:
        return f"{self.what}: {self.number:,}" + (f" (e.g. {self.example})" if self.example else "")


class Notes:
    """Observations by text, each with its count and first example."""

    def __init__(self, notes: Iterable[Note] = ()) -> None:
        self._found: dict[str, Note] = {}
        for note in notes:
            self.add(*note)

    def add(self, count: int, what: str, example: str) -> None:
        """Add `count` observations."""
        if count:
            before = self._found.get(what, Note(0, what, example))
            self._found[what] = before._replace(number=before.number + count)

    def add_all(self, found: "pa.Schema | Iterable[Note]") -> None:
        """Add notes, or the notes in a piece's schema."""
        for note in Notes.of(found).all() if isinstance(found, pa.Schema) else found:
            self.add(*note)

    def all(self) -> tuple[Note, ...]:
        """Return the notes, in the order in which they were first added."""
        return tuple(self._found.values())

    def packed(self) -> Mapping[bytes, bytes]:
        """Return the notes as schema metadata; empty if there are none."""
        return {NOTES: json.dumps(self.all()).encode()} if self._found else {}

    @classmethod
    def of(cls, schema: pa.Schema) -> "Notes":
        """Return the notes in a piece's schema."""
        packed: list[Any] = json.loads((schema.metadata or {}).get(NOTES, b"[]"))
        return cls(Note(*note) for note in packed)
