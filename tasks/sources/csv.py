"""`csv`: comma- or tab-separated text, plain or compressed, with or without a header row."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from itertools import chain, islice
from typing import Any, ClassVar, Final, Literal

import pyarrow as pa
import pyarrow.compute as pc
from pydantic import Field

from catalog.errors import UserError
from tasks.sources._base import PIECE_BYTES, PIECE_ROWS
from tasks.sources._columns import (
    BAD_ROW,
    DETAIL_AT,
    DETAIL_CHARS,
    FAULT_AT,
    TYPES,
    Layout,
    TypeName,
    fold,
    guess_type,
    with_text_urls,
)
from tasks.sources._files import COMPRESSED, FileKind, open_text
from tasks.sources._tabular import FileFacts, Tabular
from tasks.sources._text import as_text, cleaned, utf8_of

_END: Final = "\0\x03\0"
"""Appended after the last line, to detect whether a quote is still open."""


class Csv(Tabular):
    """CSV and TSV (RFC 4180 quoting), read as Python's `csv` does: quotes count only at the beginning of a field.

    Types are guessed from the first 10,000 rows of each file; a value that is not of its column's type becomes null,
    and is counted; an empty value is null. A record with too few or too many fields, and a line with a quote that is
    never closed, become rows without values, with fault `bad_row` and the text. Rows are counted when a build is
    planned, which reads every file once: for hundreds of GB, write Parquet.
    """

    version: ClassVar[int] = 4
    kind: ClassVar[FileKind] = FileKind(tuple(s + c for s in (".csv", ".tsv") for c in ("", *COMPRESSED)))

    max_field_chars: ClassVar[int] = 16 << 20
    """A longer field counts as an unclosed quote: the line is malformed, and reading continues with the next one."""
    sample_rows: ClassVar[int] = 10_000
    """The number of rows of a file from which its columns' types are guessed."""

    use: Literal["csv"] = "csv"
    delimiter: str | None = Field(None, min_length=1, max_length=1, description="default: tab for .tsv, else comma")
    quoting: bool = Field(True, description='false: `"` is an ordinary character (Conceptual Captions)')
    names: tuple[str, ...] | None = Field(None, description="names of the columns, for files without a header row")

    def look(self, uri: str) -> FileFacts:
        with self._records(uri) as (names, records):
            first = list(islice(records, self.sample_rows))
            rows = len(first) + sum(1 for _ in records)
        texts = _as_text([r for r in first if len(r) == len(names)], names)
        columns = pa.schema([(n, self._type(n, cleaned(texts.column(n)))) for n in names])
        return FileFacts(rows, with_text_urls(columns, self.url))

    def restart(self, uri: str, row: int) -> int:
        return 0

    def stream(self, uri: str, row: int, layout: Layout) -> Iterator[pa.Table]:
        with self._records(uri) as (names, records):
            for rows in _pieces(records):
                yield _with_faults(_as_text(rows, names), rows, len(names), self._delimiter(uri))

    def _type(self, name: str, texts: pa.ChunkedArray) -> pa.DataType:
        known: dict[str, TypeName] = {fold(column): kind for column, kind in self.types.items()}
        return TYPES[known[fold(name)]] if fold(name) in known else guess_type(texts)

    def _delimiter(self, uri: str) -> str:
        tab = any(uri.lower().removesuffix(c).endswith(".tsv") for c in COMPRESSED)
        return self.delimiter or ("\t" if tab else ",")

    @contextmanager
    def _records(self, uri: str) -> Iterator[tuple[list[str], Iterator[list[str]]]]:
        """Open a file; yield its column names and its records, both empty for an empty file."""
        with open_text(uri) as file, io.TextIOWrapper(file, "utf-8", errors="surrogateescape", newline="") as text:
            quoting: Any = csv.QUOTE_MINIMAL if self.quoting else csv.QUOTE_NONE
            csv.field_size_limit(self.max_field_chars)  # a setting of the process; nothing else here reads CSV
            lines = _Lines(text)
            reader = csv.reader(lines, delimiter=self._delimiter(uri), quoting=quoting)
            records = _tolerant(reader, lines)
            names = list(self.names or [as_text(utf8_of(name)) for name in next(records, [])])
            if len(set(names)) < len(names):
                twice = next(n for n in names if names.count(n) > 1)
                raise UserError(f"{uri} has two columns {twice!r}; without a header row, name them with `names:`")
            yield names, records


class _Unclosed(list[str]):
    """A record without fields: a line with a quote that is never closed."""

    def __init__(self, line: str) -> None:
        super().__init__()
        self.line = line


class _Lines:
    """The lines of a file, then `_END`. Lines that were read since the last record can be read again."""

    def __init__(self, text: Iterable[str]) -> None:
        self.held: list[str] = []
        self._lines = chain(text, [_END])

    def __iter__(self) -> Iterator[str]:
        return self

    def __next__(self) -> str:
        line = next(self._lines)
        self.held.append(line)
        return line

    def read_again(self) -> str:
        """Return the first line that is held, and continue with the line after it."""
        first, *others = self.held
        self._lines = chain(others, self._lines)
        return first


def _tolerant(reader: Iterator[list[str]], lines: _Lines) -> Iterator[list[str]]:
    """Yield records; blank lines are skipped.

    A quote that is never closed would silently include all following lines in its field. It is detected by `_END` in
    that field, or by a field of more than `Csv.max_field_chars`. Only the line in which the quote begins is malformed;
    the others are read again.
    """
    while True:
        lines.held.clear()
        try:
            record = next(reader, None)
        except csv.Error:
            yield _Unclosed(lines.read_again())
            continue
        if record is None or record == [_END]:
            return
        if record and record[-1].endswith(_END):
            if len(lines.held) > 2:
                yield _Unclosed(lines.read_again())
                continue
            record[-1] = record[-1].removesuffix(_END)  # it includes no following line
        if record:
            yield record


def _pieces(records: Iterator[list[str]]) -> Iterator[list[list[str]]]:
    """Yield records in bounded lists."""
    rows: list[list[str]] = []
    chars = 0
    for record in records:
        rows.append(record)
        chars += sum(map(len, record))
        if len(rows) == PIECE_ROWS or chars > PIECE_BYTES:
            yield rows
            rows, chars = [], 0
    if rows:
        yield rows


def _as_text(rows: list[list[str]], names: list[str]) -> pa.Table:
    """Return records as text columns: empty fields are null, and a record of another length has only nulls."""
    width = len(names)
    nothing = [""] * width
    fitting = [r if len(r) == width else nothing for r in rows]
    columns = list(zip(*fitting, strict=True)) if rows else [()] * width
    arrays = list(map(_text_array, columns))
    return pa.table([pc.if_else(pc.equal(a, ""), None, a) for a in arrays], names=names)


def _text_array(texts: Sequence[str | None]) -> pa.Array:
    """Return text with the bytes that were read, also those that are not UTF-8."""
    try:
        return pa.array(texts, pa.string())
    except UnicodeEncodeError:
        raw = [None if text is None else utf8_of(text) for text in texts]
        return pa.array(raw, pa.binary()).cast(pa.string(), safe=False)


def _with_faults(texts: pa.Table, rows: list[list[str]], width: int, delimiter: str) -> pa.Table:
    """Return records with fault and detail for those of another length."""
    bad = [len(row) != width for row in rows]
    if not any(bad):
        return texts
    faults = [BAD_ROW if wrong else None for wrong in bad]
    details = [_detail(row, width, delimiter) if wrong else None for row, wrong in zip(rows, bad, strict=True)]
    return texts.append_column(FAULT_AT, pa.array(faults, pa.string())).append_column(DETAIL_AT, _text_array(details))


def _detail(row: list[str], width: int, delimiter: str) -> str:
    if isinstance(row, _Unclosed):
        return f"a quote that never closes: {row.line.rstrip()[:DETAIL_CHARS]}"
    return f"{len(row)} fields, expected {width}: {delimiter.join(row)[:DETAIL_CHARS]}"
