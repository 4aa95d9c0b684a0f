"""Mistakes of users, at every command: one line, exit code 2, no traceback, and never called a fault of Espalier."""

import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from catalog.errors import RecipeError
from flows.build.build import build_here
from flows.build.spec import BuildSpec
from tests.flows.cli.conftest import check, filled
from tests.flows.conftest import Run, Web
from tests.flows.vectors import Planted

LABELS = [
    *(
        "",
        " ",
        "WEB",
        "we b",
        "../web",
        "web@",
        "web@0",
        "web@x",
        "web@-1",
        "web@1e3",
        "web@99",
        "x" * 300,
        "wéb",
        "@1",
    ),
    *("web/samples", "web@1@2", ".", "\x1b[31m", "a\nb", "wep", "group", "web@" + "9" * 40, "web@²"),
]
CATALOGS = ["/no/such/catalog", "{file}", "{file}/x", "ftp://x/y", "s3://", "://", "{folder}/x\x07"]
LABELLED: dict[str, list[str]] = {
    "versions": [],
    "show": [],
    "gc": [],
    "errors": [],
    "why": ["0"],
    "retry": ["--reason", "timeout"],
    "search": ["--text", "a cat"],
    "index": [],
    "takedown": ["--list"],
    "report": [],
}
MISTAKES = [
    *(["build", path] for path in ("/no/such.yaml", "{folder}", "/dev/zero", "{file}", "", "{binary}", "a\x07b")),
    ["build", "{recipe}", "--set", "x"],
    ["build", "{recipe}", "--set", "download.timeout_s=-1"],
    ["build", "{recipe}", "--set", "seed=1e999"],
    ["build", "{recipe}", "--set", "source.path=/no/such/folder"],
    ["build", "{recipe}", "--set", "source.path={binary}"],
    ["build", "{recipe}", "--executor", "cloud"],
    ["plan", "/no/such.yaml"],
    ["plan", "{recipe}", "--probe", "0"],
    ["plan", "{recipe}", "--probe", "-5"],
    ["plan", "{recipe}", "--probe", "x"],
    ["plan", "{recipe}", "--set", "dataset=Web"],
    ["retry", "web", "--reason", ""],
    ["retry", "web", "--reason", ",,"],
    ["retry", "web", "--reason", "nothing"],
    ["retry", "web", "--reason", "'"],
    ["retry", "web"],
    ["search", "web"],
    ["search", "web", "--text", ""],
    ["search", "web", "--text", "x", "--like", "1"],
    ["search", "web", "--text", "x", "--top", "0"],
    ["search", "web", "--text", "x", "--top", "-1"],
    ["search", "web", "--text", "x", "--unique", "nan"],
    ["search", "web", "--text", "x", "--unique", "2"],
    ["search", "web", "--text", "x", "--save", "Web"],
    ["search", "web", "--text", "x", "--save", "web"],
    ["search", "web", "--text", "x", "--save", ""],
    ["search", "web", "--image", "/no/such.jpg"],
    ["search", "web", "--image", "{folder}"],
    ["search", "web", "--image", "{fifo}"],
    ["build", "{fifo}"],
    ["search", "web", "--text", "x", "--html", "/no/such/folder/x.html"],
    ["search", "web", "--text", "x", "--html", "{folder}"],
    ["search", "web", "--text", "x"],
    ["index", "web"],
    ["index", "web", "--kind", "tree"],
    ["index", "web", "--recall", "nan"],
    ["index", "web", "--recall", "2"],
    ["index", "web", "--memory-mb", "-1"],
    ["index", "web", "--memory-mb", "nan"],
    ["deploy", "/no/such.yaml", "--cron", "0 3 * * *"],
    ["deploy", "{recipe}"],
    ["deploy", "{recipe}", "--cron", "every day"],
    ["deploy", "{recipe}", "--cron", ""],
    ["deploy", "{recipe}", "--cron", "0 3 * * *", "--timezone", "Mars/Olympus"],
    ["worker", "--limit", "0"],
    ["worker", "extra"],
    ["demo", "--rows", "0"],
    ["demo", "--rows", "-1"],
    ["demo", "--rows", "x"],
    ["nonsense"],
    ["--nonsense"],
    ["schema", "extra"],
]


@pytest.mark.parametrize("words", MISTAKES, ids=lambda words: " ".join(words)[:60].encode("unicode_escape").decode())
def test_a_mistake_is_one_line(built: Web, run: Run, words: list[str]) -> None:
    catalog = [] if words[0] in ("nonsense", "--nonsense", "schema", "worker") else ["--catalog", built.catalog]
    check(words, *run(*filled(built, words), *catalog))


@pytest.mark.parametrize("command", LABELLED)
def test_a_wrong_label_or_catalog_is_one_line(built: Web, run: Run, command: str) -> None:
    rest = LABELLED[command]
    for label in LABELS:
        check([command, label], *run(command, label, *rest, "--catalog", built.catalog))
    for catalog in filled(built, CATALOGS):
        check([command, catalog], *run(command, "web", *rest, "--catalog", catalog))


@pytest.mark.parametrize("words", [["ls"], ["sql", "select 1"], ["diff", "a", "b"]], ids=lambda words: words[0])
def test_a_wrong_catalog_is_one_line(built: Web, run: Run, words: list[str]) -> None:
    for catalog in filled(built, CATALOGS):
        check([*words, catalog], *run(*words, "--catalog", catalog))


BIRDS = [
    ["search", "--top", "0"],
    ["search", "--unique", "nan"],
    ["search", "--unique", "-5"],
    ["search", "--where", "widht > 1"],
    ["search", "--where", "("],
    ["search", "--where", "1; 2"],
    ["search", "--where", "sum(width) > 1"],
    ["search", "--where", "width > (select count(*) from read_csv('/etc/passwd'))"],
    ["search", "--where", "error('x')"],
    ["search", "--column", "nope"],
    ["search", "--html", "/no/such/folder/x.html"],
    ["search", "--html", "{folder}"],
    ["search", "--save", "birds"],
    ["search", "--save", "x" * 99],
    ["search", "--like", "99999"],
    ["search", "--like", "-1"],
    ["search", "--like", "9" * 30],
    ["index", "--recall", "nan"],
    ["index", "--recall", "0"],
    ["index", "--memory-mb", "nan"],
    ["index", "--memory-mb", "-1"],
    ["index", "--kind", "tree"],
    ["index", "--column", "nope"],
]


def test_a_mistake_about_vectors_is_one_line(built: Web, run: Run, tmp_path: Path) -> None:
    Planted(tmp_path / "catalog").publish([0])
    at = ["--catalog", str(tmp_path / "catalog")]
    for command, *words in (filled(built, words) for words in BIRDS):
        like = ["--like", "3"] if command == "search" and "--like" not in words else []
        check([command, *words], *run(command, "birds", *like, *words, *at))
    os.mkfifo(tmp_path / "pipe.jpg")
    for image in ("/dev/zero", str(tmp_path / "pipe.jpg"), str(tmp_path), "/no/such.jpg"):
        check(["search", image], *run("search", "birds", "--image", image, *at))
    code, out, _ = run("search", "birds", "--like", "3", "--top", "1000000000", "--json", *at)
    assert (code, len(json.loads(out)["hits"])) == (0, 299)


def test_a_store_that_does_not_answer_is_one_line(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {
        "AWS_ENDPOINT_URL": "http://127.0.0.1:1",
        "AWS_ALLOW_HTTP": "true",
        "AWS_REGION": "us-east-1",
        "AWS_ACCESS_KEY_ID": "x",
        "AWS_SECRET_ACCESS_KEY": "x",
    }.items():
        monkeypatch.setenv(name, value)
    code, out, err = run("versions", "web", "--catalog", "s3://nowhere-at-all")
    check(["versions"], code, out, err, (1,))


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


def test_a_plan_leaves_nothing_in_a_catalog(built: Web, run: Run) -> None:
    before = {path for path in Path(built.catalog).rglob("*") if "planned" in str(path)}
    recipe = str(built.folder / "recipe.yaml")
    assert run("plan", recipe, "--set", "dataset=planned", "--catalog", built.catalog)[0] == 0
    assert before == {path for path in Path(built.catalog).rglob("*") if "planned" in str(path)} == set()


def test_the_version_and_completion(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    code, out, _ = run("--version")
    assert code == 0
    assert out.startswith("espalier 0.")
    for name, value in {"COMP_WORDS": "espalier ver", "COMP_CWORD": "1"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("_ESPALIER_COMPLETE", "complete_bash")
    code, out, _ = run()
    assert (code, "versions" in out.split()) == (0, True)
