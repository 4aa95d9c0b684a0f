"""Expand fragments: lists of stages in separate files that several recipes share.

    stages:
      - use: download
      - include: filters/datacomp_clip_score.yaml     # looked for beside the recipe, then in the shipped configs/
        with: {threshold: 0.3}

A fragment is a YAML list of stages. `${threshold:-0.28}` in it stands for the value in `with`, or else for the default.
It never reads the environment, so the recipe alone determines what a fragment does. Fragments may include fragments.
"""

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final

import yaml

from catalog.errors import RecipeError, nearest
from flows.recipe.shipped import SHIPPED
from flows.recipe.yaml_text import SHOWN_PATH, Budget, compose, read_text, shown, value_of, where

VARIABLE: Final = re.compile(r"\$\{([A-Za-z_][A-Za-z0-9_]*)(?::-([^}]*))?\}")
INCLUDE_SCHEMA: Final = {
    "type": "object",
    "title": "Include",
    "description": "Insert the stages of a fragment here.",
    "required": ["include"],
    "additionalProperties": False,
    "properties": {
        "include": {"type": "string", "description": "a YAML list of stages: beside the recipe, or in configs/"},
        "with": {"type": "object", "description": "values of the fragment's variables"},
    },
}


def expand(raw: Any, node: yaml.Node | None, name: str, budget: Budget | None = None) -> Any:
    """Return a recipe with every `include` replaced by the stages of its fragment; `node` is changed in the same way.

    Raises RecipeError for a missing fragment, a cycle, a variable without a value, an unused value, and fragments that
    multiply each other.
    """
    stages = raw.get("stages") if isinstance(raw, dict) else None
    if not isinstance(stages, list) or not any(_is_include(entry) for entry in stages):
        return raw
    assert isinstance(node, yaml.MappingNode)
    # The last one: those of a merge key come first and have lower precedence.
    at = max(i for i, (key, _) in enumerate(node.value) if key.value == "stages")
    key, sequence = node.value[at]
    spliced = list(_stages(stages, sequence.value, (Path(name),), budget or Budget(name)))
    marks = sequence.start_mark, sequence.end_mark
    node.value[at] = (key, yaml.SequenceNode(sequence.tag, [n for _, n in spliced], *marks))
    return raw | {"stages": [stage for stage, _ in spliced]}


def _is_include(entry: Any) -> bool:
    return isinstance(entry, dict) and "include" in entry


def _stages(
    entries: list[Any], nodes: list[yaml.Node], chain: tuple[Path, ...], budget: Budget
) -> Iterator[tuple[Any, yaml.Node]]:
    for entry, node in zip(entries, nodes, strict=True):
        if _is_include(entry):
            yield from _fragment(entry, where(node), chain, budget)
        else:
            yield entry, node


def _fragment(
    entry: dict[str, Any], place: str, chain: tuple[Path, ...], budget: Budget
) -> Iterator[tuple[Any, yaml.Node]]:
    """Yield the stages of one fragment, with variables replaced, and their nodes."""
    path, values = _find(entry, place, chain[-1].parent), entry.get("with") or {}
    if not isinstance(values, dict):
        raise RecipeError(f"{place}: `with` is a mapping of the fragment's variables, such as {{threshold: 0.3}}")
    if path.resolve() in [seen.resolve() for seen in chain]:
        raise RecipeError(f"{place}: {path} includes itself: {' -> '.join(str(p) for p in (*chain[1:], path))}")
    try:
        text = read_text(path, "fragment")
    except RecipeError as error:
        raise RecipeError(f"{place}: {error}") from None
    raw, node = compose(text, str(path))
    if not isinstance(raw, list) or not isinstance(node, yaml.SequenceNode):
        raise RecipeError(f"{place}: {path} is not a fragment: expected a list of stages")
    scalars = list(_scalars(node, set()))
    budget.file(len(scalars))
    known = dict.fromkeys(name for _, scalar in scalars for name, _ in VARIABLE.findall(scalar))
    unknown = next((name for name in values if name not in known), None)
    if unknown is not None:
        raise RecipeError(f"{place}: {path} has no variable {shown(str(unknown))}{nearest(str(unknown), known)}")
    for line, scalar in scalars:
        missing = next((n for n, d in VARIABLE.findall(scalar) if n not in values and f"${{{n}:-" not in scalar), None)
        if missing:
            raise RecipeError(f"{place}: {path}:{line} needs `{missing}`: add `with: {{{missing}: ...}}`")
    yield from _stages([_filled(stage, values, budget) for stage in raw], node.value, (*chain, path), budget)


def _find(entry: dict[str, Any], place: str, beside: Path) -> Path:
    """Return the file of a fragment, relative to the including file or to the shipped configs."""
    wrong = next((key for key in entry if key not in ("include", "with")), None)
    if wrong is not None:
        raise RecipeError(f"{place}: `include` takes `with` only, not {shown(wrong)}")
    named = entry["include"]
    if not isinstance(named, str):
        raise RecipeError(f"{place}: `include` names a file; it is {shown(named)}")
    found = next((folder / named for folder in (beside, SHIPPED) if _is_file(folder / named)), None)
    if found is None:
        folder = named.rpartition("/")[0]
        known = [str(Path(folder, p.name)) for f in (beside, SHIPPED) for p in _beside(f / folder)]
        missing = f"{place}: no fragment {shown(named, SHOWN_PATH)}, neither in {beside} nor in {SHIPPED}"
        raise RecipeError(f"{missing}{nearest(named, known)}")
    return found


def _is_file(path: Path) -> bool:
    """Return whether the path exists; it may be a pipe or a device, which `read_text` refuses by name."""
    try:
        return path.exists() and not path.is_dir()
    except OSError:  # a name that is too long, a folder without permission
        return False


def _beside(folder: Path) -> list[Path]:
    try:
        return sorted(folder.glob("*.y*ml")) if folder.is_dir() else []
    except OSError:
        return []


def _scalars(node: yaml.Node, done: set[int]) -> Iterator[tuple[int, str]]:
    """Yield (line, text) of every scalar of a fragment once."""
    if id(node) in done:
        return
    done.add(id(node))
    if isinstance(node, yaml.ScalarNode):
        yield node.start_mark.line + 1, node.value
    else:
        for child in node.value:
            yield from _scalars(child[1] if isinstance(child, tuple) else child, done)


def _filled(value: Any, values: Mapping[str, Any], budget: Budget) -> Any:
    """Return `value` with ${name} replaced in every text; a text that is only ${name} becomes the value itself."""
    if isinstance(value, dict):
        return {k: _filled(v, values, budget) for k, v in value.items()}
    if isinstance(value, list):
        return [_filled(v, values, budget) for v in value]
    if not isinstance(value, str):
        return value
    whole = VARIABLE.fullmatch(value)
    if whole:
        return budget.value(values[whole[1]] if whole[1] in values else value_of(whole[2]))
    return VARIABLE.sub(lambda match: budget.text(str(values.get(match[1], match[2]))), value)
