"""Read the file that lists the rows of a take-down; its columns are identified by header or on the command line."""

import csv
import os
import stat
import time
from collections.abc import Mapping, Sequence
from io import StringIO
from typing import Final

import pyarrow.parquet as pq

from catalog.errors import EspalierError, UserError, nearest
from catalog.takedown.reach import Names
from catalog.user_file import PIPE, plain, unreadable
from catalog.wording import amount

COLUMNS: Final = ("url", "sample_id", "sha256")
"""What a column may hold; every such column of a file is used."""
MAX_HEADER_BYTES: Final = 1 << 20
MAX_BYTES: Final = 1 << 30
WRITER_S: Final = 1.0
"""How long to wait for the writer of a pipe."""
_WANTED: Final = "url, sample_id or sha256"


def read_names(
    path: str, columns: Sequence[str] = (), max_bytes: int = MAX_BYTES, max_header_bytes: int = MAX_HEADER_BYTES
) -> Names:
    """Return the rows that a file lists in columns url, sample_id and sha256 of Parquet, or of CSV (TSV) with a header.

    `columns` maps kinds to column names, like `url=image_link`; other columns are then ignored. Raises UserError if the
    file cannot be read, has no header or no such column, or lists no row; if a line has another number of fields than
    the header; if a value is not of the kind of its column; or if text is longer than the two limits.
    """
    asked = _asked(columns)
    is_parquet = path.lower().endswith((".parquet", ".pq"))
    if (why := unreadable(path)) and (is_parquet or why != PIPE):
        raise UserError(f"cannot read {path!r}: {why}")
    try:
        found = _of_parquet(path, asked) if is_parquet else _of_text(path, asked, max_bytes, max_header_bytes)
    except (OSError, UnicodeDecodeError, ValueError, csv.Error) as error:
        if isinstance(error, EspalierError):
            raise
        raise UserError(f"cannot read {path!r}: {plain(error)}") from None
    names = _checked(path, {kind: [v.strip() for v in values if v.strip()] for kind, values in found.items()})
    if not names:
        raise UserError(f"{path} names no row")
    return names


def _asked(columns: Sequence[str]) -> dict[str, str]:
    """Return kind -> column from the command-line options."""
    asked: dict[str, str] = {}
    for text in columns:
        kind, _, name = text.partition("=")
        if kind not in COLUMNS or not name:
            raise UserError(f"--column is {text!r}, expected what it holds and its name: url=NAME, sample_id=NAME, ...")
        if kind in asked:
            raise UserError(f"--column names two columns for {kind}: {asked[kind]!r} and {name!r}")
        asked[kind] = name
    return asked


def _checked(path: str, found: Mapping[str, Sequence[str]]) -> Names:
    """Return the values as names. Raises UserError if a value is not of the kind of its column."""
    ids, digests = found.get("sample_id", ()), found.get("sha256", ())
    if bad := next((v for v in ids if not (v.isascii() and v.isdecimal())), None):
        raise UserError(f"{path}: {bad[:80]!r} is not a sample_id; expected a number")
    known = Names.of(digests)
    if wrong := next((v for v in digests if v.lower() not in known.sha256), None):
        raise UserError(f"{path}: {wrong[:80]!r} is not a SHA-256; expected 64 hex digits")
    return Names(frozenset(found.get("url", ()))).joined(known).joined(Names.of(ids))


def _of_parquet(path: str, asked: Mapping[str, str]) -> dict[str, list[str]]:
    with pq.ParquetFile(path) as file:
        wanted = _wanted(path, file.schema_arrow.names, asked)
        rows = file.read(list(wanted.values()))
    return {kind: [str(v) for v in rows.column(name).to_pylist() if v is not None] for kind, name in wanted.items()}


def _of_text(path: str, asked: Mapping[str, str], max_bytes: int, max_header_bytes: int) -> dict[str, list[str]]:
    text = _text(path, max_bytes, max_header_bytes)
    first = text.partition("\n")[0]
    separator = "\t" if "\t" in first else ","
    rows = [row for row in csv.reader(StringIO(text), delimiter=separator) if row]
    header = [cell.strip() for cell in rows[0]] if rows else []
    if any(map(_is_value, header)):
        raise UserError(f"{path} has no header: write what the column holds ({_WANTED}) in its first line")
    wanted = {kind: header.index(name) for kind, name in _wanted(path, header, asked).items()}
    if len(header) == 1:  # a URL may hold a comma
        rows = [[separator.join(row)] for row in rows]
    for number, row in enumerate(rows[1:], 2):
        if len(row) != len(header):
            raise UserError(
                f"{path}: row {number} has {amount(len(row), 'field')} and the header {len(header)}; quote its text"
            )
    return {kind: [row[at] for row in rows[1:]] for kind, at in wanted.items()}


def _text(path: str, max_bytes: int, max_header_bytes: int) -> str:
    """Return the text of a file, or of a pipe that has a writer (`--file <(...)`).

    Raises UserError if its first line, or the whole text, is too long: endless input would fill the memory."""
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    with os.fdopen(descriptor, "rb") as file:
        data = _first_of_pipe(path, descriptor) if stat.S_ISFIFO(os.fstat(descriptor).st_mode) else b""
        os.set_blocking(descriptor, True)
        data += file.readline(max_header_bytes - len(data))
        if len(data) == max_header_bytes and not data.endswith(b"\n"):
            raise UserError(f"{path} has a first line of more than {max_header_bytes:,} bytes; expected a header")
        data += file.read(max_bytes - len(data) + 1)
    if len(data) > max_bytes:
        raise UserError(f"{path} is longer than {max_bytes >> 20} MB; split it, or write Parquet")
    return data.decode("utf-8-sig").replace("\r\n", "\n").replace("\r", "\n")


def _first_of_pipe(path: str, descriptor: int) -> bytes:
    """Return the first byte of a pipe; empty if its writer has not written yet. Raises UserError without a writer."""
    deadline = time.monotonic() + WRITER_S
    while True:
        try:
            data = os.read(descriptor, 1)
        except BlockingIOError:
            return b""
        if data or time.monotonic() > deadline:
            break
        time.sleep(0.01)
    if not data:
        raise UserError(f"cannot read {path!r}: it is a pipe without a writer")
    return data


def _wanted(path: str, header: Sequence[str], asked: Mapping[str, str]) -> dict[str, str]:
    """Return kind -> column with the spelling of the file. Raises UserError if there is no such column."""
    for name in asked.values():
        if name not in header:
            raise UserError(f"{path} has no column {name!r}{nearest(name, header)}")
    for name in {*asked.values()} or {n for n in header if n.strip().lower() in COLUMNS}:
        if header.count(name) > 1:
            raise UserError(f"{path} has two columns {name!r}; expected every column once")
    if asked:
        return dict(asked)
    found = {kind: next((n for n in header if n.strip().lower() == kind), "") for kind in COLUMNS}
    if not any(found.values()):
        raise UserError(
            f"{path} has no column {_WANTED}{nearest('url', header)}; name one with --column, like --column url=NAME"
        )
    return {kind: name for kind, name in found.items() if name}


def _is_value(cell: str) -> bool:
    """Return whether a cell of the first line is a value instead of a column name."""
    return "://" in cell or cell.isdecimal() or bool(Names.of([cell] if len(cell) == 64 else []).sha256)
