"""Decode text by one rule for all readers, and record which rows had text that had to be changed.

Bytes are UTF-8; a whole file (or a member of a tar) may begin with a byte order mark of UTF-8 or UTF-16. Bytes that
cannot be decoded become U+FFFD, and NUL characters are removed: DuckDB and Delta Lake support neither. Both are
counted, with the first row.
"""

import codecs
import io
from collections.abc import Iterable
from typing import Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from tasks.sources._notes import Notes

FLAWS_AT: Final = "\0flaws"
"""Internal column of a piece of a file: what its reader found in the text of each row, from `Flaws.column`."""
BROKEN: Final = "rows whose text is not UTF-8, with U+FFFD for what could not be decoded"
NULS: Final = "rows with NUL characters in their text, which were removed"
TWICE: Final = "JSON objects that have a key twice, of which the first counts"
_BROKEN, _NUL, _TWICE = 1, 2, 4
_MARKS: Final = ((_BROKEN, BROKEN), (_NUL, NULS), (_TWICE, TWICE))
FLAWS: Final = tuple(what for _, what in _MARKS)
"""The notes about text."""
_UTF16: Final = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)


class Flaws:
    """What was wrong with the text of each row of a piece."""

    def __init__(self, rows: int) -> None:
        self._marks = np.zeros(rows, np.uint8)

    @classmethod
    def of(cls, rows: pa.Table) -> "Flaws":
        """Return the flaws that the reader of a piece recorded."""
        found = cls(rows.num_rows)
        if FLAWS_AT in rows.column_names:
            found._marks |= rows.column(FLAWS_AT).to_numpy()
        return found

    def column(self) -> pa.Array:
        """Return the flaws as a column of the piece, uint8 (n,)."""
        return pa.array(self._marks)

    def any(self) -> bool:
        """Return whether any row has a flaw."""
        return bool(self._marks.any())

    def twice(self, rows: pa.Array) -> None:
        """Record the rows whose JSON object has a key twice, bool (n,)."""
        self._marks[rows.to_numpy(zero_copy_only=False)] |= _TWICE

    def first(self, mark: str) -> tuple[int, int]:
        """Return how many rows have the flaw BROKEN or NULS, and the first of them."""
        (bit,) = (bit for bit, what in _MARKS if what == mark)
        at = np.flatnonzero(self._marks & bit)
        return len(at), int(at[0]) if len(at) else 0

    def note(self, notes: Notes, where: str, first_row: int) -> None:
        """Add the flaws of a piece of a file to `notes`."""
        for _, what in _MARKS:
            count, at = self.first(what)
            notes.add(count, what, f"{where}, near row {first_row + at:,}")

    def texts(self, values: Iterable[bytes | None]) -> pa.Array:
        """Decode the content of whole files to string (n,)."""
        texts = []
        for at, value in enumerate(values):
            text, marks = (None, 0) if value is None else _decoded(value)
            texts.append(text)
            self._marks[at] |= marks
        return pa.array(texts, pa.string())

    def clean(self, column: pa.Array | pa.ChunkedArray) -> pa.Array | pa.ChunkedArray:
        """Return the column with all text, also nested, in valid UTF-8 without NUL characters."""
        if not _has_text(column.type):
            return column
        try:
            column.validate(full=True)
        except pa.ArrowInvalid:
            column = self._decode(column)
        if (pa.types.is_string(column.type) or pa.types.is_large_string(column.type)) and (
            pc.any(has := pc.match_substring(column, "\0")).as_py()
        ):
            self._marks[pc.fill_null(has, False).to_numpy(**_copying(has))] |= _NUL
            column = pc.replace_substring(column, "\0", "")
        return column

    def _decode(self, column: pa.Array | pa.ChunkedArray) -> pa.Array:
        """Decode a column with invalid text value by value: it is rare."""
        values = []
        for at, value in enumerate(column.cast(_as_binary(column.type)).to_pylist()):
            text, marks = _value(value, column.type)
            values.append(text)
            self._marks[at] |= marks
        return pa.array(values, column.type)


def cleaned(column: pa.Array | pa.ChunkedArray) -> pa.Array | pa.ChunkedArray:
    """Return a column as `Flaws.clean` does, without counting."""
    return Flaws(len(column)).clean(column)


def as_text(data: bytes) -> str:
    """Return the text of a whole file, without counting flaws."""
    return _decoded(data)[0]


def utf8_of(text: str) -> bytes:
    """Encode text that was decoded with `surrogateescape`: invalid bytes are restored."""
    try:
        return text.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError:  # a lone surrogate, as JSON can spell one
        return text.encode("utf-8", "surrogatepass")


def is_utf16(head: bytes) -> bool:
    """Return whether a file begins with a byte order mark of UTF-16."""
    return head.startswith(_UTF16) and head[:4] != codecs.BOM_UTF32_LE


class FromUtf16(io.RawIOBase):
    """A UTF-16 file transcoded to UTF-8; invalid UTF-16 becomes invalid UTF-8."""

    def __init__(self, file: io.BufferedReader) -> None:
        self._file = file
        self._decoder = codecs.getincrementaldecoder("utf-16")("surrogatepass")
        self._ready = b""

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        while not self._ready:
            data = self._file.read(1 << 16)
            self._ready = self._decoder.decode(data).encode("utf-8", "surrogatepass")
            if not data:
                if self._decoder.getstate()[0]:  # half a character
                    self._decoder.reset()
                    self._ready = b"\xff"
                break
        piece, self._ready = self._ready[: len(buffer)], self._ready[len(buffer) :]
        buffer[: len(piece)] = piece
        return len(piece)


def _decoded(data: bytes) -> tuple[str, int]:
    """Return the text of a whole file, and its flaws."""
    codec = "utf-16" if is_utf16(data) else "utf-8-sig"
    try:
        text, marks = data.decode(codec), 0
    except UnicodeDecodeError:
        text, marks = data.decode(codec, "replace"), _BROKEN
    return (text.replace("\0", ""), marks | _NUL) if "\0" in text else (text, marks)


def _has_text(type_: pa.DataType) -> bool:
    if pa.types.is_nested(type_):
        return any(_has_text(type_.field(i).type) for i in range(type_.num_fields))
    return bool(pa.types.is_string(type_) or pa.types.is_large_string(type_))


def _as_binary(type_: pa.DataType) -> pa.DataType:
    """Return a type with binary in place of text."""
    if pa.types.is_struct(type_):
        return pa.struct([pa.field(f.name, _as_binary(f.type)) for f in type_])
    if pa.types.is_map(type_):
        return pa.map_(_as_binary(type_.key_type), _as_binary(type_.item_type))
    if pa.types.is_fixed_size_list(type_):
        return pa.list_(_as_binary(type_.value_type), type_.list_size)
    if pa.types.is_list(type_):
        return pa.list_(_as_binary(type_.value_type))
    if pa.types.is_string(type_):
        return pa.binary()
    return pa.large_binary() if pa.types.is_large_string(type_) else type_


def _value(value: Any, type_: pa.DataType) -> tuple[Any, int]:
    """Return a value with text decoded from bytes, and its flaws."""
    if value is None or not _has_text(type_):
        return value, 0
    if not pa.types.is_nested(type_):
        return _decoded(value) if is_utf16(value) else _of_utf8(value)
    if pa.types.is_struct(type_):
        found = {f.name: _value(value[f.name], f.type) for f in type_}
        return {name: text for name, (text, _) in found.items()}, max(marks for _, marks in found.values())
    if pa.types.is_map(type_):
        kinds = (type_.key_type, type_.item_type)
        pairs = [tuple(map(_value, pair, kinds)) for pair in value]
        return [(k[0], v[0]) for k, v in pairs], max((max(k[1], v[1]) for k, v in pairs), default=0)
    items = [_value(item, type_.value_type) for item in value]
    return [text for text, _ in items], max((marks for _, marks in items), default=0)


def _of_utf8(value: bytes) -> tuple[str, int]:
    try:
        return value.decode(), 0
    except UnicodeDecodeError:
        return value.decode("utf-8", "replace"), _BROKEN


def _copying(column: pa.Array | pa.ChunkedArray) -> dict[str, bool]:
    return {} if isinstance(column, pa.ChunkedArray) else {"zero_copy_only": False}
