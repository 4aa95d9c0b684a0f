"""The recipe: the YAML file that says how a dataset is built, checked before anything runs.

    dataset: laion
    source: {use: parquet, path: s3://.../*.parquet}
    stages:
      - use: download
      - use: embed
        ...

Every mistake is one line with the file, the line in it, the field, and the nearest right name.
`- include: FILE` among the stages puts those of a fragment there (`flows/fragments.py`).
`${NAME}` and `${NAME:-default}` stand for environment variables, `overrides` for `--set stage.field=value`.
"""

import os
import re
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Annotated, Any, get_args

import yaml
from pydantic import BaseModel, Field, ValidationError, field_validator
from pydantic_core import ErrorDetails

from catalog.errors import NotFoundError, RecipeError, nearest
from flows.fragments import INCLUDE_SCHEMA, VARIABLE, compose, expand, value_of
from tasks.cluster import AnyCluster
from tasks.deduplicate import AnyDeduplicate
from tasks.download import AnyDownload
from tasks.embed import AnyEmbed
from tasks.filter import AnyFilter
from tasks.prune import AnyPrune
from tasks.publish import Samples
from tasks.report import AnyReport
from tasks.score import AnyScore
from tasks.sources import AnySource
from tasks.stage import Config, Stage
from tasks.train import AnyTrain

_NAME = re.compile(r"[a-z][a-z0-9_]*")
_KINDS = {
    "tuple_type": "expected a list",
    "dict_type": "expected a mapping",
    "model_type": "expected a mapping",
    "model_attributes_type": "expected a mapping, such as `use: download`",
}
"""What pydantic says of Python's types, in YAML's words."""

AnyStage = Annotated[
    AnyDownload | AnyEmbed | AnyTrain | AnyFilter | AnyDeduplicate | AnyCluster | AnyPrune | AnyReport | AnyScore,
    Field(discriminator="use"),
]
"""Every stage that a recipe may name: the union of the families' unions."""


def _or_include(schema: dict[str, Any]) -> None:
    """Let an editor accept `include` among the stages; `parse` has replaced it when the model sees them."""
    schema["items"] = {"anyOf": [schema["items"], INCLUDE_SCHEMA]}


class Prices(Config):
    """What a machine costs. Without it, a plan says that the cost is unknown."""

    currency: str = "USD"
    cpu_hour: float = Field(0, ge=0, description="one core for one hour")
    gpu_hour: float = Field(0, ge=0, description="one GPU for one hour")
    gb_month: float = Field(0, ge=0, description="one GB stored for a month")


class Recipe(Config):
    """How one dataset is built."""

    dataset: str = Field(description="the name of the dataset in its catalog")
    description: str = Field("", description="what it is for; shown in the report")
    catalog: str | None = Field(None, description="folder or object-store URI; default: --catalog, or ./datasets")
    seed: int = Field(0, description="every random choice derives from it")
    prices: Prices | None = None
    source: AnySource
    stages: tuple[AnyStage, ...] = Field((), json_schema_extra=_or_include)

    @field_validator("dataset")
    @classmethod
    def _plain_name(cls, value: str) -> str:
        if not _NAME.fullmatch(value):
            raise ValueError("a dataset's name is lower-case letters, digits and _, and begins with a letter")
        return value

    def steps(self) -> tuple[Stage, ...]:
        """Return every stage that runs, in order: the source, the recipe's stages, and the published manifest.

        Raises RecipeError where two have one name, or write one table that is not `decisions`.
        """
        stages: list[Stage] = [self.source, *(s for stage in self.stages for s in stage.expand()), Samples()]
        writers: dict[str, str] = {}
        for i, stage in enumerate(stages):
            if any(stage.name == other.name for other in stages[:i]):
                raise RecipeError(f"two stages are called {stage.name!r}: give one of them another `name`")
            if stage.table != "decisions" and stage.table in writers:
                raise RecipeError(f"{writers[stage.table]!r} and {stage.name!r} both write the table {stage.table!r}")
            writers[stage.table] = stage.name
        return tuple(stages)


def load(path: str | Path, overrides: Sequence[str] = ()) -> Recipe:
    """Read and check a recipe. Raises RecipeError, or NotFoundError where the file is not there."""
    return parse(read_text(path), str(path), overrides)


def read_text(path: str | Path) -> str:
    """Return the recipe as it is written."""
    try:
        return Path(path).read_text(encoding="utf-8")
    except FileNotFoundError:
        beside = sorted(str(p) for p in Path(path).parent.glob("*.y*ml")) if Path(path).parent.is_dir() else []
        raise NotFoundError(f"no recipe {str(path)!r}{nearest(str(path), beside)}") from None
    except (OSError, UnicodeDecodeError) as error:
        raise RecipeError(f"cannot read the recipe {str(path)!r}: {error}") from None


def parse(text: str, name: str = "recipe", overrides: Sequence[str] = ()) -> Recipe:
    """Check a recipe's text. `name` is what errors call it."""
    raw, node = compose(text, name)
    if not isinstance(raw, dict):
        raise RecipeError(f"{name}: a recipe is a mapping with `dataset`, `source` and `stages`")
    raw = _resolved(expand(raw, node, name), name, overrides)
    try:
        recipe = Recipe.model_validate(raw)
    except ValidationError as error:
        # An unknown field often is the missing one, misspelt: say that first.
        assert node is not None  # an empty file is no mapping
        errors = sorted(error.errors(), key=lambda e: e["type"] == "missing")
        raise RecipeError("\n".join(_explain(e, raw, node) for e in errors[:5])) from None
    try:
        recipe.steps()
    except RecipeError as wrong:
        raise RecipeError(f"{name}: {wrong}") from None
    return recipe


def resolved_text(text: str, name: str = "recipe", overrides: Sequence[str] = ()) -> str:
    """Return a recipe's text with fragments, variables and overrides in it; the text itself where it has none."""
    raw, node = compose(text, name)
    resolved = _resolved(expand(raw, node, name), name, overrides)
    return text if resolved == raw else yaml.safe_dump(resolved, sort_keys=False, allow_unicode=True)


def _resolved(raw: dict[str, Any], name: str, overrides: Sequence[str]) -> dict[str, Any]:
    resolved: dict[str, Any] = _with_environment(raw, name)
    for override in overrides:
        _override(resolved, override)
    return resolved


def _with_environment(value: Any, name: str) -> Any:
    """Return `value` with ${NAME} replaced in every string."""
    if isinstance(value, dict):
        return {k: _with_environment(v, name) for k, v in value.items()}
    if isinstance(value, list):
        return [_with_environment(v, name) for v in value]
    if not isinstance(value, str):
        return value

    def replace(match: re.Match[str]) -> str:
        found = os.environ.get(match[1], match[2])
        if found is None:
            raise RecipeError(
                f"{name}: the environment variable {match[1]} is not set (or write ${{{match[1]}:-default}})"
            )
        return found

    replaced = VARIABLE.sub(replace, value)
    return replaced if replaced == value else value_of(replaced)


def _override(raw: dict[str, Any], override: str) -> None:
    """Apply `stage.field=value` (or `field=value` of the recipe itself) to the raw recipe."""
    path, separator, value = override.partition("=")
    if not separator:
        raise RecipeError(f"--set {override!r}: expected stage.field=value")
    head, *rest = path.strip().split(".")
    stages = [s for s in raw.get("stages") or [] if isinstance(s, dict)]
    named = {str(s.get("name") or s.get("use")): s for s in stages}
    target: Any = raw
    if rest and head in named:
        target = named[head]
    elif rest and isinstance(raw.get(head), dict):
        target = raw[head]
    elif rest and head == "prices":
        target = raw["prices"] = {}
    elif rest:
        raise RecipeError(f"--set {override!r}: no stage {head!r}{nearest(head, [*named, 'source'])}")
    else:
        rest = [head]
    for key in rest[:-1]:
        target = _descend(target, key, override)
    last = _index(target, rest[-1], override) if isinstance(target, list) else rest[-1]
    target[last] = value_of(value)


def _descend(target: Any, key: str, override: str) -> Any:
    """Return the mapping or list that `key` names in another; a new mapping where there is nothing."""
    at = _index(target, key, override) if isinstance(target, list) else key
    if isinstance(target, dict) and target.get(key) is None:
        target[key] = {}
    found = target[at]
    if not isinstance(found, dict | list):
        raise RecipeError(f"--set {override!r}: {key!r} is {found!r}, which has no fields")
    return found


def _index(target: list[Any], key: str, override: str) -> int:
    if not key.isdigit() or int(key) >= len(target):
        raise RecipeError(f"--set {override!r}: {key!r} is no position in a list of {len(target)}")
    return int(key)


def _explain(error: ErrorDetails, raw: dict[str, Any], node: yaml.Node) -> str:
    """Return one line: file, line, field, what is wrong, the nearest right thing."""
    kind, context = error["type"], error.get("ctx", {})
    where, field, owner = _locate(error["loc"], raw, node, absent=kind == "missing")
    last = str(error["loc"][-1]) if error["loc"] else ""
    if kind == "extra_forbidden":
        return f"{where}: {field}: unknown field{nearest(last, _fields_of(owner, field))}"
    if kind == "union_tag_invalid":
        expected = re.findall(r"'([^']+)'", str(context.get("expected_tags", "")))
        key = str(context.get("discriminator", "")).strip("'")
        return f"{where}: {field}: unknown {key} {context.get('tag')!r}{nearest(str(context.get('tag')), expected)}"
    if kind == "union_tag_not_found":
        key = str(context.get("discriminator", "")).strip("'")
        return f"{where}: {field}: it lacks `{key}`, which says what it is"
    if kind == "missing":
        return f"{where}: {field}: is missing"
    message = _KINDS.get(kind) or error["msg"].removeprefix("Value error, ")
    got = error.get("input")
    shown = f" (got {got!r})" if isinstance(got, str | int | float | bool) or got is None else ""
    return f"{where}: {field}: {message[:1].lower()}{message[1:]}{shown}"


def _locate(loc: Sequence[int | str], raw: Any, node: yaml.Node, absent: bool) -> tuple[str, str, Mapping[str, Any]]:
    """Return (file:line, dotted field, innermost mapping) of an error; names of union members are passed over.

    `absent`: the last of `loc` is a field that is not there.
    """
    value, mark = raw, node.start_mark
    names: list[str] = []
    owner: Mapping[str, Any] = raw
    for step in loc:
        if isinstance(value, list) and isinstance(step, int) and step < len(value):
            value = value[step]
            node = node.value[step] if isinstance(node, yaml.SequenceNode) and step < len(node.value) else node
            label = (value.get("name") or value.get("use")) if isinstance(value, dict) else None
            names[-1:] = [f"{names[-1]}[{label or step}]"] if names else []
        elif isinstance(value, dict) and step in value:
            owner, value = value, value[step]
            names.append(str(step))
            pair = next((p for p in getattr(node, "value", []) if getattr(p[0], "value", None) == step), None)
            if isinstance(node, yaml.MappingNode) and pair:
                mark, node = pair[0].start_mark, pair[1]
                continue
        elif absent and step == loc[-1] and isinstance(value, dict):
            owner = value
            names.append(str(step))
        mark = node.start_mark
    return f"{mark.name}:{mark.line + 1}", ".".join(names) or "recipe", owner


def _fields_of(owner: Mapping[str, Any], field: str) -> list[str]:
    """Return the fields that the model of a raw mapping has."""
    if "." not in field:
        return list(Recipe.model_fields)
    for model in stage_models():
        uses = get_args(model.model_fields["use"].annotation)
        method = model.model_fields.get("method")
        if owner.get("use") in uses and (method is None or owner.get("method") in get_args(method.annotation)):
            return list(model.model_fields)
    return sorted({f for model in _nested(Recipe) for f in model.model_fields})


@cache
def stage_models() -> tuple[type[Stage], ...]:
    """Return every stage that a recipe may name, sources too."""
    return tuple(dict.fromkeys(m for m in _nested(Recipe) if issubclass(m, Stage)))


def _nested(model: Any, seen: frozenset[Any] = frozenset()) -> list[type[BaseModel]]:
    """Return all models that the fields of one may hold."""
    found: list[type[BaseModel]] = []
    for field in model.model_fields.values():
        todo = [field.annotation]
        while todo:
            annotation = todo.pop()
            if isinstance(annotation, type) and issubclass(annotation, BaseModel) and annotation not in seen:
                seen |= {annotation}
                found += [annotation, *_nested(annotation, seen)]
            todo += [a for a in get_args(annotation) if not isinstance(a, str)]
    return found
