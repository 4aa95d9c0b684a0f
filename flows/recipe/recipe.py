"""The recipe: the YAML file that defines how a dataset is built, checked before anything runs.

    dataset: laion
    source: {use: parquet, path: s3://.../*.parquet}
    stages:
      - use: download
      - use: embed
        ...

A mistake is reported in one line with the file, the line number, the field, and the nearest valid name.
`- include: FILE` among the stages inserts those of a fragment (`flows/recipe/fragments.py`).
`${NAME}` and `${NAME:-default}` stand for environment variables, `overrides` for `--set stage.field=value`.
"""

import json
import os
import re
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Annotated, Any, Final, get_args

import yaml
from pydantic import BaseModel, Field, ValidationError, field_validator
from pydantic_core import ErrorDetails

from catalog.errors import NotFoundError, RecipeError, nearest
from catalog.wording import plain_message
from flows.recipe import yaml_text
from flows.recipe.fragments import INCLUDE_SCHEMA, VARIABLE, expand
from flows.recipe.guards import Guards
from flows.recipe.yaml_text import MAX_DEPTH, Budget, check_text, compose, shown, value_of
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

MAX_STAGES: Final = 1000
_NAME = re.compile(r"[a-z][a-z0-9_]*")
_KINDS = {
    "tuple_type": "expected a list",
    "dict_type": "expected a mapping",
    "invalid_key": "expected a name as the key",
    "model_type": "expected a mapping",
    "model_attributes_type": "expected a mapping, such as `use: download`",
}
"""Messages of pydantic about Python types -> messages about YAML."""

AnyStage = Annotated[
    AnyDownload | AnyEmbed | AnyTrain | AnyFilter | AnyDeduplicate | AnyCluster | AnyPrune | AnyReport | AnyScore,
    Field(discriminator="use"),
]
"""Every stage that a recipe may name: the union of the families' unions."""


def _or_include(schema: dict[str, Any]) -> None:
    """Accept `include` among the stages in the JSON Schema; `parse` replaces it before validation."""
    schema["items"] = {"anyOf": [schema["items"], INCLUDE_SCHEMA]}


class Prices(Config):
    """What a machine costs. Without prices, a plan reports the cost as unknown."""

    currency: str = "USD"
    cpu_hour: float = Field(0, ge=0, description="one core for one hour")
    gpu_hour: float = Field(0, ge=0, description="one GPU for one hour")
    gb_month: float = Field(0, ge=0, description="one GB stored for a month")


class Recipe(Config):
    """The definition of one dataset."""

    dataset: str = Field(description="the name of the dataset in its catalog")
    description: str = Field("", description="what it is for; shown in the report")
    catalog: str | None = Field(None, description="folder or object-store URI; default: --catalog, or ./datasets")
    seed: int = Field(0, ge=-(2**63), lt=2**63, description="every random choice derives from it")
    prices: Prices | None = None
    guards: Guards = Field(Guards(), description="what holds a version back until somebody approves it")
    versions: dict[str, str] = Field(
        {}, alias="from", description="versions of other datasets of the catalog that stages read: {real: laion@3}"
    )
    source: AnySource
    stages: tuple[AnyStage, ...] = Field((), max_length=MAX_STAGES, json_schema_extra=_or_include)

    @field_validator("dataset")
    @classmethod
    def _plain_name(cls, value: str) -> str:
        if not _NAME.fullmatch(value):
            raise ValueError("a dataset's name is lower-case letters, digits and _, and begins with a letter")
        return value

    @field_validator("versions")
    @classmethod
    def _plain_names(cls, value: dict[str, str]) -> dict[str, str]:
        for name in value:
            if not _NAME.fullmatch(name):
                raise ValueError(f"{shown(name)} cannot name a version: lower-case letters, digits and _")
        return value

    def steps(self) -> tuple[Stage, ...]:
        """Return every stage that runs, in order: the source, the recipe's stages, and the published manifest.

        Raises RecipeError if two stages have the same name, or write the same table and do not share it.
        """
        stages: list[Stage] = [self.source, *(s for stage in self.stages for s in stage.expand()), Samples()]
        names: set[str] = set()
        writers: dict[str, str] = {}
        for stage in stages:
            if stage.name in names:
                raise RecipeError(f"two stages are named {stage.name!r}: give one of them another `name`")
            names.add(stage.name)
            if stage.table in writers and not stage.shares_table:
                raise RecipeError(f"{writers[stage.table]!r} and {stage.name!r} both write the table {stage.table!r}")
            writers[stage.table] = stage.name
        return tuple(stages)


def read_text(path: str | Path) -> str:
    """Return the text of a recipe file. Raises NotFoundError, with the recipes beside it."""
    try:
        return yaml_text.read_text(path)
    except NotFoundError as error:
        folder = Path(path).parent
        beside = sorted(str(p) for p in folder.glob("*.y*ml")) if folder.is_dir() else []
        raise NotFoundError(f"{error}{nearest(str(path), beside)}") from None


def parse(text: str, name: str = "recipe", overrides: Sequence[str] = ()) -> Recipe:
    """Check the text of a recipe. Errors refer to it as `name`."""
    return resolve(text, name, overrides)[0]


def resolve(
    text: str, name: str = "recipe", overrides: Sequence[str] = (), resolved: bool = False
) -> tuple[Recipe, str]:
    """Check the text of a recipe; return the recipe, and the resolved text that was checked.

    The resolved text includes fragments, variables and overrides, so it cannot change before it is built. If
    `resolved`, the text has been resolved before: it depends on no other file and no environment variable. Raises
    RecipeError with the file and line of the original text.
    """
    raw, node, as_written = _composed(text, name, overrides, resolved)
    try:
        recipe = Recipe.model_validate(raw)
    except ValidationError as error:
        # An unknown field is often a misspelling of the missing one: report it first.
        errors = sorted(_causes(error.errors()), key=lambda e: e["type"] == "missing")
        raise RecipeError("\n".join(_explain(e, raw, node) for e in errors[:5])) from None
    try:
        recipe.steps()
    except RecipeError as wrong:
        raise RecipeError(f"{name}: {wrong}") from None
    return recipe, text if as_written else dump(raw)


def dump(resolved: Mapping[str, Any]) -> str:
    """Return a resolved recipe as YAML."""
    return yaml.dump(resolved, Dumper=_Dumper, sort_keys=False, allow_unicode=True)


class _Dumper(yaml.SafeDumper):
    """Writes no aliases: a value that a variable inserted twice is written twice."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


def _composed(
    text: str, name: str, overrides: Sequence[str], resolved: bool = False
) -> tuple[dict[str, Any], yaml.Node, bool]:
    """Return a recipe with fragments, variables and overrides applied, its nodes, and whether it equals the text."""
    raw, node = compose(text, name)
    if not isinstance(raw, dict) or node is None:
        raise RecipeError(f"{name}: a recipe is a mapping with `dataset`, `source` and `stages`")
    budget = Budget(name)
    filled: dict[str, Any] = raw if resolved else _with_environment(expand(raw, node, name, budget), name, budget)
    as_written = filled == raw and not overrides
    for override in overrides:
        _override(filled, override, budget)
    return filled, node, as_written


def _with_environment(value: Any, name: str, budget: Budget) -> Any:
    """Return `value` with ${NAME} replaced in every string."""
    if isinstance(value, dict):
        return {k: _with_environment(v, name, budget) for k, v in value.items()}
    if isinstance(value, list):
        return [_with_environment(v, name, budget) for v in value]
    if not isinstance(value, str):
        return value

    def replace(match: re.Match[str]) -> str:
        found = os.environ.get(match[1], match[2])
        if found is None:
            raise RecipeError(
                f"{name}: the environment variable {match[1]} is not set (or write ${{{match[1]}:-default}})"
            )
        return budget.text(found)

    replaced = VARIABLE.sub(replace, value)
    if replaced == value:
        return value
    check_text(replaced, f"{name}: {shown(value)}")
    return budget.value(value_of(replaced))


def _override(raw: dict[str, Any], override: str, budget: Budget) -> None:
    """Apply `stage.field=value` (or `field=value` of the recipe itself) to the raw recipe."""
    path, separator, value = override.partition("=")
    if not separator:
        raise RecipeError(f"--set {shown(override)}: expected stage.field=value")
    check_text(override, "--set")
    head, *rest = path.strip().split(".")
    if len(rest) > MAX_DEPTH // 2:
        raise RecipeError(f"--set {shown(override)}: names more than {MAX_DEPTH // 2} fields")
    listed = raw.get("stages")
    stages = [s for s in listed if isinstance(s, dict)] if isinstance(listed, list) else []
    named = {str(s.get("name") or s.get("use")): s for s in stages}
    target: Any = raw
    if rest and head in named:
        target = named[head]
    elif rest and isinstance(raw.get(head), dict):
        target = raw[head]
    elif rest and head in ("prices", "guards"):
        target = raw[head] = {}
    elif rest:
        raise RecipeError(f"--set {shown(override)}: no stage {shown(head)}{nearest(head, [*named, 'source'])}")
    else:
        rest = [head]
    for key in rest[:-1]:
        target = _descend(target, key, override)
    last = _index(target, rest[-1], override) if isinstance(target, list) else rest[-1]
    target[last] = budget.value(value_of(value))


def _descend(target: Any, key: str, override: str) -> Any:
    """Return the mapping or list under `key`; adds an empty mapping if there is none."""
    at = _index(target, key, override) if isinstance(target, list) else key
    if isinstance(target, dict) and target.get(key) is None:
        target[key] = {}
    found = target[at]
    if not isinstance(found, dict | list):
        raise RecipeError(f"--set {shown(override)}: {shown(key)} is {shown(found)}, which has no fields")
    return found


def _index(target: list[Any], key: str, override: str) -> int:
    if not (key.isdecimal() and len(key) < 10) or int(key) >= len(target):
        raise RecipeError(f"--set {shown(override)}: {shown(key)} is not a position in a list of {len(target)}")
    return int(key)


def _causes(errors: Sequence[ErrorDetails]) -> list[ErrorDetails]:
    """Return the errors without those that follow from others: a list is too short because its items are wrong."""

    def follows(error: ErrorDetails) -> bool:
        place = error["loc"]
        return any(other["loc"][: len(place)] == place and other is not error for other in errors)

    return [error for error in errors if error["type"] != "too_short" or not follows(error)]


def _explain(error: ErrorDetails, raw: dict[str, Any], node: yaml.Node) -> str:
    """Return one line with the file, line, field, problem, and the nearest valid name."""
    kind, context = error["type"], error.get("ctx", {})
    where, field, owner = _locate(error["loc"], raw, node, absent=kind == "missing")
    last = str(error["loc"][-1]) if error["loc"] else ""
    if kind == "extra_forbidden":
        fields = list(Guards.model_fields) if owner is raw.get("guards") else _fields_of(owner, owner is raw)
        return f"{where}: {field}: unknown field{nearest(last, fields)}"
    if kind == "union_tag_invalid":
        expected = re.findall(r"'([^']+)'", str(context.get("expected_tags", "")))
        key = str(context.get("discriminator", "")).strip("'")
        return (
            f"{where}: {field}: unknown {key} {shown(context.get('tag'))}{nearest(str(context.get('tag')), expected)}"
        )
    if kind == "union_tag_not_found":
        key = str(context.get("discriminator", "")).strip("'")
        return f"{where}: {field}: it lacks `{key}`, which names its kind"
    if kind == "missing":
        return f"{where}: {field}: is missing"
    message = _KINDS.get(kind) or plain_message(error["msg"])
    got = error.get("input")
    found = f" (got {shown(got)})" if isinstance(got, str | int | float | bool) or got is None else ""
    return f"{where}: {field}: {message[:1].lower()}{message[1:]}{found}"


def _locate(loc: Sequence[int | str], raw: Any, node: yaml.Node, absent: bool) -> tuple[str, str, Mapping[str, Any]]:
    """Return (file:line, dotted field, innermost mapping) of an error; names of union members are skipped.

    `absent`: the last item of `loc` is a missing field.
    """
    value, mark = raw, node.start_mark
    names: list[str] = []
    owner: Mapping[str, Any] = raw
    for step in loc:
        if isinstance(value, list) and isinstance(step, int) and step < len(value):
            value = value[step]
            node = node.value[step] if isinstance(node, yaml.SequenceNode) and step < len(node.value) else node
            label = (value.get("name") or value.get("use")) if isinstance(value, dict) else None
            names[-1:] = [f"{names[-1]}[{_key(label or step)}]"] if names else []
        elif isinstance(value, dict) and (key := _key_of(value, step)) is not None:
            owner, value = value, value[key]
            names.append(_key(step))
            pair = next((p for p in getattr(node, "value", []) if getattr(p[0], "value", None) == str(step)), None)
            if isinstance(node, yaml.MappingNode) and pair:
                mark, node = pair[0].start_mark, pair[1]
                continue
        elif absent and step == loc[-1] and isinstance(value, dict):
            owner = value
            names.append(_key(step))
        mark = node.start_mark
    return f"{mark.name}:{mark.line + 1}", ".".join(names) or "recipe", owner


def _key_of(value: Mapping[Any, Any], step: int | str) -> Any:
    """Return the key that an item of an error's location refers to (pydantic writes the key 1 as `1`), or None."""
    return step if step in value else next((key for key in value if key is not None and str(key) == str(step)), None)


def _key(key: object) -> str:
    """Return a key as part of a field's dotted path."""
    text = str(key)
    return text if text.isprintable() and len(text) <= 100 else shown(text)


def _fields_of(owner: Mapping[str, Any], is_recipe: bool) -> list[str]:
    """Return the fields of the model of a raw mapping."""
    if is_recipe:
        return [field.alias or name for name, field in Recipe.model_fields.items()]
    if model := stage_model(owner.get("use"), owner.get("method")):
        return list(model.model_fields)
    return sorted({f for model in _nested(Recipe) for f in model.model_fields})


def json_schema() -> str:
    """Return the JSON Schema of recipes, as `configs/recipe.schema.json` has it."""
    return json.dumps(Recipe.model_json_schema(), indent=1, sort_keys=True)


@cache
def stage_models() -> tuple[type[Stage], ...]:
    """Return every stage that a recipe may name, sources included."""
    return tuple(dict.fromkeys(m for m in _nested(Recipe) if issubclass(m, Stage)))


def stage_model(use: object, method: object = None) -> type[Stage] | None:
    """Return the stage of this name; of several methods with the same `use`, the one of this `method`. None for none.

    Only stages that a recipe can name are known, not those that their entries expand to.
    """
    for model in stage_models():
        if use in get_args(model.model_fields["use"].annotation):
            field = model.model_fields.get("method")
            if field is None or method in get_args(field.annotation):
                return model
    return None


def _nested(model: Any, seen: frozenset[Any] = frozenset()) -> list[type[BaseModel]]:
    """Return all models that the fields of a model may hold, recursively."""
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
