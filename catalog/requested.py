"""Which rows of which tables a SELECT can need, as its syntax shows it.

`select * from images where sample_id = 5` needs one row of one table. The statistics in the Delta log say which parts
may have it, so the others need not be opened, nor do the parts of tables that the statement does not name.

Only what is certain is used: conditions `sample_id = 5` and `sample_id in (5, 7)` that all rows of a SELECT have to
meet, for the tables in its FROM: one table, or tables that are joined USING (sample_id). Everything else needs all
rows.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from catalog.lookup import KEY
from catalog.parts import PartFile

if TYPE_CHECKING:
    import duckdb

Node = dict[str, Any]
Ids = frozenset[int] | None
"""The sample_ids that are needed; None for all rows."""

_UNKNOWN: Final = frozenset(("TABLE_FUNCTION", "SHOW_REF"))
"""Kinds of nodes that can read tables that they do not name."""


@dataclass(frozen=True)
class Requested:
    """What a statement can need."""

    tables: Mapping[tuple[str, str], Ids]
    """(schema, empty where it names none; table), both in lower case -> the rows. Includes names of the statement's own
    (WITH)."""
    own: frozenset[str]
    """The names that the statement defines itself."""

    def of(self, schema: str) -> dict[str, Ids]:
        """Return table -> rows, of the tables that may be in a schema."""
        found: dict[str, Ids] = {}
        for (named, table), ids in self.tables.items():
            if named in ("", schema.lower()):
                found[table] = either(found[table], ids) if table in found else ids
        return found


def requested(connection: "duckdb.DuckDBPyConnection", text: str) -> Requested | None:
    """Return what a statement can need; None where that is unknown, as for SHOW or with table functions."""
    import duckdb

    try:
        tree: Node = json.loads(connection.execute("select json_serialize_sql(?)", [text]).fetchall()[0][0])
    except (duckdb.Error, RecursionError):  # not UTF-8, or nested too deeply: running it raises the error
        return None
    if tree.get("error") or not tree.get("statements"):
        return None
    tables: dict[tuple[str, str], Ids] = {}
    references: list[Node] = []
    restricted: dict[int, frozenset[int]] = {}
    own: set[str] = set()
    for node in _nodes(tree):
        kind = node.get("type")
        if isinstance(kind, str) and kind in _UNKNOWN:
            return None
        if kind == "BASE_TABLE":
            references.append(node)
        if kind == "SELECT_NODE":
            restricted |= _restricted(node)
        own |= {str(entry["key"]).lower() for entry in node.get("cte_map", {}).get("map", ())}
    for node in references:
        key = (str(node["schema_name"]).lower(), str(node["table_name"]).lower())
        ids = restricted.get(id(node))
        tables[key] = either(tables[key], ids) if key in tables else ids
    return Requested(tables, frozenset(own))


def either(*needed: Ids) -> Ids:
    """Return the rows that are needed by one of several."""
    found: frozenset[int] = frozenset()
    for ids in needed:
        if ids is None:
            return None
        found |= ids
    return found


def holding(parts: Sequence[PartFile], ids: Ids) -> Sequence[PartFile]:
    """Return the parts that may hold some rows; one at least, which has the columns."""
    if ids is None:
        return parts
    found = [p for p in parts if p.span is None or any(p.span[0] <= sample_id <= p.span[1] for sample_id in ids)]
    return found or parts[:1]


def _nodes(tree: Node) -> Iterator[Node]:
    todo: list[Any] = [tree]
    while todo:
        node = todo.pop()
        if isinstance(node, dict):
            yield node
            todo += node.values()
        elif isinstance(node, list):
            todo += node


def _restricted(select: Node) -> dict[int, frozenset[int]]:
    """Return id(node) -> the rows that are needed, of the tables in the FROM of a SELECT that it restricts."""
    leaves, by_key = _leaves(select.get("from_table") or {})
    if select.get("sample"):  # it is drawn before the conditions are applied
        return {}
    found: dict[int, frozenset[int]] = {}
    for qualifier, ids in _conditions(select.get("where_clause") or {}):
        named = [leaf for leaf in leaves if qualifier in ("", _name(leaf))]
        if by_key or (qualifier and len(named) == 1) or (len(leaves) == 1 and named):
            for leaf in leaves if by_key and named else named:
                found[id(leaf)] = found.get(id(leaf), ids) & ids
    return found


def _name(leaf: Node) -> str:
    return str(leaf["alias"] or leaf["table_name"]).lower()


def _leaves(node: Node) -> tuple[list[Node], bool]:
    """Return the tables of a FROM, and whether all of it is joined USING (sample_id). None where that is unknown."""
    kind = node.get("type")
    if kind == "JOIN" and node["ref_type"] == "REGULAR":
        sides = [_leaves(node[side]) for side in ("left", "right")]
        using = KEY in [str(name).lower() for name in node["using_columns"]]
        if not all(leaves for leaves, _ in sides):
            return [], False
        return [leaf for leaves, _ in sides for leaf in leaves], using and all(by_key for _, by_key in sides)
    if kind == "BASE_TABLE" and node["sample"] is None and not node["column_name_alias"]:
        return [node], True
    return [], False


def _conditions(where: Node) -> Iterator[tuple[str, frozenset[int]]]:
    """Yield (table or alias, empty where none is named; sample_ids) of the conditions that every row has to meet."""
    todo = [where]
    while todo:
        node = todo.pop()
        if node.get("type") == "CONJUNCTION_AND":
            todo += node["children"]
        elif node.get("type") == "COMPARE_EQUAL":
            for column, value in ((node["left"], node["right"]), (node["right"], node["left"])):
                yield from _condition(column, [value])
        elif node.get("type") == "COMPARE_IN":
            column, *values = node["children"]
            yield from _condition(column, values)


def _condition(column: Node, values: list[Node]) -> Iterator[tuple[str, frozenset[int]]]:
    path = [str(name).lower() for name in column.get("column_names", ())]
    literals = [value.get("literal") or {} for value in values]
    if path and path[-1] == KEY and all(literal.get("kind") == "INTEGER" for literal in literals):
        yield "".join(path[-2:-1]), frozenset(int(literal["text"]) for literal in literals)
