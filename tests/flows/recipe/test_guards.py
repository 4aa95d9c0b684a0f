"""The conditions under which a recipe holds a version: what can be written, and what each mistake is answered with."""

import textwrap
from pathlib import Path
from typing import Any

import jsonschema  # type: ignore[import-untyped]
import pytest

from catalog.dataset import Catalog
from catalog.errors import RecipeError
from flows.build.plan import make_plan
from flows.recipe import guards as module
from flows.recipe.guards import ANY, Guards
from flows.recipe.recipe import parse
from tasks.reasons import NETWORK, REASONS

RECIPE = "dataset: laion\nsource: {use: parquet, path: urls}\nguards:\n  outage: false\n"


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("min_row: 5", "guards.min_row: unknown field; did you mean 'min_rows'?"),
        ("min_rows: 0", "guards.min_rows: input should be greater than or equal to 1"),
        ("min_rows: true", "guards.min_rows: input should be a valid integer"),
        ("min_rows: many", "guards.min_rows: input should be a valid integer"),
        ("max_failed: 1.5", "guards.max_failed: input should be less than or equal to 1"),
        ("max_failed: soon", "guards.max_failed: expected a share from 0 to 1, or a mapping of reasons to shares"),
        ("max_failed: true", "guards.max_failed: expected a share from 0 to 1, or a mapping of reasons to shares"),
        ("max_failed: {timeuot: 0.1}", "guards.max_failed.timeuot: unknown reason; did you mean 'timeout'?"),
        ("max_failed: '0.5'", "guards.max_failed: expected a share from 0 to 1, or a mapping of reasons to shares"),
        ("max_failed: {timeout: true}", "guards.max_failed.timeout: input should be a valid number"),
        ("max_failed: .nan", "guards.max_failed: input should be a finite number"),
        ("max_failed: {timeout: -1}", "guards.max_failed.timeout: input should be greater than or equal to 0"),
        ("max_change: -0.1", "guards.max_change: input should be greater than or equal to 0"),
        ("max_change: .inf", "guards.max_change: input should be a finite number"),
        ("no_samples: perhaps", "guards.no_samples: input should be a valid boolean"),
    ],
)
def test_a_wrong_guard_is_one_line(line: str, words: str) -> None:
    with pytest.raises(RecipeError) as caught:
        parse(f"{RECIPE}  {line}\n", "r.yaml")
    assert str(caught.value).startswith(f"r.yaml:5: {words}")
    assert "\n" not in str(caught.value)


def test_guards_in_a_recipe() -> None:
    guards = parse(f"{RECIPE}  max_failed: {{timeout: 0.1, any: 1}}\n", "r.yaml", ["guards.min_rows=7"]).guards
    assert guards == Guards(outage=False, max_failed={"timeout": 0.1, "any": 1.0}, min_rows=7)
    assert parse(f"{RECIPE}  max_failed: 0.5\n").guards.max_failed == {"any": 0.5}
    bare = RECIPE.partition("guards")[0]
    assert parse(bare).guards == Guards() == Guards(no_samples=True, outage=True)
    assert parse(bare, "r.yaml", ["guards.max_change=0.5", "guards.no_samples=off"]).guards == Guards(
        no_samples=False, max_change=0.5
    )


def test_reasons_of_the_network_are_reasons() -> None:
    assert set(REASONS) >= NETWORK


def test_the_example_in_the_docstring_is_a_recipe_and_turns_nothing_off() -> None:
    example = textwrap.dedent((module.__doc__ or "").split("\n\n")[1])
    made = parse(f"dataset: laion\nsource: {{use: parquet, path: urls}}\n{example}\n").guards
    assert made == Guards(min_rows=1_000_000, max_failed={ANY: 0.5}, max_change=0.3)


@pytest.mark.parametrize(
    ("given", "is_accepted"),
    [
        ({}, True),
        ({"max_failed": None, "min_rows": None, "max_change": None}, True),
        ({"max_failed": {}}, True),
        ({"max_failed": 0, "max_change": 0, "min_rows": 1}, True),
        ({"max_failed": 1, "max_change": 7}, True),  # many rows may replace few
        ({"max_failed": dict.fromkeys((*REASONS, ANY), 0.5)}, True),
        ({"max_failed": {"timeuot": 0.5}}, False),
        ({"max_failed": {"timeout": 2}}, False),
        ({"max_failed": 1.01}, False),
        ({"max_failed": [0.5]}, False),
        ({"max_change": -1}, False),
        ({"min_rows": 1.5}, False),
        ({"least": 1}, False),
    ],
)
def test_the_schema_that_editors_check_with_agrees(given: dict[str, Any], is_accepted: bool) -> None:
    schema = Guards.model_json_schema()
    assert jsonschema.Draft202012Validator(schema).is_valid(given) is is_accepted
    assert _is_accepted(given) is is_accepted


def _is_accepted(given: dict[str, Any]) -> bool:
    try:
        Guards(**given)
    except ValueError:
        return False
    return True


def test_guards_enter_no_fingerprint(tmp_path: Path) -> None:
    (tmp_path / "urls.csv").write_text("url\nhttp://a.example/1\nhttp://a.example/2\n")
    recipe = f"dataset: laion\nsource: {{use: csv, path: {tmp_path}/urls.csv}}\nstages: [{{use: download}}]\n"
    dataset = Catalog(tmp_path / "catalog", create=None).dataset("laion")
    plans = [
        make_plan(parse(text), dataset)
        for text in (recipe, f"{recipe}guards: {{outage: false, min_rows: 9, max_failed: 0.1, max_change: 0}}\n")
    ]
    one, other = [[part.fingerprint for stage in plan.stages for part in stage.parts] for plan in plans]
    assert one == other
    assert len(one) >= 2
