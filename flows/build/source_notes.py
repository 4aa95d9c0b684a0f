"""Notes on a source, besides its rows: shown by `plan` and `build`, and recorded with the version."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final

from catalog.parts import PartFile
from catalog.version import Version
from flows.build.plan import PlannedPart
from flows.build.worker import SOURCE_NOTES
from tasks.sources import Note, Notes

COUNTED: Final = "counted"
"""The key, in the notes of the source's stage of a version, of the notes on its files."""
PARTS: Final = "parts"
"""And what became of values: by the fingerprint of the part."""


def lines(notes: Iterable[Note]) -> list[str]:
    """Return notes as a terminal shows them, a line each."""
    return [f"source: {note}" for note in notes]


def described(notes: Iterable[Note]) -> list[dict[str, Any]]:
    """Return notes in a form that JSON can hold."""
    return [note._asdict() for note in notes]


def of_file(file: PartFile) -> list[Note]:
    """Return what a part of the source notes."""
    return [Note(*note) for note in file.notes.get(SOURCE_NOTES, ())]


def recorded(
    counted: Iterable[Note], parts: Sequence[PlannedPart], files: Sequence[PartFile], last: Version | None
) -> dict[str, Any]:
    """Return the notes of the source's stage for a version; those of parts made before are in `last`."""
    known: Mapping[str, Any] = _notes(last).get(PARTS, {}) if last else {}
    of_parts = {
        part.fingerprint: found
        for part, file in zip(parts, files, strict=True)
        if (found := described(of_file(file)) or known.get(part.fingerprint))
    }
    facts = {COUNTED: described(counted), PARTS: of_parts}
    return {name: value for name, value in facts.items() if value}


def of_version(version: Version) -> list[Note]:
    """Return all that the source of a version noted, the values of its parts added up."""
    notes = _notes(version)
    found = Notes(Note(**note) for note in notes.get(COUNTED, ()))
    for part in notes.get(PARTS, {}).values():
        found.add_all(Note(**note) for note in part)
    return list(found.all())


def _notes(version: Version) -> Mapping[str, Any]:
    found: Iterable[Mapping[str, Any]] = (s.get("notes") or {} for s in version.stages if s.get("table") == "source")
    return next(iter(found), {})
