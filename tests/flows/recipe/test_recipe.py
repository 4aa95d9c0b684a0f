"""A wrong recipe fails before anything runs, in one line that says where and what to do."""

import json

import pytest

from catalog.errors import NotFoundError, RecipeError
from flows.recipe.recipe import Recipe, parse
from tests.helpers import recipe_in

GOOD = """\
dataset: laion
source:
  use: parquet
  path: urls
stages:
  - use: download
    timeout_s: 5
  - use: cluster
    k: 3
  - use: prune
    method: random
    keep: 0.5
"""


def test_a_recipe_names_its_stages_and_ends_with_the_manifest() -> None:
    steps = parse(GOOD).steps()
    assert [s.name for s in steps] == ["parquet", "download", "cluster-centroids", "cluster", "prune", "samples"]


@pytest.mark.parametrize(
    ("old", "new", "line", "words"),
    [
        ("use: download", "use: downlod", 6, ["unknown use 'downlod'", "did you mean 'download'?"]),
        ("timeout_s: 5", "timeot_s: 5", 7, ["timeot_s", "unknown field", "did you mean 'timeout_s'?"]),
        ("timeout_s: 5", "timeout_s: soon", 7, ["download", "timeout_s", "number", "'soon'"]),
        ("k: 3", "k: 0", 9, ["k", "greater than"]),
        ("method: random", "method: randon", 10, ["unknown method 'randon'", "did you mean 'random'?"]),
        ("    keep: 0.5", "    keep: 1.5", 12, ["keep", "less than or equal to 1"]),
        ("dataset: laion", "dataset: La Ion", 1, ["dataset", "lower-case"]),
        ("dataset: laion", "datset: laion", 1, ["unknown field", "did you mean 'dataset'?"]),
        ("dataset: laion", "From: {a: laion}\ndataset: laion", 1, ["From", "unknown field", "did you mean 'from'?"]),
        ("  path: urls\n", "", 3, ["path", "missing"]),
        ("  use: parquet\n", "", 2, ["source", "lacks `use`"]),
        ("dataset: laion", "dataset: laion\ndataset: other", 2, ["dataset", "twice", "line 1"]),
        ("    keep: 0.5", "    keep: 0.5\n    keep: 0.9", 13, ["keep", "twice", "line 12"]),
        ("path: urls", "path: &a [*a]", 4, ["alias", "contains it"]),
        ("- use: download\n    timeout_s: 5", "- download", 6, ["stages[0]", "expected a mapping, such as `use"]),
        ("k: 3", "levels: 3", 9, ["stages[cluster].levels", "expected a list (got 3)"]),
        ("    keep: 0.5", "    of: []", 12, ["stages[prune].of: unknown field"]),
    ],
)
def test_a_mistake_is_named_with_its_line(old: str, new: str, line: int, words: list[str]) -> None:
    with pytest.raises(RecipeError) as caught:
        parse(GOOD.replace(old, new), "r.yaml")
    messages = str(caught.value).splitlines()
    mine = next((m for m in messages if m.startswith(f"r.yaml:{line}:")), None)
    assert mine is not None, messages
    for word in words:
        assert word in mine


def test_what_is_not_yaml_or_no_mapping() -> None:
    with pytest.raises(RecipeError, match=r"r\.yaml:2: not YAML"):
        parse("dataset: x\n  - :::\n- a", "r.yaml")
    with pytest.raises(RecipeError, match="is a mapping"):
        parse("- a\n- b", "r.yaml")


def test_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WHERE", "/data")
    monkeypatch.setenv("K", "7")
    recipe = parse(GOOD.replace("path: urls", "path: ${WHERE}/urls").replace("k: 3", "k: ${K}") + "seed: ${SEED:-11}\n")
    assert (recipe.source.path, recipe.seed) == ("/data/urls", 11)
    assert next(s for s in recipe.stages if s.use == "cluster").k == 7
    for text in ("*.parquet", "[x", "@x", "%x", "!x y"):  # none of them is YAML
        monkeypatch.setenv("WHERE", text)
        assert parse(GOOD.replace("path: urls", "path: ${WHERE}")).source.path == text
    with pytest.raises(RecipeError, match="NOT_THERE is not set"):
        parse(GOOD + "description: ${NOT_THERE}\n")


def test_overrides() -> None:
    recipe = parse(GOOD, overrides=["download.timeout_s=9", "seed=4", "source.rows_per_part=7", "dataset=other"])
    assert (recipe.dataset, recipe.seed, recipe.source.rows_per_part) == ("other", 4, 7)
    assert recipe.stages[0].timeout_s == 9  # type: ignore[union-attr]
    with pytest.raises(RecipeError, match="no stage 'downlaod'; did you mean 'download'"):
        parse(GOOD, overrides=["downlaod.timeout_s=9"])
    with pytest.raises(RecipeError, match=r"expected stage\.field=value"):
        parse(GOOD, overrides=["download.timeout_s"])


def test_a_mistake_of_a_whole_stage_is_named_by_the_stage_alone() -> None:
    with pytest.raises(RecipeError, match=r"r\.yaml:10: stages\[prune\]: prune takes `keep`"):
        parse(GOOD.replace("    keep: 0.5\n", ""), "r.yaml")
    with pytest.raises(RecipeError, match=r"^r\.yaml: two stages are named 'download'"):
        parse(GOOD + "  - use: download\n", "r.yaml")


def test_an_override_reaches_what_is_not_said_yet_and_nothing_that_has_no_fields() -> None:
    assert parse(GOOD, overrides=["prices.cpu_hour=2"]).prices.cpu_hour == 2  # type: ignore[union-attr]
    assert parse(GOOD, overrides=["download.resources.cpus=3"]).stages[0].resources.cpus == 3
    assert parse(GOOD.replace("timeout_s: 5", "resources:"), overrides=["download.resources.cpus=3"])
    # it would otherwise be lost without a word, or be a fault of ours
    with pytest.raises(RecipeError, match=r"--set 'prune.keep.x=1': 'keep' is 0.5, which has no fields"):
        parse(GOOD, overrides=["prune.keep.x=1"])
    with pytest.raises(RecipeError, match=r"'0' is 'urls', which has no fields"):
        parse(GOOD.replace("path: urls", "path: [urls]"), overrides=["source.path.0.x=1"])


def test_two_stages_of_one_name_or_one_table() -> None:
    with pytest.raises(RecipeError, match="two stages are named 'prune'"):
        parse(GOOD + "  - use: prune\n    method: random\n    keep: 0.5\n")
    with pytest.raises(RecipeError, match="both write the table 'images'"):
        parse(GOOD + "  - use: download\n    name: again\n")
    assert parse(GOOD + "  - use: prune\n    name: again\n    method: random\n    keep: 0.5\n")


def test_files(tmp_path: object) -> None:
    with pytest.raises(NotFoundError, match=r"did you mean 'configs/demo\.yaml'"):
        recipe_in("configs/dema.yaml")


def test_the_json_schema_knows_every_stage() -> None:
    text = json.dumps(Recipe.model_json_schema())
    for use in ("parquet", "download", "embed", "filter", "deduplicate", "cluster", "prune", "report", "train_clip"):
        assert f'"const": "{use}"' in text


def test_no_is_a_word() -> None:
    recipe = parse(GOOD.replace("timeout_s: 5", "resize_mode: no"), overrides=["download.encode_format=png"])
    assert recipe.stages[0].resize_mode == "no"  # type: ignore[union-attr]
    assert parse(GOOD, overrides=["download.resize_mode=no"]).stages[0].resize_mode == "no"  # type: ignore[union-attr]
