"""Fragments: stages that several recipes share, in a file of their own.

    stages:
      - use: download
      - include: filters/datacomp_clip_score.yaml     # looked for beside the recipe, then in the shipped configs/
        with: {threshold: 0.3}

A fragment is a YAML list of stages. `${threshold:-0.28}` in it stands for what `with` says, or else for the default;
never for the environment: what a fragment does is written in the recipe. Fragments may include fragments.
"""

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final

import yaml

from catalog.errors import RecipeError, nearest

SHIPPED: Final = Path(__file__).parents[1] / "configs"
VARIABLE: Final = re.compile(r"\$\{([A-Za-z_][A-Za-z0-9_]*)(?::-([^}]*))?\}")
INCLUDE_SCHEMA: Final = {
    "type": "object",
    "title": "Include",
    "description": "The stages of a fragment, in this place.",
    "required": ["include"],
    "additionalProperties": False,
    "properties": {
        "include": {"type": "string", "description": "a YAML list of stages: beside the recipe, or in configs/"},
        "with": {"type": "object", "description": "values of the fragment's variables"},
    },
}


class Loader(yaml.SafeLoader):
    """YAML as recipes mean it: `no` is a word (a resize mode of img2dataset's), only true and false are not."""


Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if tag != "tag:yaml.org,2002:bool"]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
Loader.add_implicit_resolver("tag:yaml.org,2002:bool", re.compile(r"^(?:true|True|false|False)$"), list("tTfF"))


def load_yaml(text: str) -> Any:
    """Return what a YAML text says. Raises yaml.YAMLError."""
    return yaml.load(text, Loader=Loader)  # noqa: S506  # a SafeLoader, but for its booleans


def value_of(text: str) -> Any:
    """Return what a text says as YAML, or the text itself where it is none: `*.parquet` is a glob, no alias."""
    try:
        return load_yaml(text)
    except yaml.YAMLError:
        return text


def compose(text: str, name: str) -> tuple[Any, yaml.Node | None]:
    """Return what a YAML text says, and its nodes, whose marks know the line and the file. Raises RecipeError."""
    loader = Loader(text)
    loader.name = name
    try:
        node = loader.get_single_node()
        if node is not None:
            _check_keys(node, (), set())
        return load_yaml(text), node
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f"{name}:{mark.line + 1}" if mark else name
        raise RecipeError(f"{where}: not YAML: {getattr(error, 'problem', None) or error}") from None
    finally:
        loader.dispose()


def _check_keys(node: yaml.Node, above: tuple[yaml.Node, ...], done: set[int]) -> None:
    """Raise RecipeError where a mapping says a thing twice (YAML would take the last), or a node is inside itself."""
    if any(node is one for one in above):
        raise RecipeError(f"{_where(node)}: an alias stands inside of what it names")
    if id(node) in done or not isinstance(node, yaml.CollectionNode):
        return
    done.add(id(node))
    seen: dict[str, int] = {}
    for child in node.value:
        key, value = child if isinstance(child, tuple) else (None, child)
        if isinstance(key, yaml.ScalarNode):
            if key.value in seen:
                raise RecipeError(f"{_where(key)}: {key.value}: is said twice, in line {seen[key.value]} too")
            seen[key.value] = key.start_mark.line + 1
        _check_keys(value, (*above, node), done)


def _where(node: yaml.Node) -> str:
    return f"{node.start_mark.name}:{node.start_mark.line + 1}"


def expand(raw: Any, node: yaml.Node | None, name: str) -> Any:
    """Return a recipe with the fragments' stages in place of `include`; `node` gets their nodes in the same places.

    Raises RecipeError: no such fragment, a cycle, a variable that nobody fills, a value that nobody reads.
    """
    stages = raw.get("stages") if isinstance(raw, dict) else None
    if not isinstance(stages, list) or not any(_is_include(entry) for entry in stages):
        return raw
    assert isinstance(node, yaml.MappingNode)
    at = next(i for i, (key, _) in enumerate(node.value) if key.value == "stages")
    key, sequence = node.value[at]
    spliced = list(_stages(stages, sequence.value, (Path(name),)))
    marks = sequence.start_mark, sequence.end_mark
    node.value[at] = (key, yaml.SequenceNode(sequence.tag, [n for _, n in spliced], *marks))
    return raw | {"stages": [stage for stage, _ in spliced]}


def _is_include(entry: Any) -> bool:
    return isinstance(entry, dict) and "include" in entry


def _stages(entries: list[Any], nodes: list[yaml.Node], chain: tuple[Path, ...]) -> Iterator[tuple[Any, yaml.Node]]:
    for entry, node in zip(entries, nodes, strict=True):
        if _is_include(entry):
            yield from _fragment(entry, _where(node), chain)
        else:
            yield entry, node


def _fragment(entry: dict[str, Any], where: str, chain: tuple[Path, ...]) -> Iterator[tuple[Any, yaml.Node]]:
    """Yield the stages of one fragment, filled in, with their nodes."""
    path, values = _find(entry, where, chain[-1].parent), entry.get("with") or {}
    if not isinstance(values, dict):
        raise RecipeError(f"{where}: `with` is a mapping of the fragment's variables, such as {{threshold: 0.3}}")
    if path.resolve() in [seen.resolve() for seen in chain]:
        raise RecipeError(f"{where}: {path} includes itself: {' -> '.join(str(p) for p in (*chain[1:], path))}")
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise RecipeError(f"{where}: cannot read the fragment {str(path)!r}: {error}") from None
    raw, node = compose(text, str(path))
    if not isinstance(raw, list) or not isinstance(node, yaml.SequenceNode):
        raise RecipeError(f"{where}: {path} is no fragment: expected a list of stages")
    known = dict.fromkeys(name for _, scalar in _scalars(raw, node) for name, _ in VARIABLE.findall(scalar))
    unknown = next((name for name in values if name not in known), None)
    if unknown is not None:
        raise RecipeError(f"{where}: {path} has no variable {str(unknown)!r}{nearest(str(unknown), known)}")
    for line, scalar in _scalars(raw, node):
        missing = next((n for n, d in VARIABLE.findall(scalar) if n not in values and f"${{{n}:-" not in scalar), None)
        if missing:
            raise RecipeError(f"{where}: {path}:{line} needs `{missing}`: say `with: {{{missing}: ...}}`")
    yield from _stages([_filled(stage, values) for stage in raw], node.value, (*chain, path))


def _find(entry: dict[str, Any], where: str, beside: Path) -> Path:
    """Return the file of a fragment: beside the file that includes it, or among the shipped ones."""
    wrong = next((key for key in entry if key not in ("include", "with")), None)
    if wrong is not None:
        raise RecipeError(f"{where}: `include` takes `with` only, not {wrong!r}")
    said = entry["include"]
    if not isinstance(said, str):
        raise RecipeError(f"{where}: `include` names a file; it is {said!r}")
    found = next((folder / said for folder in (beside, SHIPPED) if (folder / said).is_file()), None)
    if found is None:
        folder = said.rpartition("/")[0]
        known = [str(Path(folder, p.name)) for f in (beside, SHIPPED) for p in sorted((f / folder).glob("*.y*ml"))]
        raise RecipeError(f"{where}: no fragment {said!r}, neither in {beside} nor in {SHIPPED}{nearest(said, known)}")
    return found


def _scalars(value: Any, node: yaml.Node) -> Iterator[tuple[int, str]]:
    """Yield (line, text) of every text in a fragment."""
    if isinstance(node, yaml.SequenceNode):
        for child, child_node in zip(value, node.value, strict=True):
            yield from _scalars(child, child_node)
    elif isinstance(node, yaml.MappingNode):
        for key_node, child_node in node.value:
            yield from _scalars(value.get(key_node.value), child_node)
    elif isinstance(value, str):
        yield node.start_mark.line + 1, value


def _filled(value: Any, values: Mapping[str, Any]) -> Any:
    """Return `value` with ${name} replaced in every text; where that is all of a text, by the value as it is."""
    if isinstance(value, dict):
        return {k: _filled(v, values) for k, v in value.items()}
    if isinstance(value, list):
        return [_filled(v, values) for v in value]
    if not isinstance(value, str):
        return value
    whole = VARIABLE.fullmatch(value)
    if whole:
        return values[whole[1]] if whole[1] in values else value_of(whole[2])
    return VARIABLE.sub(lambda match: str(values.get(match[1], match[2])), value)
