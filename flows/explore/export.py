"""Write the rows of a query as a text table, or as a CSV, JSON, JSON Lines or Parquet file.

Rows are streamed, so memory does not grow with their number. Files are replaced atomically.

    csv       RFC 4180 with a header; null is an empty field, an empty text is ""; timestamps as ISO 8601. Lists,
              structs, maps and vectors are JSON text; blobs are base64
    json      an array of objects, one a line; jsonl: without the array. Dates, times, UUIDs and intervals are text,
              decimals and 128-bit numbers are numbers with all of their digits, blobs are base64 text, NaN and
              infinities are null, because JSON has no form for them
    parquet   DuckDB's types as Arrow has them, zstd
"""

import os
import secrets
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import count
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, Final

from catalog.database import Rows, streamed
from catalog.dataset import Catalog
from catalog.duck import Limits, identifier, literal
from catalog.errors import BuildError, UserError
from catalog.wording import amount
from flows.explore.formats import Format

if TYPE_CHECKING:
    import duckdb
    import pyarrow as pa


ENDINGS: Final = {
    ".csv": Format.CSV,
    ".json": Format.JSON,
    ".jsonl": Format.JSONL,
    ".ndjson": Format.JSONL,
    ".parquet": Format.PARQUET,
    ".txt": Format.TABLE,
}
_CELL: Final = 60
"""Most characters of a value in a text table."""
_FLOATS: Final = ("float", "double")
_NESTED: Final = ("list", "array", "struct", "tuple", "map", "union")
_WORDS: Final = ("interval", "bit", "uuid", "enum", "time", "time with time zone")
_PLAIN: Final = frozenset(
    ("boolean", "tinyint", "smallint", "integer", "bigint", "utinyint", "usmallint", "uinteger", "ubigint")
) | frozenset(("float", "double", "decimal", "varchar", "date"))
"""Types that Arrow's CSV writer writes in the usual form."""


def format_of(output: str | None, chosen: Format | None) -> Format:
    """Return the format of a file: the chosen one, or that of its extension. Raises UserError for an unknown one."""
    if chosen is not None:
        return chosen
    if output is None:
        return Format.TABLE
    ending = Path(output).suffix.lower()
    if ending not in ENDINGS:
        found = f"the ending {ending!r}" if ending else "no ending"
        known = ", ".join(ENDINGS)
        raise UserError(f"cannot tell the format of {output!r}: it has {found}; known are {known}, or give --format")
    return ENDINGS[ending]


def write_query(
    catalog: Catalog,
    text: str,
    at: Mapping[str, int] | None,
    limits: Limits,
    format_: Format,
    output: str | None,
    limit: int,
) -> int:
    """Run a query and write its rows to a file, or to standard output; return how many there are.

    `limit`: the most rows of a table on standard output; files get all rows. Raises UserError if the file cannot be
    written, and QueryError.
    """
    if output is not None:
        check_target(output)
    shape = {Format.CSV: _csv_columns, Format.JSON: _json_lines, Format.JSONL: _json_lines}.get(format_)
    with streamed(catalog, text, at, limits, shape) as found, target(output) as file:
        if format_ is Format.TABLE:
            return _write_table(found, file, None if output else limit)
        if format_ is Format.CSV:
            return _write_csv(found, file)
        if format_ is Format.PARQUET:
            return _write_parquet(found, file)
        return _write_json(found, file, format_ is Format.JSON)


@contextmanager
def target(output: str | None) -> Iterator[IO[bytes]]:
    """Provide a binary file that replaces `output` when the block ends without an error. None: standard output.

    Devices and pipes (/dev/stdout) are written directly. Raises UserError if `output` cannot be written.
    """
    if output is None or _is_stdout(output):
        yield sys.stdout.buffer
        sys.stdout.buffer.flush()
        return
    path = Path(output)
    try:
        if path.is_dir():
            raise UserError(f"cannot write {output!r}: it is a folder")
        with path.open("wb") if path.exists() and not path.is_file() else _replacing(path.resolve()) as file:
            yield file
    except (OSError, ValueError) as error:
        if isinstance(error, UserError) or getattr(error, "errno", None) == 32:  # EPIPE: the reader has closed the pipe
            raise
        reason = getattr(error, "strerror", None) or error
        kind = BuildError if getattr(error, "errno", None) in (28, 122) else UserError  # ENOSPC, EDQUOT
        raise kind(f"cannot write {output!r}: {reason}") from error


def check_target(output: str) -> None:
    """Raise UserError if `target` cannot write to `output`; called before the query runs."""
    try:
        if Path(output).is_dir():
            raise UserError(f"cannot write {output!r}: it is a folder")
        if not Path(output).resolve().parent.is_dir():
            raise UserError(f"cannot write {output!r}: No such file or directory")
    except (OSError, ValueError) as error:
        if isinstance(error, UserError):
            raise
        raise UserError(f"cannot write {output!r}: {getattr(error, 'strerror', None) or error}") from error


def _is_stdout(output: str) -> bool:
    """Return whether a path is standard output, which must not be replaced even if it is a regular file."""
    try:
        return os.path.samestat(Path(output).stat(), os.fstat(1))
    except (OSError, ValueError):
        return False


@contextmanager
def _replacing(path: Path) -> Iterator[IO[bytes]]:
    temporary = path.with_name(f".{path.name[:200]}.tmp-{os.getpid()}-{secrets.token_hex(4)}")
    try:
        with temporary.open("xb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        if path.exists():
            temporary.chmod(path.stat().st_mode & 0o777)
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def _write_parquet(result: Rows, file: IO[bytes]) -> int:
    import pyarrow.parquet as pq

    rows = 0
    with pq.ParquetWriter(file, result.schema, compression="zstd") as writer:
        for batch in _grouped(result):
            writer.write_table(batch)
            rows += batch.num_rows
    return rows


def _grouped(result: Rows, rows: int = 100_000, most_bytes: int = 256 << 20) -> "Iterator[pa.Table]":
    """Yield concatenated batches, for row groups of the usual size."""
    import pyarrow as pa

    held: list[Any] = []
    for batch in result.batches:
        held.append(batch)
        if sum(b.num_rows for b in held) >= rows or sum(b.nbytes for b in held) >= most_bytes:
            yield pa.Table.from_batches(held)
            held = []
    if held:
        yield pa.Table.from_batches(held)


def _write_csv(result: Rows, file: IO[bytes]) -> int:
    import pyarrow.csv

    rows = 0
    with pyarrow.csv.CSVWriter(file, result.schema) as writer:
        for batch in result.batches:
            writer.write_batch(batch)
            rows += batch.num_rows
    return rows


def _write_json(result: Rows, file: IO[bytes], is_array: bool) -> int:
    """Write the lines that DuckDB made, one object each."""
    rows = 0
    if is_array:
        file.write(b"[")
    between = b",\n" if is_array else b"\n"
    for batch in result.batches:
        if lines := batch.column(0).to_pylist():
            file.write((between if rows else b"\n" if is_array else b"") + between.join(map(str.encode, lines)))
            rows += len(lines)
    file.write(b"\n]\n" if is_array else b"\n" if rows else b"")
    return rows


def _write_table(result: Rows, file: IO[bytes], limit: int | None) -> int:
    """Write aligned columns (the first `limit` rows) and the number of rows."""
    import pyarrow as pa

    shown: list[Any] = []
    rows = 0
    for batch in result.batches:
        wanted = batch.num_rows if limit is None else max(min(limit - rows, batch.num_rows), 0)
        shown += [batch.slice(0, wanted)] if wanted else []
        rows += batch.num_rows
    table = pa.Table.from_batches(shown, result.schema)
    file.write(f"{table_text(table, table.num_rows, rows)}\n".encode())
    return rows


def table_text(table: "pa.Table", limit: int, total: int | None = None) -> str:
    """Return rows as aligned columns with long values truncated, and the number of rows."""
    rows = table.num_rows if total is None else total
    names = [cell(name) for name in table.column_names]
    columns = [
        [cell(value) for value in column.slice(0, limit).to_pylist(maps_as_pydicts="lossy")] for column in table.columns
    ]
    widths = [max(map(len, [name, *values])) for name, values in zip(names, columns, strict=True)]
    there = min(limit, table.num_rows)
    lines = [[n.ljust(w) for n, w in zip(names, widths, strict=True)], ["-" * w for w in widths]]
    lines += [[values[i].ljust(w) for values, w in zip(columns, widths, strict=True)] for i in range(there)]
    more = f", {rows - there:,} not shown" if rows > there else ""
    return "\n".join([*("  ".join(line).rstrip() for line in lines), f"({amount(rows, 'row')}{more})"])


def cell(value: Any) -> str:
    """Return a value for a text table: on one line, truncated."""
    text = "" if value is None else f"{value:.6g}" if isinstance(value, float) else str(value)
    text = "".join(ch if ch.isprintable() else " " for ch in text[: 2 * _CELL])
    return text if len(text) <= _CELL else text[: _CELL - 3] + "..."


def _csv_columns(relation: "duckdb.DuckDBPyRelation") -> "duckdb.DuckDBPyRelation":
    """Return the columns with their names, converted to types that a CSV file can hold."""

    def column(value: str, type_: Any) -> str:
        if type_.id in _NESTED:
            return f"to_json({_json_value(value, type_)})::varchar"
        if type_.id in _PLAIN:
            return value
        return _as_text(value, type_.id) or f"{value}::varchar"

    names = _names(relation.columns)
    values = [column(f"#{at}", type_) for at, type_ in enumerate(relation.types, 1)]
    return relation.project(", ".join(f"{v} as {identifier(n)}" for v, n in zip(values, names, strict=True)))


def _json_lines(relation: "duckdb.DuckDBPyRelation") -> "duckdb.DuckDBPyRelation":
    """Return one column, `line`: every row as a JSON object."""
    values = [_json_value(f"#{at}", type_) for at, type_ in enumerate(relation.types, 1)]
    pairs = [f"{literal(n)}, {v}" for n, v in zip(_names(relation.columns), values, strict=True)]
    return relation.project(f"json_object({', '.join(pairs)})::varchar as line")


def _names(columns: Sequence[str]) -> list[str]:
    """Return unique names: the second `a` becomes `a_1`."""
    found: dict[str, None] = {}
    for name in columns:
        free = (f"{name}_{n}" for n in count(1) if f"{name}_{n}" not in found and f"{name}_{n}" not in columns)
        found[name if name not in found else next(free)] = None
    return list(found)


def _as_text(value: str, kind: str) -> str | None:
    """Return SQL for the portable text form of a value; None for types that need no conversion."""
    if kind == "blob":
        return f"to_base64({value})"
    if kind == "timestamp with time zone":
        return f"replace(({value} at time zone 'UTC')::varchar, ' ', 'T') || 'Z'"
    return f"replace({value}::varchar, ' ', 'T')" if kind.startswith("timestamp") else None


def _json_value(value: str, type_: Any, depth: int = 0) -> str:
    """Return SQL that converts a value to one that JSON can hold: no NaN, no infinity, no bytes."""
    kind = type_.id
    if kind in _FLOATS:
        return f"case when isfinite({value}) then {value} end"
    if text := _as_text(value, kind):
        return text
    if kind in _WORDS:
        return f"{value}::varchar"
    name = f"v{depth}"
    if kind in ("list", "array"):
        inner = _json_value(name, dict(type_.children)["child"], depth + 1)
        return value if inner == name else f"list_transform({value}, lambda {name}: {inner})"
    if kind in ("struct", "tuple"):
        return f"case when {value} is not null then {_json_struct(value, type_.children, depth)} end"
    if kind == "map":
        inner = _json_value(name, dict(type_.children)["value"], depth + 1)
        keys = f"list_transform(map_keys({value}), lambda k{depth}: k{depth}::varchar)"
        values = f"list_transform(map_values({value}), lambda {name}: {inner})"
        return f"case when {value} is not null then map({keys}, {values}) end"
    return value


def _json_struct(value: str, fields: Sequence[tuple[str, Any]], depth: int) -> str:
    """Return SQL for a struct; a struct with unnamed fields becomes a list."""
    parts = [_json_value(f"struct_extract_at({value}, {at})", t, depth) for at, (_, t) in enumerate(fields, 1)]
    if not all(name for name, _ in fields):
        return f"[{', '.join(f'to_json({part})' for part in parts)}]"
    return f"json_object({', '.join(f'{literal(n)}, {p}' for (n, _), p in zip(fields, parts, strict=True))})"
