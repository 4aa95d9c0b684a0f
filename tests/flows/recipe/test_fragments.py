"""Fragments: stages of another file, in the place where a recipe includes them."""

from pathlib import Path

import pytest

from catalog.errors import RecipeError
from flows.recipe.recipe import Recipe, parse, resolve
from tests.helpers import recipe_in

RECIPE = """\
dataset: laion
source: {use: parquet, path: urls}
stages:
  - use: download
  - include: FRAGMENT
  - use: report
"""
FILTERS = """\
# Two filters.
- use: filter
  name: sizes
  where: width >= ${least:-200} and height >= ${least:-200}
- use: filter
  name: ${name:-more}
  where: height >= ${least}
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "filters").mkdir()
    return tmp_path


def written(folder: Path, recipe: str, **fragments: str) -> Path:
    for name, text in fragments.items():
        (folder / "filters" / f"{name}.yaml").write_text(text)
    path = folder / "recipe.yaml"
    path.write_text(recipe)
    return path


def including(fragment: str, values: str = "") -> str:
    return RECIPE.replace("FRAGMENT", fragment + (f"\n    with: {values}" if values else ""))


def test_its_stages_stand_where_it_was_included(folder: Path) -> None:
    path = written(folder, including("filters/sizes.yaml", "{least: 300, name: again}"), sizes=FILTERS)
    recipe = recipe_in(path)
    assert [stage.name for stage in recipe.stages] == ["download", "sizes", "again", "report"]
    assert recipe.stages[1].where == "width >= 300 and height >= 300"  # type: ignore[union-attr]


def test_a_variable_is_what_with_says_or_else_its_default_and_never_the_environment(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("width", "7")
    monkeypatch.setenv("FROM_OUTSIDE", "9")
    fragment = "- use: download\n  name: again\n  image_size: ${width:-64}\n  timeout_s: ${pause:-5}\n"
    path = written(
        folder, including("filters/a.yaml", '{pause: "${FROM_OUTSIDE}"}').replace("  - use: download\n", ""), a=fragment
    )
    (again, _) = recipe_in(path).stages
    assert again.image_size == 64  # type: ignore[union-attr]
    assert again.timeout_s == 9  # type: ignore[union-attr]


def test_overrides_reach_a_fragments_stages(folder: Path) -> None:
    path = written(folder, including("filters/sizes.yaml", "{least: 300}"), sizes=FILTERS)
    (_, sizes, *_) = recipe_in(path, ["sizes.where=width > 5"]).stages
    assert sizes.where == "width > 5"  # type: ignore[union-attr]


def test_the_resolved_text_needs_no_other_file(folder: Path) -> None:
    path = written(folder, including("filters/sizes.yaml", "{least: 300}"), sizes=FILTERS)
    recipe, text = resolve(path.read_text(), str(path))
    assert "include" not in text
    (folder / "filters" / "sizes.yaml").unlink()
    assert parse(text, "elsewhere") == recipe
    assert resolve(text, "elsewhere")[1] == text


def test_fragments_include_fragments_beside_them(folder: Path) -> None:
    outer = "- include: inner.yaml\n  with:\n    least: ${most:-4}\n- use: filter\n  name: last\n  where: width > 1\n"
    inner = "- use: filter\n  name: first\n  where: width > ${least:-2}\n"
    path = written(folder, including("filters/outer.yaml", "{most: 6}"), outer=outer, inner=inner)
    names = [(stage.name, getattr(stage, "where", None)) for stage in recipe_in(path).stages[1:3]]
    assert names == [("first", "width > 6"), ("last", "width > 1")]


def test_shipped_fragments_are_found_from_anywhere(folder: Path) -> None:
    recipe = recipe_in(written(folder, including("filters/laion400m.yaml", "{threshold: 0.31}")))
    assert recipe.stages[1].rules["low_clip_score"] == "embeddings.clip_score >= 0.31"  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("fragment", "line", "words"),
    [
        (FILTERS.replace("where: width", "wher: width"), 4, ["wher", "unknown field", "did you mean 'where'?"]),
        (FILTERS.replace("use: filter\n  name: sizes", "use: filtr\n  name: sizes"), 2, ["unknown use 'filtr'"]),
        (FILTERS + "- use: download\n  name: late\n  timeout_s: soon\n", 10, ["timeout_s", "number", "'soon'"]),
    ],
)
def test_a_mistake_in_a_fragment_is_named_with_its_file_and_line(
    folder: Path, fragment: str, line: int, words: list[str]
) -> None:
    path = written(folder, including("filters/sizes.yaml", "{least: 3}"), sizes=fragment)
    with pytest.raises(RecipeError) as caught:
        recipe_in(path)
    mine = f"{folder}/filters/sizes.yaml:{line}: "
    assert any(
        message.startswith(mine) and all(w in message for w in words) for message in str(caught.value).splitlines()
    )


def test_a_mistake_after_a_fragment_is_named_with_its_own_line(folder: Path) -> None:
    path = written(folder, including("filters/sizes.yaml", "{least: 3}") + "    titel: x\n", sizes=FILTERS)
    with pytest.raises(RecipeError, match=r"recipe\.yaml:8: .*titel.*did you mean 'title'"):
        recipe_in(path)


@pytest.mark.parametrize(
    ("include", "message"),
    [
        (
            "filters/sizs.yaml",
            r"recipe\.yaml:5: no fragment 'filters/sizs\.yaml'.* mean 'filters/sizes\.yaml'\?",
        ),
        ("filters/sizes.yaml", r"recipe\.yaml:5: .*sizes\.yaml:7 needs `least`: add `with: \{least: \.\.\.\}`"),
        (
            "filters/sizes.yaml\n    with: {leats: 3}",
            r"recipe\.yaml:5: .*no variable 'leats'; did you mean 'least'\?",
        ),
        ("filters/sizes.yaml\n    with: 3", r"recipe\.yaml:5: `with` is a mapping"),
        ("filters/sizes.yaml\n    witch: {}", r"recipe\.yaml:5: `include` takes `with` only, not 'witch'"),
        ("[a, b]", r"recipe\.yaml:5: `include` names a file"),
        ("filters/mapping.yaml", r"recipe\.yaml:5: .*mapping\.yaml is not a fragment: expected a list of stages"),
        ("filters/broken.yaml", r"broken\.yaml:2: not YAML"),
        ("filters/one.yaml", r"two\.yaml:1: .*one\.yaml includes itself: .*one\.yaml -> .*two\.yaml -> .*one\.yaml"),
    ],
)
def test_a_wrong_include_says_what_is_wrong(folder: Path, include: str, message: str) -> None:
    fragments = {
        "sizes": FILTERS,
        "mapping": "stages: []\n",
        "broken": "- use: x\n  - :::\n- a",
        "one": "- include: two.yaml\n",
        "two": "- include: one.yaml\n",
    }
    with pytest.raises(RecipeError, match=message) as caught:
        recipe_in(written(folder, including(include), **fragments))
    assert "\n" not in str(caught.value)


def test_a_fragment_that_cannot_be_read(folder: Path) -> None:
    (folder / "filters" / "bytes.yaml").write_bytes(b"- use: \xff\xfe")
    with pytest.raises(
        RecipeError, match=r"recipe\.yaml:5: cannot read the fragment '.*bytes\.yaml': line 1 is not UTF-8"
    ):
        recipe_in(written(folder, including("filters/bytes.yaml")))
    with pytest.raises(RecipeError, match=r"recipe\.yaml:5: no fragment '.*filters', neither in"):
        recipe_in(written(folder, including(str(folder / "filters"))))


def test_a_recipe_cannot_include_itself(folder: Path) -> None:
    with pytest.raises(RecipeError, match="includes itself"):
        recipe_in(written(folder, including("recipe.yaml")))


def test_editors_are_told_of_include() -> None:
    items = Recipe.model_json_schema()["properties"]["stages"]["items"]["anyOf"]
    assert items[1]["required"] == ["include"]
