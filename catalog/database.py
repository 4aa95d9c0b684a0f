"""SQL over a catalog: one DuckDB schema a dataset, one view a table, over the exact files of one version.

Nothing is copied and nothing is cached: a view is `read_parquet([...])`, so a query is as fast as over plain Parquet
files. A connection is shut in before any user's statement runs: no settings, no extensions, no files but those of the
tables that it shows. DuckDB lets `COPY ... TO` write wherever it may read, also from within a SELECT; so `query` looks
at the parsed statement, and runs it only where every part of it reads.
"""

import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Final

import pyarrow as pa

from catalog import delta, lineage
from catalog.dataset import Catalog, Dataset
from catalog.duck import Limits, identifier, limited, literal, lock, open_database
from catalog.errors import NotFoundError, QueryError, damage_in_sql, nearest
from catalog.parts import PartFile
from catalog.rejection import rejects_sql
from catalog.requested import Ids, Requested, either, holding, requested
from catalog.schema import role
from catalog.takedown.ledger import REASON as TAKEN_DOWN
from catalog.version import Version

if TYPE_CHECKING:
    import duckdb

VERDICTS: Final = ("sample_id", "url", "keep", "stage", "reason", "evidence", "representative", "similarity")
"""The columns of the view `verdicts`, one row a row of the source: whether it is in, else which stage put it out first
and why (failed rows: the stage that makes `images`, with the failure's detail as evidence), and what stands for it."""

_JUDGED: Final = {
    "stage": "varchar",
    "reason": "varchar",
    "evidence": "varchar",
    "representative": "bigint",
    "similarity": "float",
}
SCORES_TABLE: Final = "scores_table"
"""What the table `scores` is called beside the view of that name."""
_VIEWS: Final = ("scores", "verdicts", SCORES_TABLE)
"""Views over several tables of a dataset, and the name that a table has beside one."""
_READING: Final = ("SELECT", "EXPLAIN")
_KIND: Final = re.compile(r'"type":\s*"(\w+_NODE|TABLE_FUNCTION)"')
"""Of a part of DuckDB's syntax tree as JSON. No text of a user's looks so there: its quotes are escaped."""
_READING_KINDS: Final = frozenset(
    ["SELECT_NODE", "SET_OPERATION_NODE", "RECURSIVE_CTE_NODE", "CTE_NODE", "TABLE_FUNCTION"]
)
"""Others are what a WITH may hold: COPY_QUERY_NODE, DELETE_QUERY_NODE, ..."""
_READING_FUNCTIONS: Final = frozenset(
    ("generate_series", "glob", "histogram", "histogram_values", "json_each", "json_tree", "query_table", "range")
) | {"repeat", "repeat_row", "show_tables", "sniff_csv", "summary", "unnest", lineage.FUNCTION}
"""Table functions, beside those of _READING_FAMILIES. Among the others are some that run text as a statement (query,
json_execute_serialized_sql), call what a text names (destroy_external_resource), or change the connection."""
_READING_FAMILIES: Final = ("duckdb_", "parquet_", "pragma_", "read_")
_BATCH_ROWS: Final = 10_000
_LOGS: Final = ("versions", "runs")
"""Tables that every dataset has beside those of a version."""
_EXPLAIN = re.compile(r"\s*explain\s+(analyze\s+)?", re.IGNORECASE)


def connect(
    catalog: Catalog,
    at: Mapping[str, int] | None = None,
    datasets: Iterable[str] | None = None,
    threads: int | None = None,
    memory_mb: int | None = None,
    statement: str = "",
    rows: Ids = None,
) -> "duckdb.DuckDBPyConnection":
    """Return a connection that shows datasets (default: all that have a version) and can do nothing else.

    `at` says which version of a dataset, by default the last. Each dataset is a schema; where there is only one it
    is also the default, so `select * from decisions` works. Beside its tables a dataset has the views `versions`,
    `runs`, `scores` (every score column of every table, by sample_id) and `verdicts` (what became of each row: see
    VERDICTS). Where `statement` names it, there is also the lineage of rows (`catalog.lineage`). Vectors appear as
    FLOAT[]. With a `statement`, the connection may show no more than what that needs; with `rows`, sample_ids, no more
    than the parts that may hold them. Raises NotFoundError where a dataset or a version does not exist.
    """
    at = at or {}
    shown = _chosen(catalog, at, datasets)
    connection = open_connection(catalog, threads, memory_mb)
    needed = requested(connection, statement) if statement else None
    if needed is not None and not _are_known(needed, shown):
        needed = None  # the error names what there is
    for dataset, version in shown.items():
        every = None if rows is None else dict.fromkeys((*version.tables, *_LOGS), rows)
        attach(connection, dataset, version, dataset.name, every if needed is None else needed.of(dataset.name))
    if len(shown) == 1:
        connection.execute(f"set schema = {literal(identifier(next(iter(shown)).name))}")
    folders = lineage.attach(connection, catalog) if lineage.is_named(statement) else []
    shut_in(connection, shown, folders)
    return connection


def _are_known(needed: Requested, shown: Mapping[Dataset, Version]) -> bool:
    """Return whether every table that a statement names is one of the datasets that are shown, or its own."""
    views = {*_VIEWS, *_LOGS}
    known = {(dataset.name, table) for dataset, version in shown.items() for table in {*version.tables, *views}}
    known |= {("", table) for _, table in known} | {("", name) for name in needed.own}
    known |= {(schema, lineage.VIEW) for schema in ("", "main")}
    return known >= {*needed.tables}


def _chosen(catalog: Catalog, at: Mapping[str, int], datasets: Iterable[str] | None) -> dict[Dataset, Version]:
    """Return the datasets to show; those that are not named are skipped while they have no version."""
    named = set(at) if datasets is None else {*datasets, *at}
    known = catalog.datasets()
    chosen: dict[Dataset, Version] = {}
    for name in sorted(named | (set(known) if datasets is None else set())):
        dataset = catalog.dataset(name) if name in known else catalog.existing(name)
        try:
            chosen[dataset] = dataset.version(at.get(name))
        except NotFoundError:
            if name in named:
                raise
    return chosen


def sql(
    catalog: Catalog,
    text: str,
    at: Mapping[str, int] | None = None,
    timeout_s: float | None = None,
    max_rows: int | None = None,
) -> pa.Table:
    """Run one SELECT over the datasets that it mentions (all of them, where it mentions none)."""
    with connect(catalog, at, mentioned(catalog, text) or None, statement=text) as connection:
        return query(connection, text, timeout_s, max_rows)


Shape = Callable[["duckdb.DuckDBPyRelation"], "duckdb.DuckDBPyRelation"]
"""What makes of a result's columns the columns that are read."""


@dataclass(frozen=True)
class Rows:
    """The result of a query, to be read once."""

    schema: pa.Schema
    batches: Iterator[pa.RecordBatch]


@contextmanager
def streamed(
    catalog: Catalog,
    text: str,
    at: Mapping[str, int] | None = None,
    limits: Limits | None = None,
    shape: Shape | None = None,
) -> "Iterator[Rows]":
    """Give the rows of one SELECT as they are made, in bounded memory; its limits count until the block ends.

    Raises what `query` does, QueryError also where a limit of time or memory is passed.
    """
    limits = limits or Limits()
    with (
        connect(
            catalog, at, mentioned(catalog, text) or None, memory_mb=limits.memory_mb, statement=text
        ) as connection,
        _explained(connection),
        limited(connection, limits),
    ):
        relation = _relation(connection, text)
        reader = (shape(relation) if shape else relation).to_arrow_reader(_BATCH_ROWS)
        yield Rows(reader.schema, _batches(reader, connection))


def _batches(reader: pa.RecordBatchReader, connection: "duckdb.DuckDBPyConnection") -> Iterator[pa.RecordBatch]:
    while True:
        try:
            batch = reader.read_next_batch()
        except StopIteration:
            return
        except (OSError, pa.ArrowException) as error:  # Arrow's words for what DuckDB met on the way
            raise QueryError(_one_line(error, connection)) from error
        yield batch


def mentioned(catalog: Catalog, text: str) -> list[str]:
    """Return the datasets whose names stand in a statement; those that are SQL keywords, in double
    quotes or before a dot."""
    words = set(re.findall(r"\w+", text.lower()))
    named_words = set(re.findall(r'(\w+)(?:"|\s*\.)', text.lower()))
    found = [name for name in catalog.datasets() if name in words]
    keywords = _keywords() if found else frozenset()
    return [name for name in found if name not in keywords or name in named_words]


def query(
    connection: "duckdb.DuckDBPyConnection",
    text: str,
    timeout_s: float | None = None,
    max_rows: int | None = None,
    limits: Limits | None = None,
) -> pa.Table:
    """Run one SELECT (or EXPLAIN, SHOW, DESCRIBE, SUMMARIZE) and return at most `max_rows` rows.

    Raises QueryError, one line with the nearest table or column, where it is wrong, takes longer than `timeout_s`
    seconds (or passes another of `limits`), or is any other kind of statement.
    """
    with _explained(connection), limited(connection, limits or Limits(timeout_s)):
        relation = _relation(connection, text)
        return (relation if max_rows is None else relation.limit(max_rows)).to_arrow_table()


def _relation(connection: "duckdb.DuckDBPyConnection", text: str) -> "duckdb.DuckDBPyRelation":
    _refuse_writing(connection, text)
    relation = connection.sql(text)
    if relation is None:
        raise QueryError("the statement gives no rows; expected a SELECT")
    return relation


@contextmanager
def _explained(connection: "duckdb.DuckDBPyConnection") -> Iterator[None]:
    """Turn DuckDB's errors into one line of ours."""
    import duckdb

    try:
        yield
    except (duckdb.Error, pa.ArrowException) as error:
        raise damage_in_sql(error) or QueryError(_one_line(error, connection)) from error


def open_connection(
    catalog: Catalog, threads: int | None = None, memory_mb: int | None = None
) -> "duckdb.DuckDBPyConnection":
    """Return an empty connection that can read the catalog's files. Call `shut_in` before a user's SQL runs."""
    connection = open_database(threads, memory_mb, outside=True)
    # DuckDB calls its own database `memory`, and `memory.images` would be ambiguous where a dataset is called so.
    connection.execute("attach ':memory:' as _espalier; use _espalier; detach memory")
    if not catalog.storage.is_local:
        connection.register_filesystem(catalog.storage.fsspec())
    return connection


def shut_in(
    connection: "duckdb.DuckDBPyConnection", shown: Mapping[Dataset, Version], folders: Sequence[str] = ()
) -> None:
    """Let a connection read the folders of these versions' tables, and `folders`, and nothing else, from now on."""
    tables = ((dataset, table) for dataset, version in shown.items() for table in (*version.tables, *_LOGS))
    lock(connection, [*(f"{dataset.storage.uri}/{table}/" for dataset, table in tables), *folders])


def attach(
    connection: "duckdb.DuckDBPyConnection",
    dataset: Dataset,
    version: Version,
    schema: str,
    needed: Mapping[str, Ids] | None = None,
) -> None:
    """Show one version of a dataset as a DuckDB schema.

    `needed`: the tables and views that a statement names, and the rows that it needs of each; by default everything.
    Parts without such rows are omitted.
    """
    connection.execute(f"create schema if not exists {identifier(schema)}")
    tables = _needed(version, needed)
    with ThreadPoolExecutor(8) as pool:  # each is several requests, on object stores
        found = dict(zip(tables, pool.map(lambda t: dataset.contents(version, t), tables), strict=True))
    schemas = {table: columns for table, (columns, _) in found.items()}
    views = _views(schema, schemas, version) if len(tables) == len(version.tables) else {}
    for table, (columns, parts) in found.items():
        name = SCORES_TABLE if table in views else table  # the view `scores` has more than the table of that name
        _show(
            connection,
            dataset,
            identifier(schema, name),
            columns,
            holding(parts, tables[table]) if version.tables[table].uniform else parts,
            version.tables[table].uniform,
        )
    for table in _LOGS if needed is None else {*_LOGS} & {*needed}:
        with suppress(NotFoundError):
            columns, parts = delta.contents(dataset.storage, table)
            _show(
                connection,
                dataset,
                identifier(schema, table),
                columns,
                parts,
                not delta.is_widened(columns),
            )
    for name, query_text in views.items():
        connection.execute(f"create view {identifier(schema, name)} as {query_text}")


def _needed(version: Version, needed: Mapping[str, Ids] | None) -> dict[str, Ids]:
    """Return the tables that a statement needs, and the rows of each. A view needs its rows of all tables."""
    if needed is None:
        return dict.fromkeys(version.tables)
    viewed = [needed[view] for view in _VIEWS if view in needed]
    if not viewed:
        return {table: needed[table] for table in version.tables if table in needed}
    return {table: either(*viewed, needed.get(table, frozenset())) for table in version.tables}


def _views(schema: str, schemas: Mapping[str, pa.Schema], version: Version) -> dict[str, str]:
    """Return the views that a dataset has beside its tables: name -> SQL."""
    views = {}
    if scores := _scores(schema, schemas):
        views["scores"] = scores
    if "source" in schemas and "verdicts" not in schemas:
        views["verdicts"] = _verdicts(schema, schemas, version)
    return views


def _show(
    connection: "duckdb.DuckDBPyConnection",
    dataset: Dataset,
    name: str,
    columns: pa.Schema,
    parts: Sequence[PartFile],
    uniform: bool,
) -> None:
    import duckdb

    if not parts:
        connection.register("_empty", columns.empty_table())
        connection.execute(f"create table {name} as select * from _empty")
        connection.unregister("_empty")
        return
    files = ", ".join(literal(f"{dataset.storage.uri}/{part.path}") for part in parts)
    union = "" if uniform else ", union_by_name = true"
    try:
        connection.execute(f"create view {name} as select * from read_parquet([{files}]{union})")
    except duckdb.Error as error:  # it reads a footer
        raise damage_in_sql(error) or error from error


def _scores(schema: str, schemas: Mapping[str, pa.Schema]) -> str | None:
    """Return the view `scores`: sample_id, and every column that some scorer wrote; None where a table has them all.

    A table `scores` counts whole, and first; `samples` last, as it repeats the others' columns for the rows kept.
    """
    sources: dict[str, str] = {}
    taken: set[str] = set()
    for table in sorted(schemas, key=lambda name: (name == "samples", name != "scores")):
        columns = schemas[table]
        if "sample_id" not in columns.names:
            continue
        every = table == "scores"
        names = [f.name for f in columns if f.name != "sample_id" and (every or role(f) == "score")]
        if fresh := [name for name in names if name not in taken]:
            taken.update(fresh)
            listed = ", ".join(identifier(name) for name in ["sample_id", *fresh])
            shown = SCORES_TABLE if every else table
            sources[table] = f"(select {listed} from {identifier(schema, shown)})"
    if not sources or list(sources) == ["scores"]:
        return None
    first, *others = sources.values()
    return f"select * from {first}" + "".join(f" full join {other} using (sample_id)" for other in others)


def _verdicts(schema: str, schemas: Mapping[str, pa.Schema], version: Version) -> str:
    """Return the view `verdicts`.

    Two joins and no grouping: no later stage sees a rejected row, so a row has at most one rejection. A query
    for one row reads the row groups that it is in, and one that counts reasons reads just these columns.
    """
    url = 's."url"' if "url" in schemas["source"].names else "null::varchar"
    joins = ""
    cases: list[tuple[str, tuple[str, ...]]] = []
    taken = (
        rejects_sql("url", url),
        (literal(_maker(version, "source")), literal(TAKEN_DOWN), "null", "null", "null"),
    )
    if {"status", "reason"} <= set(schemas.get("images", pa.schema([])).names):
        joins += f" left join {identifier(schema, 'images')} i using (sample_id)"
        maker = _maker(version, "images", "images")
        detail = 'i."detail"' if "detail" in schemas["images"].names else "null"
        failed = f"(i.sample_id is not null and {rejects_sql('status', 'i.status')})"
        cases.append((failed, (literal(maker), "i.reason", detail, "null", "null")))
    if "decisions" in schemas:
        joins += f" left join ({_rejected(schema, version)}) d using (sample_id)"
        cases.append(("d.sample_id is not null", tuple(f"d.{column}" for column in _JUDGED)))
    cases.append(taken)  # where nothing fetches, no stage says it
    picked = [
        f"cast(case {' '.join(f'when {out} then {values[at]}' for out, values in cases)} end as {type_}) as {column}"
        for at, (column, type_) in enumerate(_JUDGED.items())
    ]
    out = " or ".join(condition for condition, _ in cases)
    columns = f"s.sample_id, {url} as url, not ({out}) as keep, {', '.join(picked)}"
    return f"select {columns} from {identifier(schema, 'source')} s{joins}"


def _maker(version: Version, table: str, default: str = "") -> str:
    """Return the name of the stage that made a table of a version."""
    return next((str(s["name"]) for s in version.stages if s.get("table") == table), default or table)


def _rejected(schema: str, version: Version) -> str:
    """Return SQL for what was rejected: one row a sample."""
    columns = ", ".join(("sample_id", *_JUDGED))
    rejected = f"select {columns} from {identifier(schema, 'decisions')} where {rejects_sql('keep')}"
    if any(s.get("table") == "decisions" for s in version.stages):
        return rejected
    return f"select distinct on (sample_id) * from ({rejected}) order by sample_id, stage"  # who knows who wrote it


def _refuse_writing(connection: "duckdb.DuckDBPyConnection", text: str) -> None:
    """Raise QueryError unless the text is one statement that only reads, also behind EXPLAIN (ANALYZE runs it)."""
    import duckdb

    if any("\ud800" <= character <= "\udfff" for character in text):  # a surrogate: DuckDB takes none
        raise QueryError("the statement is not UTF-8 text")
    statements = duckdb.extract_statements(text)
    if len(statements) != 1:
        raise QueryError(f"found {len(statements)} statements, expected one SELECT")
    try:
        kind = statements[0].type.name
    except ValueError:  # of a kind that DuckDB's Python has no name for
        kind = "another statement"
    if kind not in _READING:
        hint = "; write PIVOT with an IN list" if kind == "MULTI" else ""
        raise QueryError(f"the catalog is read-only: found {kind}, expected SELECT{hint}")
    if kind == "SELECT":
        _refuse_writing_inside(connection, text)
        return
    # Only at the very beginning, and no options in parentheses: what is cut off must be what DuckDB cuts off.
    if not (begin := _EXPLAIN.match(text)):
        raise QueryError("cannot tell what is explained; begin the statement with EXPLAIN")
    _refuse_writing(connection, text[begin.end() :])


def _refuse_writing_inside(connection: "duckdb.DuckDBPyConnection", text: str) -> None:
    """Raise QueryError where a part of a SELECT does more than read: a WITH that copies, a function that runs text."""
    tree: str = connection.execute("select json_serialize_sql(?)", [text]).fetchall()[0][0]
    if not tree.startswith('{"error":false'):
        raise QueryError(" ".join(str(json.loads(tree)["error_message"]).split()))
    kinds = set(_KIND.findall(tree))
    if writing := kinds - _READING_KINDS:
        raise QueryError(f"the catalog is read-only: found {min(writing).partition('_')[0]} inside, expected SELECT")
    for name in _table_functions(tree) if "TABLE_FUNCTION" in kinds else ():
        if name not in _READING_FUNCTIONS and not name.startswith(_READING_FAMILIES):
            near = nearest(name, _READING_FUNCTIONS)
            raise QueryError(f"the catalog is read-only: {name}() may not be used{near}")


def _table_functions(tree: str) -> Iterator[str]:
    """Yield the names of the table functions in a syntax tree, in lower case."""
    try:
        nodes: list[Any] = [json.loads(tree)]
    except RecursionError:
        raise QueryError("the statement is nested too deeply") from None
    while nodes:
        node = nodes.pop()
        if isinstance(node, dict):
            if node.get("type") == "TABLE_FUNCTION":
                yield str(node["function"]["function_name"]).lower()
            nodes += node.values()
        elif isinstance(node, list):
            nodes += node


def _one_line(error: Exception, connection: "duckdb.DuckDBPyConnection") -> str:
    """Return DuckDB's message without its drawing, with the nearest name of ours."""
    text = " ".join(str(error).partition("\n\nLINE")[0].split())
    if found := re.search(r"Table with name (\S+) does not exist", text):
        name = found[1].replace('"', "")
        return f"no table {name!r}{nearest(name, _tables(connection))}"
    if found := re.search(r'column "?([^"]+?)"? not found|does not have a column named "([^"]+)"', text):
        name = found[1] or found[2]
        bound = re.findall(r'"([^"]+)"', text.partition("Candidate bindings:")[2])
        return f"no column {name!r}{nearest(name, bound or _columns(connection))}"
    line = re.sub(r"^[A-Z]\w+(?: [A-Z]\w+)* Error: ", "", text)[:500]
    if (found := re.search(r'syntax error at or near "(\w+)"', text)) and found[1].lower() in _schemas(connection):
        return f'{line}; the dataset {found[1]} is called as a word of SQL: write "{found[1]}"'
    return line


def _tables(connection: "duckdb.DuckDBPyConnection") -> list[str]:
    rows = connection.execute("select table_schema || '.' || table_name from information_schema.tables").fetchall()
    return [name for (name,) in rows]


def _schemas(connection: "duckdb.DuckDBPyConnection") -> set[str]:
    rows = connection.execute("select distinct schema_name from information_schema.schemata").fetchall()
    return {name for (name,) in rows}


def _columns(connection: "duckdb.DuckDBPyConnection") -> set[str]:
    rows = connection.execute("select column_name from information_schema.columns").fetchall()
    return {name for (name,) in rows}


@lru_cache(1)
def _keywords() -> frozenset[str]:
    """Return the words that SQL takes for its own unless they are quoted."""
    with open_database(threads=1) as connection:
        rows = connection.execute("select keyword_name from duckdb_keywords() where keyword_category = 'reserved'")
        return frozenset(str(name) for (name,) in rows.fetchall())
