"""What is known about a method is in its class: `flows/` names no method, and asks no stage what attributes it has.

Three things are looked for in every module of `flows/`, by its syntax tree:

- a string constant that is the name of a method. Names that are also those of a table, a column or a file format are
  only refused where they are compared with `use` or `method`, or are the keys of a mapping that is looked up by them;
- `getattr` and `hasattr` of a stage, a source or a member of one;
- an import of a class that a recipe can name.

`flows/demo` is left out: it plants, builds and checks one recipe, whose stages it has to name.
"""

import ast
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any, get_args

import pyarrow as pa
import pytest
from pydantic import BaseModel

from catalog import schema
from flows.explore.formats import Format
from flows.recipe.recipe import Recipe, stage_models
from tasks.stage import Stage

ROOT = Path(__file__).parents[1]
MODULES = sorted(p.relative_to(ROOT) for p in ROOT.glob("flows/**/*.py") if "demo" not in p.parts)
ALLOWED = {
    ("flows/explore/export.py", "union"),  # a type of DuckDB
}
IMPORTED = {"Report", "Samples"}
"""The manifest that every recipe ends with, and the card that a saved search gets."""


@cache
def models() -> frozenset[type[BaseModel]]:
    """Return every model that a recipe can hold, or that an entry of a recipe expands to."""
    found: set[type[BaseModel]] = set()
    todo: list[Any] = [Recipe]
    while todo:
        one = todo.pop()
        if isinstance(one, type) and issubclass(one, BaseModel):
            if one not in found:
                found.add(one)
                todo += [f.annotation for f in one.model_fields.values()]
        else:
            todo += [a for a in get_args(one) if not isinstance(a, str)]
    expanded = [s for s in Stage.__subclasses__() for s in _subclasses(s)]
    return frozenset(found | {s for s in expanded if s.__module__.startswith("tasks.")})


def _subclasses(model: type[Stage]) -> Iterator[type[Stage]]:
    yield model
    for below in model.__subclasses__():
        yield from _subclasses(below)


def _names(model: type[BaseModel]) -> set[str]:
    fields = (model.model_fields[name] for name in ("use", "method") if name in model.model_fields)
    return {text for field in fields for text in get_args(field.annotation) if isinstance(text, str)}


@cache
def method_names() -> frozenset[str]:
    """Return every `use` and `method` of stages, scorers and selectors."""
    return frozenset(name for model in models() for name in _names(model))


@cache
def other_meanings() -> frozenset[str]:
    """Return the names of tables, columns, roles and file formats."""
    tables = {m.table for m in models() if issubclass(m, Stage) and hasattr(m, "table")} | {"samples"}
    schemas = [value for value in vars(schema).values() if isinstance(value, pa.Schema)]
    columns = {name for s in schemas for name in s.names}
    return frozenset(tables | columns | {"score", *Format})


def findings(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """Yield (line, what is wrong) for a module."""
    switched = {id(constant) for node in ast.walk(tree) for constant in _switched(node)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and node.value in method_names():
            if node.value not in other_meanings() or id(node) in switched:
                yield node.lineno, f"names the method {node.value!r}"
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in ("getattr", "hasattr"):
            if re.search(r"(stage|source|scorer|selector|encoder|semantic|planned)s?$", ast.unparse(node.args[0])):
                yield node.lineno, f"asks {ast.unparse(node.args[0])} whether it has {ast.unparse(node.args[1])}"
        elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith("tasks."):
            named = {m.__name__ for m in models() if _names(m)} - IMPORTED
            yield from ((node.lineno, f"imports the method {a.name}") for a in node.names if a.name in named)


def _switched(node: ast.AST) -> Iterator[ast.Constant]:
    """Yield the constants that a `use` or `method` is compared with, or that a mapping looked up by one has as keys."""
    if isinstance(node, ast.Compare) and _about_method(node):
        yield from (n for n in ast.walk(node) if isinstance(n, ast.Constant))
    elif isinstance(node, ast.Match) and _about_method(node.subject):
        yield from (n for case in node.cases for n in ast.walk(case.pattern) if isinstance(n, ast.Constant))
    elif isinstance(node, ast.Subscript) and isinstance(node.value, ast.Dict) and _about_method(node.slice):
        yield from (n for key in node.value.keys if key for n in ast.walk(key) if isinstance(n, ast.Constant))


def _about_method(node: ast.AST) -> bool:
    return re.search(r"\.(use|method)\b|\['(use|method)'\]|get\('(use|method)'", ast.unparse(node)) is not None


@pytest.mark.parametrize("module", MODULES, ids=str)
def test_flows_knows_no_method(module: Path) -> None:
    found = [
        f"{module}:{line}: {what}"
        for line, what in findings(ast.parse((ROOT / module).read_text()))
        if not any((str(module), name) in ALLOWED and repr(name) in what for _, name in ALLOWED)
    ]
    assert found == [], "declare it on the class of the method (tasks/stage.py)"


@pytest.mark.parametrize(
    "code",
    [
        'LAWS = {"train_clip": 1, "assign": 2}',
        'if stage.use == "report": pass',
        'x = {"score": 1}[scorer["use"]]',
        'steps = getattr(stage, "steps", None)',
        'k = hasattr(planned.stage, "k")',
        "from tasks.cluster import Cluster",
        "from tasks.score.aesthetic_v1 import AestheticV1",
        'match recipe.source.use:\n  case "csv": pass',
    ],
)
def test_the_check_finds_what_it_looks_for(code: str) -> None:
    assert list(findings(ast.parse(code)))


@pytest.mark.parametrize(
    "code",
    [
        'rows = tables["samples"]',
        'role(f) == "score"',
        'getattr(version, "number")',
        "from tasks.cluster import AnyCluster",
    ],
)
def test_the_check_passes_tables_columns_and_unions(code: str) -> None:
    assert list(findings(ast.parse(code))) == []


def test_the_check_knows_the_methods() -> None:
    assert {"train_clip", "deduplicate", "density", "aesthetic_v2", "assign", "parquet"} <= method_names()
    assert len(stage_models()) <= len(models())
