"""Parse JSON text into columns with DuckDB, one object a row: a malformed object is a row of nulls, not an error."""

import json
from collections.abc import Iterable
from functools import lru_cache
from typing import Any, Final

import pyarrow as pa

from catalog.duck import literal, open_database
from tasks.sources._captions import is_list
from tasks.sources._text import Flaws, as_text

MAX_OBJECT_BYTES: Final = 16 << 20
"""A longer object counts as malformed."""
SAMPLE_OBJECTS: Final = 1_000
"""The number of objects from which the columns and their types are inferred."""
_LONG: Final = pa.decimal128(19)
"""Marks a whole number that float64 cannot represent: int64 if the column holds only whole numbers, else text."""
TEXTS: Final = pa.list_(pa.string())
"""The type of a key whose value is a list of texts or numbers in at least one object."""


def columns_of(objects: Iterable[bytes]) -> pa.Schema:
    """Return the keys of some objects, in the order in which they first appear, with their types.

    Whole numbers are int64, numbers float64, true and false bool, lists of such and of text TEXTS. Everything else is
    string, and holds the JSON text: nested values, keys whose values differ in kind, and numbers that float64 cannot
    all represent. Keys without a value are null.
    """
    kinds: dict[str, set[pa.DataType]] = {}
    for text in objects:
        for key, value in _parsed(text).items():
            kinds.setdefault(key, set()).update(() if value is None else (_kind(value),))
    return pa.schema([(key.encode("utf-8", "replace").decode(), _common(found)) for key, found in kinds.items()])


def extract(objects: pa.Array, schema: pa.Schema, flaws: Flaws) -> tuple[pa.Table, dict[str, pa.Array], pa.Array]:
    """Return three things, from n JSON objects (string array): the columns of `schema`, null where a value is missing
    or of another type; for each column with values of another type, which rows have them, bool (n,); and which texts
    are JSON objects, bool (n,).

    If an object has a key twice, the first value is used, and `flaws` records the row. A column of type TEXTS holds
    the items of lists, and any other value as a list of one.
    """
    pointers = ", ".join(_pointer(name) for name in schema.names) or "'/'"
    chosen = "".join(f", {_expression(i + 1, f.type)} as c{i}" for i, f in enumerate(schema))
    lost = "".join(f", {_lost(i + 1, f.type)} as l{i}" for i, f in enumerate(schema))
    query = f"""
        with valid as (select case when json_valid(o) then o end as o from objects),
        parsed as (select json_extract_string(o, [{pointers}]) as v, json_type(o, [{pointers}]) as t,
            coalesce(json_type(o) = 'OBJECT', false) as ok, json_keys(o) as k from valid)
        select ok, coalesce(len(k) > list_unique(k), false) as twice{chosen}{lost} from parsed"""
    with _database().cursor() as connection:
        connection.register("objects", pa.table({"o": objects}))
        found = connection.sql(query).to_arrow_table()
    ok = found.column("ok").combine_chunks()
    flaws.twice(found.column("twice").combine_chunks())
    others = {f.name: found.column(f"l{i}") for i, f in enumerate(schema)}
    columns = [found.column(f"c{i}").cast(f.type) for i, f in enumerate(schema)]
    lost_ = {name: bad.combine_chunks() for name, bad in others.items() if bad.null_count < len(bad)}
    return pa.table(columns, schema=schema), lost_, ok


@lru_cache(1)
def _database() -> Any:
    return open_database(threads=1)


def _pointer(key: str) -> str:
    """Return the JSON pointer (RFC 6901) of a key, as a SQL string literal."""
    return literal("/" + key.replace("~", "~0").replace("/", "~1"))


def _expression(at: int, type_: pa.DataType) -> str:
    """Return the SQL that converts the text `v` with JSON type `t` at an index to a value of a type."""
    if is_list(type_):
        items = f"""try(from_json(v[{at}], '["VARCHAR"]'))"""
        return f"case when t[{at}] = 'ARRAY' then {items} when v[{at}] is not null then [v[{at}]] end"
    if pa.types.is_string(type_):
        return f"v[{at}]"
    kinds, sql = _SQL[type_]
    if type_ == pa.float64():
        whole = (
            f"t[{at}] <> 'DOUBLE' and try_cast(v[{at}] as hugeint) <> try_cast(try_cast(v[{at}] as double) as hugeint)"
        )
        return f"case when t[{at}] in {kinds} and not ({whole}) then try_cast(v[{at}] as {sql}) end"
    return f"case when t[{at}] in {kinds} then try_cast(v[{at}] as {sql}) end"


def _lost(at: int, type_: pa.DataType) -> str:
    """Return the SQL for: true if a value is present but not of the type, else null."""
    if type_ not in _SQL:
        return "null::boolean"
    return f"case when v[{at}] is not null and ({_expression(at, type_)}) is null then true end"


_SQL: Final = {
    pa.int64(): ("('BIGINT', 'UBIGINT')", "bigint"),
    pa.float64(): ("('BIGINT', 'UBIGINT', 'DOUBLE')", "double"),
    pa.bool_(): ("('BOOLEAN', '')", "boolean"),
}


def _parsed(text: bytes) -> dict[str, Any]:
    try:
        value = json.loads(as_text(text), object_pairs_hook=first_of_each)
    except (ValueError, RecursionError):
        return {}
    return value if isinstance(value, dict) else {}


def first_of_each(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Return a JSON object with the first value of every key."""
    return dict(reversed(pairs)) if len(dict(pairs)) < len(pairs) else dict(pairs)


def _kind(value: Any) -> pa.DataType:
    if isinstance(value, bool):
        return pa.bool_()
    if isinstance(value, int):
        if not -(1 << 63) <= value < 1 << 63:
            return pa.string()
        return pa.int64() if float(value) == value else _LONG
    if isinstance(value, list) and not any(isinstance(item, list | dict) for item in value):
        return TEXTS
    return pa.float64() if isinstance(value, float) else pa.string()


def _common(found: set[pa.DataType]) -> pa.DataType:
    if not found:
        return pa.null()
    if TEXTS in found:
        return TEXTS
    if found <= {pa.int64(), _LONG}:
        return pa.int64()
    if found <= {pa.int64(), pa.float64()}:
        return pa.float64()
    return next(iter(found)) if len(found) == 1 else pa.string()
