"""The commands that build a dataset or show what a build would do: what they print, make and refuse."""

import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from catalog.errors import RecipeError
from flows.build.build import build_here
from flows.build.spec import BuildSpec
from tests.flows.cli.conftest import check, filled, name_of
from tests.flows.conftest import Run, Web

MISTAKES = [
    ("no recipe '/no/such.yaml'", "build", "/no/such.yaml"),
    ("it is a folder, expected a file", "build", "{folder}"),
    ("it is a device, expected a file", "build", "/dev/zero"),
    ("it is a pipe, expected a file", "build", "{fifo}"),
    ("a recipe is a mapping with `dataset`, `source` and `stages`", "build", "{file}"),
    ("no recipe ''", "build", ""),
    ("line 2 is not UTF-8", "build", "{binary}"),
    ("no recipe 'a\\x07b'", "build", "a\x07b"),
    ("--set 'x': expected stage.field=value", "build", "{recipe}", "--set", "x"),
    (
        "stages[download].timeout_s: input should be greater than 0",
        "build",
        "{recipe}",
        "--set",
        "download.timeout_s=-1",
    ),
    ("seed: input should be a valid integer", "build", "{recipe}", "--set", "seed=1e999"),
    ("/no/such/folder does not exist", "build", "{recipe}", "--set", "source.path=/no/such/folder"),
    ("is not a readable Parquet file", "build", "{recipe}", "--set", "source.path={binary}"),
    ("'cloud' is not one of 'ray', 'inline'", "build", "{recipe}", "--executor", "cloud"),
    ("no recipe '/no/such.yaml'", "plan", "/no/such.yaml"),
    ("give at least 16", "plan", "{recipe}", "--probe", "0"),
    ("give at least 16", "plan", "{recipe}", "--probe", "-5"),
    ("--probe", "plan", "{recipe}", "--probe", "x"),
    ("a dataset's name is lower-case letters", "plan", "{recipe}", "--set", "dataset=Web"),
    ("expected DATASET@NUMBER (held now: none)", "approve", "web"),
    ("web@1 is not held: there is nothing to approve", "approve", "web@1"),
    ("no reason is named; there is: not_found", "retry", "web", "--reason", ""),
    ("no reason is named; there is: not_found", "retry", "web", "--reason", ",,"),
    ("unknown reason 'nothing'; there is: bad_encoding", "retry", "web", "--reason", "nothing"),
    ("did you mean 'timeout'?", "retry", "web", "--reason", "timeuot"),
    ("failed for timeout; there is: not_found", "retry", "web", "--reason", "timeout"),
    ("unknown reason", "retry", "web", "--reason", "'"),
    ("--reason", "retry", "web"),
]


@pytest.mark.parametrize("mistake", MISTAKES, ids=name_of)
def test_a_mistake_is_one_line(built: Web, run: Run, mistake: tuple[str, ...]) -> None:
    expected, *words = mistake
    check(words, *run(*filled(built, words), "--catalog", built.catalog), expected=expected)


def test_a_first_plan_says_unknown(web: Web, run: Run) -> None:
    _, out, _ = run("plan", str(web.recipe()), "--catalog", web.catalog)
    assert "unknown" in out
    assert "to run" in out
    code, out, _ = run("build", str(web.recipe()), "--catalog", web.catalog, "--dry-run", "--json")
    assert (code, {s["status"] for s in json.loads(out)}) == (0, {"to run"})


def test_a_plan_makes_no_catalog(web: Web, run: Run, tmp_path: Path) -> None:
    for command in (["plan"], ["build", "--dry-run"]):
        code, out, _ = run(*command, str(web.recipe()), "--catalog", str(tmp_path / "none" / "yet"), "--json")
        assert (code, {s["status"] for s in json.loads(out)}) == (0, {"to run"})
    assert not (tmp_path / "none").exists()


def test_plan_knows_what_it_measured(built: Web, run: Run) -> None:
    recipe = built.folder / "recipe.yaml"
    code, out, _ = run("plan", str(recipe), "--catalog", built.catalog, "--json")
    stages = {s["stage"]: s for s in json.loads(out)}
    assert code == 0
    assert stages["download"]["status"] == "cached"
    assert (stages["prune"]["status"], stages["prune"]["parts_to_run"]) == ("to run", 1)
    assert stages["prune"]["seconds"] > 0
    assert stages["prune"]["cost"] > 0
    _, out, _ = run("plan", str(recipe), "--catalog", built.catalog)
    assert "cached" in out


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::ResourceWarning")  # of Prefect's
def test_a_retry_says_what_it_made(own: str, run: Run, prefect_server: str) -> None:
    words = ["retry", "web", "--reason", "not_found", "--catalog", own, "--executor", "inline", "--json"]
    code, out, err = run(*words)
    facts = json.loads(out)
    assert (code, facts["version"], facts["rows_tried"]) == (0, "web@3", 1)
    assert facts["parts_made"] >= 2  # the images of that row's part, and what reads them
    assert "1 row of 1 part to retry; with all parts that depend on them, " in err


def test_a_plan_leaves_nothing_in_a_catalog(built: Web, run: Run) -> None:
    before = {path for path in Path(built.catalog).rglob("*") if "planned" in str(path)}
    recipe = str(built.folder / "recipe.yaml")
    assert run("plan", recipe, "--set", "dataset=planned", "--catalog", built.catalog)[0] == 0
    assert before == {path for path in Path(built.catalog).rglob("*") if "planned" in str(path)} == set()


EMBED: dict[str, object] = {"use": "embed", "encoders": [{"name": "c", "model": "ViT-B-32", "pretrained": "random"}]}


CLUSTER: dict[str, object] = {"use": "cluster", "k": 2}


NAMED_IN_RECIPES: dict[str, Callable[[str], list[dict[str, object]]]] = {
    "list": lambda path: [{"use": "filter", "lists": [{"name": "x", "file": path}]}],
    "words": lambda path: [{"use": "filter", "words": {"x": {"file": path}}}],
    "set": lambda path: [{"use": "decontaminate", "sets": [{"name": "x", "path": path, "image": "image"}]}],
    "pretrained": lambda path: [{"use": "embed", "encoders": [{"name": "c", "model": "ViT-B-32", "pretrained": path}]}],
    "targets": lambda path: [EMBED, CLUSTER, {"use": "near_targets", "targets": path}],
    "concepts": lambda path: [EMBED, CLUSTER, {"use": "concepts", "labels": path}],
    "labels": lambda path: [EMBED, {"use": "score", "scorers": [{"use": "zero_shot", "name": "k", "labels": path}]}],
    "weights": lambda path: [EMBED, {"use": "score", "scorers": [{"use": "aesthetic_v2", "weights": path}]}],
    "fragment": lambda path: [{"include": path}],
}


@pytest.mark.timeout(120)  # a pipe that nobody writes to never ends
@pytest.mark.parametrize("path", ["{fifo}", "{folder}", "/dev/zero", "{secret}"])
@pytest.mark.parametrize("field", [*NAMED_IN_RECIPES, "csv", "parquet", "jsonl", "webdataset"])
def test_a_file_that_is_none_is_one_line(run: Run, tmp_path: Path, field: str, path: str) -> None:
    if field not in NAMED_IN_RECIPES and path == "{folder}":
        pytest.skip("a source may be a folder")
    if path == "{secret}" and os.geteuid() == 0:
        pytest.skip("root may read every file")
    (tmp_path / "a.csv").write_text("url,caption\nu,a\n")
    (tmp_path / "folder").mkdir()
    (tmp_path / "secret").touch(0)
    os.mkfifo(tmp_path / "fifo")
    path = path.format(**{name: tmp_path / name for name in ("fifo", "folder", "secret")})
    source: dict[str, object] = {"use": "csv", "path": str(tmp_path / "a.csv")}
    stages: list[dict[str, object]] = []
    if field in NAMED_IN_RECIPES:
        stages = [{"use": "download"}, *NAMED_IN_RECIPES[field](path)]
    else:
        source = {"use": field, "path": path}
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(json.dumps({"dataset": "d", "source": source, "stages": stages}))
    words = ["plan", str(recipe), "--catalog", str(tmp_path / "catalog")]
    check(words, *run(*words))


REFUSED = [
    {"use": "filter", "where": "nosuch > 1"},
    {"use": "filter", "where": "length(caption) > date '2024-01-01'"},
    {"use": "filter", "lists": [{"name": "x", "file": "no.txt"}]},
]


@pytest.mark.parametrize("stage", REFUSED, ids=str)
def test_a_recipe_that_is_refused_leaves_nothing(run: Run, tmp_path: Path, stage: dict[str, object]) -> None:
    (tmp_path / "a.csv").write_text("url,caption\nu,a\n")
    recipe = tmp_path / "recipe.yaml"
    source = {"use": "csv", "path": str(tmp_path / "a.csv")}
    recipe.write_text(json.dumps({"dataset": "refused", "source": source, "stages": [stage]}))
    catalog = tmp_path / "catalog"
    words = ["build", str(recipe), "--executor", "inline", "--catalog", str(catalog)]
    check(words, *run(*words))
    assert not catalog.exists()
    with pytest.raises(RecipeError):  # as a schedule builds it
        build_here(BuildSpec.read(recipe, catalog=str(catalog), executor="inline"))
    assert json.loads(run("ls", "--catalog", str(catalog), "--json")[1]) == []


def test_a_build_of_the_latest_version_makes_nothing(built: Web, run: Run) -> None:
    before = {path for path in Path(built.catalog).rglob("*") if path.is_file()}
    words = ["build", str(built.folder / "latest.yaml"), "--catalog", built.catalog, "--executor", "inline", "--json"]
    code, out, err = run(*words)
    facts = json.loads(out)
    assert (code, facts["version"], facts["parts_made"]) == (0, "web@2", 0)
    assert "web@2 is up to date" in err
    assert "1 of 8 rows failed: 1 not_found" in err
    assert {path for path in Path(built.catalog).rglob("*") if path.is_file()} == before


def test_schema_is_the_json_schema_of_recipes(run: Run) -> None:
    code, out, err = run("schema")
    assert (code, err) == (0, "")
    found = json.loads(out)
    assert found["title"] == "Recipe"
    assert {"dataset", "source", "stages", "guards"} <= set(found["properties"])
