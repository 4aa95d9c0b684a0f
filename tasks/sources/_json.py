"""Columns out of JSON text, one object a row, by DuckDB: a broken object is a row of nulls, never an error."""

import json
from collections.abc import Iterable
from functools import lru_cache
from typing import Any, Final

import pyarrow as pa

from catalog.duck import open_database

MAX_OBJECT_BYTES: Final = 16 << 20
"""A longer object counts as broken."""
SAMPLE_OBJECTS: Final = 1_000
"""Objects that the columns and their types are taken from."""


def columns_of(objects: Iterable[bytes]) -> pa.Schema:
    """Return the keys of some objects, in the order in which they first appear, with their types.

    Whole numbers are int64, numbers float64, true and false bool, everything else string: nested values, and keys whose
    values differ in kind, keep their JSON text.
    """
    kinds: dict[str, set[pa.DataType]] = {}
    for text in objects:
        for key, value in _parsed(text).items():
            kinds.setdefault(key, set()).update(() if value is None else (_kind(value),))
    return pa.schema([(key.encode("utf-8", "replace").decode(), _common(found)) for key, found in kinds.items()])


def extract(objects: pa.Array, schema: pa.Schema) -> pa.Table:
    """Return the columns `schema` of JSON objects (string array of n): n rows, null where a value is missing or of
    another type, and in every column where the text is not a JSON object."""
    if not len(schema):
        return pa.table({"": objects}).select([])
    pointers = ", ".join(_pointer(name) for name in schema.names)
    chosen = ", ".join(f"{_expression(i + 1, f.type)} as c{i}" for i, f in enumerate(schema))
    query = f"""
        with valid as (select case when json_valid(o) then o end as o from objects),
        parsed as (select json_extract_string(o, [{pointers}]) as v, json_type(o, [{pointers}]) as t from valid)
        select {chosen} from parsed"""
    with _database().cursor() as connection:
        connection.register("objects", pa.table({"o": objects}))
        found = connection.sql(query).to_arrow_table()
    return pa.table([found.column(i).cast(f.type) for i, f in enumerate(schema)], schema=schema)


@lru_cache(1)
def _database() -> Any:
    return open_database(threads=1)


def _pointer(key: str) -> str:
    """Return a key as a quoted JSON pointer (RFC 6901)."""
    return "'/" + key.replace("~", "~0").replace("/", "~1").replace("'", "''") + "'"


def _expression(at: int, type_: pa.DataType) -> str:
    """Return what makes a value of a type from the text `v` and the JSON type `t` at one place."""
    if pa.types.is_string(type_):
        return f"v[{at}]"
    kinds, sql = _SQL[type_]
    return f"case when t[{at}] in {kinds} then try_cast(v[{at}] as {sql}) end"


_SQL: Final = {
    pa.int64(): ("('BIGINT', 'UBIGINT')", "bigint"),
    pa.float64(): ("('BIGINT', 'UBIGINT', 'DOUBLE')", "double"),
    pa.bool_(): ("('BOOLEAN', '')", "boolean"),
}


def _parsed(text: bytes) -> dict[str, Any]:
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return {}
    return value if isinstance(value, dict) else {}


def _kind(value: Any) -> pa.DataType:
    if isinstance(value, bool):
        return pa.bool_()
    if isinstance(value, int):
        return pa.int64() if -(1 << 63) <= value < 1 << 63 else pa.string()
    return pa.float64() if isinstance(value, float) else pa.string()


def _common(found: set[pa.DataType]) -> pa.DataType:
    if found <= {pa.int64(), pa.float64()} and found:
        return pa.float64() if pa.float64() in found else pa.int64()
    return next(iter(found)) if len(found) == 1 else pa.string()
