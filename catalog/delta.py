"""Commit parts to tables: a Delta log (delta-rs) over Parquet files that already exist.

A commit writes no data. It is one file of the log, created only if absent, so of two concurrent writers one succeeds
and the other retries. Every commit remains readable: the log is never cleaned, and only `catalog.gc` deletes the files
that a commit removes.

Other readers of these tables (Spark, Polars, `DeltaTable(...).to_pyarrow_table()`) see vectors as `array<float>`:
Delta has neither float16 nor fixed-size lists, and they widen what the Parquet files hold. Types that Delta lacks
altogether (times of day, durations, decimals of more than 38 digits) are registered as strings; DuckDB reads the
files and sees their own types. No other program may write to these tables, or run VACUUM on them.
"""

import json
import random
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Final

import pyarrow as pa

from catalog.errors import BalanceError, BuildError, EspalierError, NotFoundError, UserError, damaged
from catalog.parts import PartFile, describe_part
from catalog.schema import SAMPLE_ID
from catalog.storage import Storage

if TYPE_CHECKING:
    import deltalake

CONFIGURATION: Final[Mapping[str, str]] = {
    "delta.enableExpiredLogCleanup": "false",
    "delta.logRetentionDuration": "interval 36500 days",
    "delta.deletedFileRetentionDuration": "interval 36500 days",
}
"""Old commits must remain readable, because versions refer to them."""

_WIDENED: Final = {b"espalier.added_later": b"true"}
"""Metadata of a column that was added to a table that already had parts."""
_ATTEMPTS: Final = 60
_PAUSE_S: Final = 0.05
_DELTA_DECIMAL_DIGITS: Final = 38


class OvertakenError(BuildError):
    """Another writer committed first."""


def commit(
    storage: Storage,
    table: str,
    schema: pa.Schema,
    parts: Sequence[PartFile],
) -> int:
    """Make a table consist of exactly `parts`, in one commit; return its number. Without a change there is no commit.

    `storage` is the dataset's. Raises DamagedError if a part is missing or has another size, BalanceError if a part is
    listed twice. Safe to repeat after a kill at any moment.
    """
    wanted = _checked(storage, table, parts)
    registered = delta_schema(schema)
    for attempt in range(_ATTEMPTS):
        try:
            current = _open(storage, table)
            if current is None:
                parts = [_sealed(storage, part) for part in wanted.values()]
                return _create(storage, table, registered, parts)
            return _change(storage, current, table, registered, wanted)
        except OvertakenError:
            time.sleep(random.uniform(0, _PAUSE_S * min(attempt + 1, 10)))  # noqa: S311
    raise BuildError(f"table {table!r}: {_ATTEMPTS} commits were overtaken by other writers; build again")


def append(storage: Storage, table: str, schema: pa.Schema, part: PartFile, after: int) -> int:
    """Add one part as the commit that follows number `after` (-1: the table's first). Return its number.

    Raises OvertakenError if another writer has made that commit.
    """
    current = _open(storage, table)
    if (current.version() if current else -1) != after:
        raise OvertakenError(f"table {table!r} has moved on")
    if current is None:
        return _create(storage, table, delta_schema(schema), [part])
    return _transact(current, table, [_add(table, part)], "append", current.schema())


def replace(storage: Storage, table: str, old: PartFile, new: PartFile, after: int) -> int:
    """Replace one part by another in the commit that follows number `after`. Return its number.

    Raises OvertakenError if another writer has made that commit.
    """
    current = _opened(storage, table, None)
    if current.version() != after:
        raise OvertakenError(f"table {table!r} has moved on")
    return _transact(current, table, [_remove(table, old), _add(table, new)], "append", current.schema())


def widen(storage: Storage, table: str, schema: pa.Schema) -> None:
    """Register the columns that a table of an older release lacks; its parts are not changed and lack them.

    Does nothing if the table does not exist yet, or lacks no column.
    """
    from deltalake import Field

    for _ in range(_ATTEMPTS):
        current = _open(storage, table)
        there = _arrow(current.schema()).names if current else schema.names
        missing = [field for field in delta_schema(schema) if field.name not in there]
        if current is None or not missing:
            return
        fields = [Field.from_arrow(field.with_nullable(True).with_metadata(_WIDENED)) for field in missing]
        try:
            with plain_errors(current.table_uri):
                current.alter.add_columns(fields, commit_properties=_properties())
        except BuildError:  # another writer committed first, possibly these columns
            time.sleep(random.uniform(0, _PAUSE_S))  # noqa: S311
    raise BuildError(f"table {table!r}: {_ATTEMPTS} commits were overtaken by other writers; try again")


def is_widened(registered: pa.Schema) -> bool:
    """Return whether columns were added after the table was created, so that some of its parts lack them."""
    return any(key in (field.metadata or {}) for field in registered for key in _WIDENED)


def add(storage: Storage, table: str, schema: pa.Schema, part: PartFile) -> int:
    """Add one part after the last commit; return the commit's number."""
    for attempt in range(_ATTEMPTS):
        try:
            return append(storage, table, schema, part, latest(storage, table))
        except OvertakenError:
            time.sleep(random.uniform(0, _PAUSE_S * min(attempt + 1, 10)))  # noqa: S311
    raise BuildError(f"table {table!r}: {_ATTEMPTS} commits were overtaken by other writers; try again")


def remove(storage: Storage, table: str, paths: Sequence[str]) -> None:
    """Remove parts from a table in one commit."""
    for _ in range(_ATTEMPTS):
        current = _opened(storage, table, None)
        gone = [part for part in _parts(current, table) if part.path in set(paths)]
        if not gone:
            return
        try:
            _transact(current, table, [_remove(table, part) for part in gone], "append", current.schema())
        except OvertakenError:
            continue
        return


def latest(storage: Storage, table: str) -> int:
    """Return the number of a table's last commit; -1 if it has none."""
    current = _open(storage, table)
    return current.version() if current else -1


def files(storage: Storage, table: str, version: int | None = None) -> list[PartFile]:
    """Return the parts of a table at a commit (default: the last), sorted by path.

    Raises NotFoundError if there is no such table or commit.
    """
    return _parts(_opened(storage, table, version), table)


def schema(storage: Storage, table: str, version: int | None = None) -> pa.Schema:
    """Return the schema that a commit registers: Delta's types with our field metadata."""
    return contents(storage, table, version)[0]


def contents(storage: Storage, table: str, version: int | None = None) -> tuple[pa.Schema, list[PartFile]]:
    """Return the results of `schema` and `files`; opens the log once."""
    opened = _opened(storage, table, version)
    return _arrow(opened.schema()), _parts(opened, table)


def delta_schema(given: pa.Schema) -> pa.Schema:
    """Return a schema that Delta can register. Raises UserError if two names differ only in case."""
    seen: dict[str, str] = {}
    for name in given.names:
        if (other := seen.setdefault(name.lower(), name)) != name or given.names.count(name) > 1:
            raise UserError(f"columns {other!r} and {name!r} differ only in case, and SQL ignores case: rename one")
    return pa.schema([pa.field(f.name, _delta_type(f.type), metadata=f.metadata) for f in given])


def _delta_type(kind: pa.DataType) -> pa.DataType:
    """Return the nearest type that Delta has."""
    t = pa.types
    if t.is_dictionary(kind):
        return _delta_type(kind.value_type)
    if t.is_map(kind):
        return pa.map_(_delta_type(kind.key_type), _delta_type(kind.item_type))
    if t.is_struct(kind):
        return pa.struct([pa.field(f.name, _delta_type(f.type)) for f in kind])
    if t.is_list(kind) or t.is_large_list(kind) or t.is_fixed_size_list(kind) or t.is_list_view(kind):
        return pa.list_(_delta_type(kind.value_type))
    if t.is_timestamp(kind):
        return pa.timestamp("us", "UTC" if kind.tz else None)
    if t.is_large_string(kind) or t.is_string_view(kind):
        return pa.string()
    if t.is_large_binary(kind) or t.is_binary_view(kind) or t.is_fixed_size_binary(kind):
        return pa.binary()
    if t.is_decimal(kind):
        fits = kind.precision <= _DELTA_DECIMAL_DIGITS
        return pa.decimal128(kind.precision, kind.scale) if fits else pa.string()
    return _SIMPLE.get(kind, pa.string())


_SIMPLE: Final[Mapping[pa.DataType, pa.DataType]] = {
    **{kind: kind for kind in (pa.int8(), pa.int16(), pa.int32(), pa.int64(), pa.float32(), pa.float64())},
    **{kind: kind for kind in (pa.bool_(), pa.string(), pa.binary(), pa.date32())},
    pa.float16(): pa.float32(),
    pa.uint8(): pa.int16(),
    pa.uint16(): pa.int32(),
    pa.uint32(): pa.int64(),
    pa.uint64(): pa.int64(),
    pa.date64(): pa.date32(),
}


def _checked(storage: Storage, table: str, parts: Sequence[PartFile]) -> dict[str, PartFile]:
    """Return the parts by path, after comparing them with the files that exist (one listing)."""
    wanted = {part.path: part for part in parts}
    if len(wanted) != len(parts):
        raise BalanceError(f"table {table!r}: a part is listed twice, its rows would be doubled")
    there = storage.list(table) if parts else {}
    for part in parts:
        if there.get(part.path) != part.bytes:
            found = f"has {there[part.path]} bytes" if part.path in there else "does not exist"
            raise damaged(storage.uri, part.path, f"it {found}, expected {part.bytes} bytes")
    return wanted


def _open(storage: Storage, table: str, version: int | None = None) -> "deltalake.DeltaTable | None":
    from deltalake import DeltaTable
    from deltalake.exceptions import TableNotFoundError

    place = storage.child(table)
    with plain_errors(place.uri):
        try:
            return DeltaTable(place.uri, version=version, storage_options=place.delta_options())
        except TableNotFoundError:
            return None


def _opened(storage: Storage, table: str, version: int | None) -> "deltalake.DeltaTable":
    opened = _open(storage, table, version)
    if opened is None:
        raise NotFoundError(f"{storage.uri} has no table {table!r}")
    return opened


def _parts(opened: "deltalake.DeltaTable", table: str) -> list[PartFile]:
    added = pa.table(opened.get_add_actions(flatten=True))
    columns = [added.column(name).to_pylist() for name in ("path", "num_records", "size_bytes")]
    names = (f"{bound}.{SAMPLE_ID.name}" for bound in ("min", "max"))
    bounds = [added.column(n).to_pylist() if n in added.column_names else [None] * added.num_rows for n in names]
    parts = [
        PartFile(f"{table}/{path}", rows, size, span=None if None in span else span)
        for path, rows, size, span in zip(*columns, zip(*bounds, strict=True), strict=True)
    ]
    return sorted(parts, key=_path_of)


def _arrow(registered: "deltalake.Schema") -> pa.Schema:
    return pa.schema(registered.to_arrow())


def _path_of(part: PartFile) -> str:
    return part.path


def _create(storage: Storage, table: str, registered: pa.Schema, parts: list[PartFile]) -> int:
    from deltalake import Schema
    from deltalake.exceptions import DeltaError
    from deltalake.transaction import create_table_with_add_actions

    place = storage.child(table)
    with plain_errors(place.uri):
        try:
            create_table_with_add_actions(
                place.uri,
                Schema.from_arrow(registered),
                [_add(table, part) for part in parts],
                mode="error",
                configuration=CONFIGURATION,
                storage_options=place.delta_options(),
                commit_properties=_properties(),
            )
        except DeltaError as error:
            if _open(storage, table) is None:
                raise
            raise OvertakenError(f"table {table!r} was made by another writer") from error
    return 0


def _change(
    storage: Storage,
    current: "deltalake.DeltaTable",
    table: str,
    registered: pa.Schema,
    wanted: Mapping[str, PartFile],
) -> int:
    from deltalake import Schema

    new_schema = Schema.from_arrow(registered)
    if not _arrow(new_schema).equals(_arrow(current.schema()), check_metadata=True):
        # A commit that changes the schema may not keep a file, so there are two commits: empty the table, then fill it.
        _transact(current, table, [], "overwrite", new_schema)
        current.update_incremental()
    there = {part.path: part for part in _parts(current, table)}
    actions = [_remove(table, part) for path, part in there.items() if path not in wanted]
    actions += [_add(table, _sealed(storage, part)) for path, part in wanted.items() if path not in there]
    return _transact(current, table, actions, "append", new_schema) if actions else current.version()


def _transact(
    current: "deltalake.DeltaTable",
    table: str,
    actions: Sequence[Any],
    mode: str,
    registered: "deltalake.Schema",
) -> int:
    from deltalake.exceptions import CommitFailedError

    number = current.version() + 1
    with plain_errors(current.table_uri):
        try:
            current.create_write_transaction(list(actions), mode, registered, commit_properties=_properties())
        except CommitFailedError as error:
            raise OvertakenError(f"table {table!r} was changed by another writer") from error
    return number


def _properties() -> Any:
    """Return properties of a commit that fails where another writer was first."""
    from deltalake import CommitProperties

    return CommitProperties(max_commit_retries=0)


def _add(table: str, part: PartFile) -> Any:
    from deltalake.transaction import AddAction

    statistics = statistics_of(part)
    return AddAction(part.path.removeprefix(f"{table}/"), part.bytes, {}, _now_ms(), True, statistics)


def statistics_of(part: PartFile) -> str:
    """Return the statistics of a part for the log: Delta's `stats`, and the part's seal under a key of ours.

    Of minima and maxima only those of sample_id: others may contain the content of rows, which a take-down erases.
    """
    facts: dict[str, Any] = {"numRecords": part.rows}
    if part.span is not None:
        facts |= {f"{bound}Values": {SAMPLE_ID.name: id_} for bound, id_ in zip(("min", "max"), part.span, strict=True)}
    return json.dumps(facts | ({"sha256": part.sha256} if part.sha256 else {}))


def _sealed(storage: Storage, part: PartFile) -> PartFile:
    return part if part.sha256 else describe_part(storage, part.path)


def _remove(table: str, part: PartFile) -> Any:
    from deltalake.transaction import RemoveAction

    return RemoveAction(part.path.removeprefix(f"{table}/"), True, _now_ms(), part.bytes)


def _now_ms() -> int:
    return time.time_ns() // 1_000_000


@contextmanager
def plain_errors(uri: str) -> Iterator[None]:
    """Translate errors of delta-rs to one-line errors of ours."""
    from deltalake.exceptions import DeltaError

    try:
        yield
    except EspalierError:
        raise
    except (DeltaError, OSError) as error:
        text = " ".join(str(error).split())
        if "No space left" in text or "quota exceeded" in text:
            raise BuildError(
                f"no space left to commit to {uri}; the last version is intact: free some space"
            ) from error
        if any(word in text for word in ("Permission denied", "Read-only file system", "Forbidden", "AccessDenied")):
            raise UserError(f"may not write {uri}: {text[:200]}") from error
        if "not the same as the specified end version" in text:
            raise NotFoundError(f"{uri} has no such commit") from error
        if "Kernel error" in text:
            place, _, table = uri.removeprefix("file://").rstrip("/").rpartition("/")
            raise damaged(place, f"{table}/_delta_log", text[:200]) from error
        raise BuildError(f"cannot use the Delta table {uri}: {text[:300]}") from error
