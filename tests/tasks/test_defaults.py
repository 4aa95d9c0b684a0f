"""A default that changes means other results for the same recipe, so the `version` of the stage has to be raised.

`defaults.json` lists the defaults of every stage beside its version. `make schema` writes it.
"""

import json
from inspect import isabstract
from pathlib import Path
from typing import Any, Final, get_args

import pytest
from pydantic_core import to_jsonable_python

from flows.recipe.recipe import stage_models
from tasks.publish import Samples
from tasks.stage import Config, Resources, Stage

FILE: Final = Path(__file__).with_name("defaults.json")

Record = dict[str, Any]
"""Of a stage: its `version`, and its `defaults` by `Class.field`."""


def configurations(model: type[Config]) -> list[type[Config]]:
    """Return a stage and the classes of the configurations that its fields may hold, recursively."""
    found: list[type[Config]] = []
    todo: list[Any] = [model]
    while todo:
        kind = todo.pop()
        if not (isinstance(kind, type) and issubclass(kind, Config)):
            todo += get_args(kind)
        elif kind not in (*found, Resources):  # resources change no result
            found.append(kind)
            todo += [field.annotation for field in kind.model_fields.values()]
    return found


def record_of(model: type[Stage]) -> Record:
    """Return the version of a stage and the defaults of all optional fields in it."""
    defaults = {
        f"{kind.__name__}.{name}": to_jsonable_python(field.get_default(call_default_factory=True, validated_data={}))
        for kind in configurations(model)
        for name, field in kind.model_fields.items()
        if not field.is_required() and name != "resources"
    }
    return {"version": model.version, "defaults": defaults}


def subclasses(model: type[Any]) -> set[type[Any]]:
    """Return all subclasses of a class."""
    return {one for child in model.__subclasses__() for one in (child, *subclasses(child))}


def records() -> dict[str, Record]:
    """Return the record of every stage that runs, by its class."""
    stages = [stage for stage in subclasses(Stage) if stage.__module__.startswith("tasks.") and not isabstract(stage)]
    assert {Samples, *stage_models()} <= {*stages}
    return {
        f"{s.__module__}.{s.__name__}": record_of(s) for s in sorted(stages, key=lambda s: (s.__module__, s.__name__))
    }


def changed(before: Record, after: Record) -> list[str]:
    """Return the fields whose default changed while the version did not. Fields may be added and removed."""
    if before["version"] != after["version"]:
        return []
    old, new = before["defaults"], after["defaults"]
    return [name for name in old if name in new and old[name] != new[name]]


def test_a_default_changes_only_with_the_version() -> None:
    recorded, now = json.loads(FILE.read_text()), records()
    wrong = {name: changed(recorded[name], now[name]) for name in recorded if name in now}
    assert {name: fields for name, fields in wrong.items() if fields} == {}, "raise the `version` of these stages"
    assert recorded == now, "defaults.json is out of date: run `make schema`"


@pytest.mark.parametrize("version", [1, 2])
def test_a_changed_default_is_found(version: int) -> None:
    before = {"version": 1, "defaults": {"A.x": 1, "A.gone": 3}}
    after = {"version": version, "defaults": {"A.x": 2, "A.new": 3}}
    assert changed(before, after) == (["A.x"] if version == 1 else [])


if __name__ == "__main__":
    FILE.write_text(json.dumps(records(), indent=1, sort_keys=True) + "\n")
