"""Compare two versions: rows of the source and of the published samples, and decisions by reason.

Versions of one dataset are compared by `sample_id`, which never changes; versions of different datasets by `url`.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from catalog.database import attach, open_connection
from catalog.dataset import Catalog
from catalog.errors import UserError
from catalog.rejection import rejects_sql
from catalog.version import Version

if TYPE_CHECKING:
    import duckdb

NOT_JUDGED: Final = "not judged"
KEPT: Final = "kept"


@dataclass(frozen=True)
class Example:
    """One row that changed: its URL, and its id in the newer of the versions that have it."""

    sample_id: int
    url: str | None


@dataclass(frozen=True)
class Rows:
    """Rows of a table that only one version has."""

    table: str
    added: int
    removed: int
    added_examples: Sequence[Example]
    removed_examples: Sequence[Example]


@dataclass(frozen=True)
class Change:
    """Rows whose decision by a stage changed. `before` and `after` are reasons, `kept`, or `not judged`."""

    stage: str
    before: str
    after: str
    rows: int
    examples: Sequence[Example]


@dataclass(frozen=True)
class Diff:
    """The difference between version `a` and version `b`."""

    a: Version
    b: Version
    key: str
    """The column that identifies a row in both versions: `sample_id` or `url`."""
    rows: Sequence[Rows]
    """For `source`, and for `samples` if both versions have it."""
    decisions: Sequence[Change]
    """Most rows first."""


def diff(catalog: Catalog, a: str, b: str, examples: int = 5) -> Diff:
    """Compare two versions of one dataset, such as `laion@1` and `laion@2`, or of two datasets.

    `rows` holds rows that only one version has; `decisions` covers rows that both sources have. Raises NotFoundError if
    a version does not exist, UserError if one of them has no source.
    """
    one, other = catalog.resolve(a), catalog.resolve(b)
    for version in (one, other):
        if "source" not in version.tables:
            raise UserError(f"{version.label} has no table 'source', so its rows cannot be compared")
    key = "sample_id" if one.dataset == other.dataset else "url"
    with open_connection(catalog) as connection:
        for name, version in (("a", one), ("b", other)):
            attach(connection, catalog.dataset(version.dataset), version, name)
        views = [_views(connection, name) for name in ("a", "b")]
        tables = [table for table in ("source", "samples") if all(table in shown for shown in views)]
        rows = [_rows(connection, table, key, examples) for table in tables]
        changes = _changes(connection, key, examples, [("decisions" in shown) for shown in views])
    return Diff(one, other, key, rows, changes)


def _rows(connection: "duckdb.DuckDBPyConnection", table: str, key: str, examples: int) -> Rows:
    added, added_examples = _only_in(connection, "b", "a", table, key, examples)
    removed, removed_examples = _only_in(connection, "a", "b", table, key, examples)
    return Rows(table, added, removed, added_examples, removed_examples)


def _only_in(
    connection: "duckdb.DuckDBPyConnection", here: str, there: str, table: str, key: str, examples: int
) -> tuple[int, list[Example]]:
    only = f"from {here}.{table} h anti join {there}.{table} t on h.{key} is not distinct from t.{key}"
    # The n smallest ids and their count in one pass.
    found = connection.execute(
        f"select count(*), min({{'id': h.sample_id, 'url': h.url}}, {max(examples, 1)}) {only}"
    ).fetchone()
    assert found is not None
    return found[0], [Example(row["id"], row["url"]) for row in (found[1] or [])[:examples]]


def _changes(connection: "duckdb.DuckDBPyConnection", key: str, examples: int, judged: Sequence[bool]) -> list[Change]:
    """Return the decisions that differ, for rows that both sources have, by (stage, before, after)."""
    verdicts = [_verdicts(name, key, there) for name, there in zip(("a", "b"), judged, strict=True)]
    found = connection.execute(
        f"""
        with one as ({verdicts[0]}), other as ({verdicts[1]}),
        shared as (
            select b.{key} as key, min(b.sample_id) as sample_id, min(b.url) as url
            from b.source b semi join a.source a on a.{key} = b.{key} group by 1
        ),
        changed as (
            select key, stage, coalesce(one.verdict, '{NOT_JUDGED}') as before,
                   coalesce(other.verdict, '{NOT_JUDGED}') as after
            from one full join other using (key, stage)
            where coalesce(one.verdict, '{KEPT}') <> coalesce(other.verdict, '{KEPT}')
        )
        select stage, before, after, count(*) as rows,
               min({{'id': sample_id, 'url': url}}, {max(examples, 1)}) as examples
        from changed join shared using (key)
        group by all order by rows desc, stage, before, after
        """
    ).fetchall()
    return [
        Change(stage, before, after, rows, [Example(e["id"], e["url"]) for e in shown[:examples]])
        for stage, before, after, rows, shown in found
    ]


def _verdicts(name: str, key: str, there: bool) -> str:
    """Return SQL for (key, stage, verdict): the reason, or `kept`. Rows with the same URL count once."""
    if not there:
        type_ = "bigint" if key == "sample_id" else "varchar"
        return f"select null::{type_} as key, ''::varchar as stage, ''::varchar as verdict where false"
    rejected = rejects_sql("keep", "d.keep")
    verdict = f"case when bool_and({rejected}) then coalesce(min(d.reason), 'rejected') else '{KEPT}' end"
    if key == "sample_id":
        return f"select d.sample_id as key, d.stage, {verdict} as verdict from {name}.decisions d group by all"
    return (
        f"select s.url as key, d.stage, {verdict} as verdict "
        f"from {name}.decisions d join {name}.source s using (sample_id) where s.url is not null group by all"
    )


def _views(connection: "duckdb.DuckDBPyConnection", schema: str) -> set[str]:
    rows: list[Any] = connection.execute(
        "select table_name from information_schema.tables where table_schema = ?", [schema]
    ).fetchall()
    return {name for (name,) in rows}
