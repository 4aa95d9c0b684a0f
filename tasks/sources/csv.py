"""`csv`: comma- or tab-separated text, plain or compressed, with or without a header row."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import islice
from typing import Any, ClassVar, Final, Literal

import pyarrow as pa
import pyarrow.compute as pc
from pydantic import Field

from catalog.errors import UserError
from tasks.sources._base import PIECE_BYTES, PIECE_ROWS, Tabular
from tasks.sources._files import COMPRESSED, open_text

MAX_FIELD_CHARS: Final = 16 << 20
"""A longer field is a quote that never closes: the record is broken, and reading goes on with the next line."""
SAMPLE_ROWS: Final = 10_000
"""Rows of the first file that its columns' types are guessed from."""

_INTEGER: Final = r"^-?(0|[1-9][0-9]{0,17})$"  # with leading zeros it is a code, not a number
_NUMBER: Final = r"^-?((0|[1-9][0-9]{0,14})(\.[0-9]*)?|\.[0-9]+)([eE][+-]?[0-9]{1,2})?$|^-?(inf|Inf|nan|NaN)$"
_BOOLEAN: Final = r"^([tT]rue|TRUE|[fF]alse|FALSE)$"

_Types = Literal["integer", "number", "boolean", "text"]
_ARROW: Final[dict[_Types, pa.DataType]] = {
    "integer": pa.int64(),
    "number": pa.float64(),
    "boolean": pa.bool_(),
    "text": pa.string(),
}
_PATTERNS: Final[dict[_Types, str]] = {"integer": _INTEGER, "number": _NUMBER, "boolean": _BOOLEAN}


class Csv(Tabular):
    """CSV and TSV (RFC 4180 quoting), read as Python's `csv` does: quotes count only where a field begins.

    Types are guessed from the first rows of the first file; a value that does not parse is null, and so is an empty
    one. A record with too few or too many fields is kept, as a row of nulls. Rows are counted when a build is planned,
    which reads every file once: for hundreds of GB, write Parquet.
    """

    suffixes: ClassVar[tuple[str, ...]] = tuple(s + c for s in (".csv", ".tsv") for c in ("", *COMPRESSED))

    use: Literal["csv"] = "csv"
    delimiter: str | None = Field(None, min_length=1, max_length=1, description="default: tab for .tsv, else comma")
    quoting: bool = Field(True, description='false: `"` is a character like any other (Conceptual Captions)')
    names: tuple[str, ...] | None = Field(None, description="the columns, for files without a header row")
    types: dict[str, _Types] = Field(default_factory=dict, description="column -> type, where the guess is wrong")

    def columns(self, uri: str) -> pa.Schema:
        with self._records(uri) as (names, records):
            rows = [r for r in islice(records, SAMPLE_ROWS) if len(r) == len(names)]
        if unknown := sorted(set(self.types) - set(names)):
            raise UserError(f"{uri} has no column {unknown[0]!r} (types); there is: {', '.join(names)}")
        texts = _as_text(rows, names)
        return pa.schema([(n, _ARROW[self.types.get(n) or _guess(texts.column(n))]) for n in names])

    def count(self, uri: str) -> tuple[int, pa.Schema | None]:
        with self._records(uri) as (names, records):
            return sum(1 for _ in records), pa.schema([(n, pa.string()) for n in names])

    def restart(self, uri: str, row: int) -> int:
        return 0

    def stream(self, uri: str, row: int, columns: pa.Schema) -> Iterator[pa.Table]:
        types = {f.name.casefold(): f.type for f in columns}
        with self._records(uri) as (names, records):
            for rows in _pieces(records):
                texts = _as_text(rows, names)
                yield pa.table({n: _parse(texts.column(n), types.get(n.casefold(), pa.string())) for n in names})

    @contextmanager
    def _records(self, uri: str) -> Iterator[tuple[list[str], Iterator[list[str]]]]:
        """Give the column names and the records of a file; an empty file has neither."""
        with open_text(uri) as file, io.TextIOWrapper(file, "utf-8", errors="replace", newline="") as text:
            tab = any(uri.lower().removesuffix(c).endswith(".tsv") for c in COMPRESSED)
            quoting: Any = csv.QUOTE_MINIMAL if self.quoting else csv.QUOTE_NONE
            csv.field_size_limit(MAX_FIELD_CHARS)  # one setting a process; nothing else here reads CSV
            reader = csv.reader(text, delimiter=self.delimiter or ("\t" if tab else ","), quoting=quoting)
            records = _tolerant(reader)
            names = list(self.names or next(records, []))
            if len(set(names)) < len(names):
                twice = next(n for n in names if names.count(n) > 1)
                raise UserError(f"{uri} has two columns {twice!r}; without a header row, name them with `names:`")
            yield names, records


def _tolerant(reader: Iterator[list[str]]) -> Iterator[list[str]]:
    """Yield records; one that cannot be read is empty-handed (`[""]`), a blank line is none."""
    while True:
        try:
            yield from filter(None, reader)
        except csv.Error:
            yield []
        else:
            return


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
    """Return records as text columns: empty fields are null, and a record of another length is all nulls."""
    width = len(names)
    nothing = [""] * width
    fitting = [r if len(r) == width else nothing for r in rows]
    columns = list(zip(*fitting, strict=True)) if rows else [()] * width
    arrays = [pa.array(column, pa.string()) for column in columns]
    return pa.table([pc.if_else(pc.equal(a, ""), None, a) for a in arrays], names=names)


def _guess(texts: pa.ChunkedArray) -> _Types:
    """Return the narrowest type that every value has; text where there is no value."""
    if texts.null_count == len(texts):
        return "text"
    fits = (kind for kind, pattern in _PATTERNS.items() if pc.all(pc.match_substring_regex(texts, pattern)).as_py())
    return next(fits, "text")


def _parse(texts: pa.ChunkedArray, type_: pa.DataType) -> pa.ChunkedArray:
    """Return values of a type, null where a text is not one."""
    kind: _Types = next((k for k, t in _ARROW.items() if t == type_), "text")
    if kind == "text":
        return texts
    fits = pc.match_substring_regex(texts, _PATTERNS[kind])
    return pc.if_else(fits, texts, None).cast(type_)
