"""SQL predicates: parsed by DuckDB's parser, checked against a list of allowed nodes, split at AND.

A predicate is an expression over the columns of one row, and its value depends on nothing else: no subquery, no
aggregate, no clock, no random number, no file, no setting. Everything that is not on the list is refused.
"""

import json
from collections.abc import Callable, Iterator
from copy import deepcopy
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Final

from catalog.duck import open_database
from catalog.errors import RecipeError, nearest

Node = dict[str, Any]
"""A node of DuckDB's syntax tree, from json_serialize_sql."""

Path = tuple[str, ...]
"""A reference to a column: `width`, `images.width`, `meta.exif.iso`."""

_ALLOWED: Final = frozenset(
    ("COLUMN_REF", "CONSTANT", "COMPARISON", "CONJUNCTION", "OPERATOR", "FUNCTION", "CASE", "CAST", "BETWEEN")
) | {"LAMBDA", "COLLATE", "TYPE"}
_REFUSED: Final = {"SUBQUERY": "a subquery", "WINDOW": "a window function", "STAR": "*", "PARAMETER": "a parameter"}

MAX_CHARS: Final = 200_000
MAX_CONDITIONS: Final = 500
MAX_DEPTH: Final = 100
"""Nesting of expressions; AND and OR of any number of operands count as one level."""

_MACROS: Final = frozenset(["nullif", "if", "fdiv", "fmod", "split_part", "date_add", "days_in_month", "json"])
"""DuckDB's macros that use only allowed functions, except those of lists and arrays."""
_OUTSIDE: Final = frozenset(
    ("age", "current_localtime", "current_localtimestamp", "version", "parse_duckdb_log_message")
) | {"json_serialize_sql", "json_serialize_plan", "json_deserialize_sql"}
"""Functions that DuckDB lists as consistent, but that depend on the clock or on DuckDB's state."""


@dataclass(frozen=True)
class Conjunct:
    """One of the operands of a predicate's top-level AND."""

    text: str
    """The text in the recipe, or DuckDB's rendering if that is not self-contained; one line."""
    tree: Node
    paths: tuple[Path, ...]
    """The columns that it refers to, in order, each once."""

    def sql(self, name: Callable[[Path], Path]) -> str:
        """Return the expression with every column renamed by `name`."""
        tree = deepcopy(self.tree)
        for node in _columns(tree):
            node["column_names"] = list(name(tuple(node["column_names"])))
        return _render(tree)


def connect() -> Any:
    """Return a DuckDB connection that can access only registered tables: no file, no network, no variable of this
    process. One thread; UTC, so that results do not depend on the machine's time zone."""
    return _database().cursor()


@lru_cache(1)
def _database() -> Any:
    return open_database(threads=1, utc=True, max_depth=MAX_DEPTH)


def split(predicate: str) -> list[Conjunct]:
    """Return the conjuncts of a predicate, in order.

    Raises RecipeError if it is not a single expression, or uses anything that is not allowed.
    """
    if len(predicate) > MAX_CHARS:
        raise RecipeError(
            f"the filter {shorten(predicate[:200])} has {len(predicate):,} characters; expected at most {MAX_CHARS:,}: "
            "put long lists into a file, and the file into `lists`"
        )
    try:
        tree = _parse(predicate)
        _check(tree, predicate)
        parts = list(_conjuncts(tree))
        if len(parts) > MAX_CONDITIONS:
            raise RecipeError(f"a filter has {len(parts):,} conditions; expected at most {MAX_CONDITIONS}")
        return [_conjunct(part, predicate) for part in parts]
    except RecursionError:
        raise RecipeError(f"the filter {shorten(predicate)} is nested too deeply") from None


def _conjunct(tree: Node, predicate: str) -> Conjunct:
    paths = dict.fromkeys(tuple(node["column_names"]) for node in _columns(tree))
    return Conjunct(_words(tree, predicate), tree, tuple(paths))


def _conjuncts(tree: Node) -> Iterator[Node]:
    if tree["type"] == "CONJUNCTION_AND":
        for child in tree["children"]:
            yield from _conjuncts(child)
    else:
        yield tree


def _parse(text: str) -> Node:
    """Return the tree of an expression. Raises RecipeError if the text is not a single expression."""
    if "\0" in text:
        raise RecipeError("a filter has a NUL character in it")
    found = json.loads(_one_value("select json_serialize_sql(?)", f"select {text}"))
    if found["error"]:
        raise RecipeError(f"cannot read the filter {shorten(text)}: {one_line(found['error_message'])}")
    nodes = [statement["node"] for statement in found["statements"]]
    if len(nodes) != 1 or not _is_bare(nodes[0]):
        raise RecipeError(
            f"the filter {shorten(text)} is not one expression; expected a condition such as width >= 200"
        )
    tree: Node = nodes[0]["select_list"][0]
    return tree


def _is_bare(node: Node) -> bool:
    """Return whether a statement is only `select <expression>`."""
    if node["type"] != "SELECT_NODE" or len(node["select_list"]) != 1 or node["select_list"][0]["alias"]:
        return False
    clauses = ("modifiers", "where_clause", "group_expressions", "group_sets", "having", "sample", "qualify")
    return node["from_table"]["type"] == "EMPTY" and not any(node[c] for c in clauses) and not node["cte_map"]["map"]


def _check(tree: Node, predicate: str) -> None:
    """Raise RecipeError if the tree contains anything that is not allowed."""
    for node in _nodes(tree):
        if node["class"] not in _ALLOWED:
            what = _REFUSED.get(node["class"], node["class"].lower())
            raise RecipeError(f"the filter {shorten(predicate)} has {what}; expected an expression over columns")
        if node["class"] == "FUNCTION" and (name := node["function_name"].lower()) not in _functions():
            if name not in _all_functions():
                raise RecipeError(f"the filter {shorten(predicate)}: no function {name!r}{nearest(name, _functions())}")
            raise RecipeError(
                f"the filter {shorten(predicate)} may not use {name}(); expected functions of a row's own values"
            )


def _nodes(tree: Any) -> Iterator[Node]:
    """Yield every expression in a tree, itself first."""
    if isinstance(tree, dict):
        if "class" in tree:
            yield tree
        for value in tree.values():
            yield from _nodes(value)
    elif isinstance(tree, list):
        for value in tree:
            yield from _nodes(value)


def _columns(tree: Any, bound: frozenset[str] = frozenset()) -> Iterator[Node]:
    """Yield the references to columns, without the parameters of lambdas."""
    if isinstance(tree, list):
        for value in tree:
            yield from _columns(value, bound)
    elif isinstance(tree, dict):
        if tree.get("class") == "COLUMN_REF":
            if tree["column_names"][0] not in bound:
                yield tree
            return
        if tree.get("class") == "LAMBDA" and tree["syntax_type"] != "SINGLE_ARROW":  # that one is JSON's ->
            bound |= {node["column_names"][0] for node in _columns(tree["lhs"])}
        for value in tree.values():
            yield from _columns(value, bound)


def _words(tree: Node, predicate: str) -> str:
    """Return the recipe's text of an expression if it has the same meaning alone, else DuckDB's rendering."""
    query = f"select {predicate}".encode()
    spans = [(n["query_location"], n["query_location"] + n["query_location_length"]) for n in _nodes(tree)]
    known = [(start, end) for start, end in spans if end <= len(query)]
    found = query[min(s for s, _ in known) : max(e for _, e in known)] if known else b""
    text = found.decode("utf-8", "replace").strip()
    try:
        if text.isprintable() and _without_places(_parse(text)) == _without_places(tree):
            return text
    except RecipeError:
        pass
    return one_line(_render(tree))


def _without_places(tree: Any) -> Any:
    if isinstance(tree, dict):
        return {k: _without_places(v) for k, v in tree.items() if not k.startswith("query_location")}
    return [_without_places(v) for v in tree] if isinstance(tree, list) else tree


def _render(tree: Node) -> str:
    shell = json.loads(_one_value("select json_serialize_sql(?)", "select 1"))
    shell["statements"][0]["node"]["select_list"] = [tree]
    text = str(_one_value("select json_deserialize_sql(?)", json.dumps(shell)))
    return text.removeprefix("SELECT ")


def one_line(text: str) -> str:
    """Return a message of DuckDB without the lines that show the position in the statement."""
    lines = [line.strip() for line in text.split("\n\nLINE ")[0].splitlines()]
    return " ".join(line for line in lines if line).partition(' Use "SET ')[0][:300]


def shorten(text: str) -> str:
    """Shorten a predicate for a message."""
    words = " ".join(text.split())
    return repr(words if len(words) <= 80 else words[:77] + "...")


def _one_value(query: str, argument: str) -> Any:
    with connect() as connection:
        return connection.execute(query, [argument]).fetchall()[0][0]


@lru_cache(1)
def _all_functions() -> frozenset[str]:
    return frozenset(name for name, _, _ in _function_table())


@lru_cache(1)
def _functions() -> frozenset[str]:
    """Return the functions whose value depends only on their arguments."""
    scalar = {name for name, kind, _ in _function_table() if kind == "scalar"}
    unstable = {name for name, kind, stability in _function_table() if kind == "scalar" and stability != "CONSISTENT"}
    macros = {name for name, kind, _ in _function_table() if kind == "macro"}
    chosen = (macros & _MACROS) | {name for name in macros if name.startswith(("list_", "array_"))}
    return frozenset(n for n in (chosen | scalar) - unstable - _OUTSIDE if not n.startswith("__internal"))


@lru_cache(1)
def _function_table() -> list[tuple[str, str, str | None]]:
    """Return (name, kind, stability) of every function of DuckDB; a name may have several rows."""
    query = "select distinct lower(function_name), function_type, stability from duckdb_functions()"
    with connect() as connection:
        return [(str(name), str(kind), stability) for name, kind, stability in connection.execute(query).fetchall()]
