"""What a source found beside its rows, counted: files that it passed over, columns of several types, lost values."""

import json
from collections.abc import Iterable, Mapping
from typing import Any, Final, NamedTuple

import pyarrow as pa

NOTES: Final = b"espalier.source_notes"
"""In the schema metadata of a piece that a source yields: what became of values of it, as `Notes.packed` gives it."""


class Note(NamedTuple):
    """One thing that is to be known, once: how often it was found, and where for example."""

    number: int
    what: str
    """In the plural: `hidden files passed over`."""
    example: str

    def __str__(self) -> str:
        return f"{self.what}: {self.number:,}" + (f" (e.g. {self.example})" if self.example else "")


class Notes:
    """Counts by what they are about, each with its first example."""

    def __init__(self, notes: Iterable[Note] = ()) -> None:
        self._found: dict[str, Note] = {}
        for note in notes:
            self.add(*note)

    def add(self, count: int, what: str, example: str) -> None:
        """Count something."""
        if count:
            before = self._found.get(what, Note(0, what, example))
            self._found[what] = before._replace(number=before.number + count)

    def add_all(self, found: "pa.Schema | Iterable[Note]") -> None:
        """Count notes, or those that a piece's schema carries."""
        for note in Notes.of(found).all() if isinstance(found, pa.Schema) else found:
            self.add(*note)

    def all(self) -> tuple[Note, ...]:
        """Return what was counted, in the order in which it was first found."""
        return tuple(self._found.values())

    def packed(self) -> Mapping[bytes, bytes]:
        """Return the notes as schema metadata; nothing where there are none."""
        return {NOTES: json.dumps(self.all()).encode()} if self._found else {}

    @classmethod
    def of(cls, schema: pa.Schema) -> "Notes":
        """Return the notes that a piece's schema carries."""
        packed: list[Any] = json.loads((schema.metadata or {}).get(NOTES, b"[]"))
        return cls(Note(*note) for note in packed)
