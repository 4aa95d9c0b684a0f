"""Mistakes of users, at every command: one line, exit code 2, no traceback, and never called a fault of Espalier."""

import json
import os
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from catalog.errors import RecipeError
from flows.build.build import build_here
from flows.build.spec import BuildSpec
from flows.cli import app
from tests.flows.conftest import Run, Web
from tests.flows.vectors import Planted
from tests.hostile_server import HostileServer

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
    ["sql", ""],
    ["sql", "   "],
    ["sql", "selct 1"],
    ["sql", "select"],
    ["sql", "select 1; select 2"],
    ["sql", "select \x00"],
    ["sql", "select * from web.images where widht > 1"],
    ["sql", "select * from nothing.images"],
    ["sql", "select 1", "--at", "0"],
    ["sql", "select 1", "--at", "-1"],
    ["sql", "select 1", "--at", "x"],
    ["sql", "select count(*) from web.images", "--at", "99"],
    ["sql", "select 1", "--limit", "-1"],
    ["sql", "select 1", "--format", "xml"],
    ["sql", "select 1", "--timeout", "-1"],
    ["sql", "select 1", "--timeout", "nan"],
    ["sql", "select 1", "--memory", "0"],
    ["sql", "select 1", "-o", "x.xls"],
    ["sql", "select 1", "-o", "/no/such/folder/x.csv"],
    ["sql", "select 1", "-o", "{folder}", "--format", "csv"],
    ["sql", "select 1", "-o", ""],
    ["sql", "(" * 3000],
    ["sql", "select " + "(" * 3000 + "1" + ")" * 3000],
    ["sql", "select error('no')"],
    ["sql", "select 'x'::int"],
    ["sql", "select 1 // 0 as a from read_parquet('/etc/passwd')"],
    ["diff", "web", "web@99"],
    ["diff", "web", ""],
    ["diff", "web@1", "web@2", "--examples", "-1"],
    ["gc", "web", "--keep-versions", "0"],
    ["gc", "web", "--keep-versions", "-1"],
    ["gc", "web", "--keep-versions", "x"],
    ["gc", "web", "--older-than-h", "-1"],
    ["gc", "web", "--older-than-h", "nan"],
    ["why", "web", ""],
    ["why", "web", "-1"],
    ["why", "web", "99999999999999999999"],
    ["why", "web", "http://not/there"],
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
    ["takedown", "web"],
    ["takedown", "web", "--file", "{file}", "--copies", "all"],
    ["takedown", "web", "--file", "/no/such.csv"],
    ["takedown", "web", "--file", "{folder}"],
    ["takedown", "web", "--file", "{fifo}"],
    ["takedown", "web", "--file", "/dev/zero"],
    ["takedown", "web", "--file", "{file}\0"],
    ["takedown", "web", "--file", "{folder}/twice.csv"],
    ["takedown", "web", "--file", "{binary}"],
    ["takedown", "web", "--file", "{binary}.parquet"],
    ["report", "web@1", "-o", "/no/such/folder/x.html"],
    ["report", "web@1", "-o", "{folder}"],
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
    ["ls", "extra"],
    ["schema", "extra"],
]


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Web]:
    """Two versions of `web`, and `order` and `select`, whose names are words of SQL."""
    with HostileServer() as server:
        web = Web(tmp_path_factory.mktemp("mistakes"), server)
        urls = web.pictures(range(3))
        web.add_file("a", [*urls, server.body(b"gone", status=404)])
        for name, keep in (("web", 3), ("web", 2), ("order", 2), ("select", 2)):
            stages = f"  - {{use: prune, method: random, keep_rows: {keep}}}\n  - use: report\n"
            recipe = web.recipe(stages)
            recipe.write_text(recipe.read_text().replace("dataset: web", f"dataset: {name}"))
            build_here(BuildSpec.read(recipe, catalog=web.catalog, executor="inline"))
        web.recipe("  - {use: prune, method: random, keep_rows: 2}\n")
        (web.folder / "file").write_text("text\n")
        (web.folder / "twice.csv").write_text("url,url\nu,v\n")
        os.mkfifo(web.folder / "fifo")
        for name in ("binary", "binary.parquet"):
            (web.folder / name).write_bytes(bytes(range(256)) * 9)
        yield web


def filled(built: Web, words: list[str]) -> list[str]:
    known = {"file": built.folder / "file", "folder": built.folder, "binary": built.folder / "binary"}
    known["fifo"] = built.folder / "fifo"
    known["recipe"] = built.folder / "recipe.yaml"
    for name, path in known.items():
        words = [word.replace(f"{{{name}}}", str(path)) for word in words]
    return words


def check(words: list[str], code: int, out: str, err: str, codes: tuple[int, ...] = (2,)) -> None:
    assert code in codes, (words, err)
    assert out == "", words
    assert err.startswith("espalier: "), (words, err)
    assert len(err.splitlines()) == 1, err
    assert err.strip() != "espalier:", words
    assert "fault of Espalier" not in err, (words, err)
    assert "Value error" not in err, (words, err)
    assert "Assertion failed" not in err, (words, err)
    assert "Traceback" not in err
    assert "Errno" not in err, err
    assert err.strip().isprintable(), err


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


def test_every_command_is_tried(built: Web) -> None:
    tried = {words[0] for words in MISTAKES} | set(LABELLED)
    names = {str(c.name or (c.callback.__name__ if c.callback else "")) for c in app.registered_commands}
    later = {"approve", "verify"}  # their own tests try them
    assert names - later <= tried


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


def test_names_that_are_words_of_sql(built: Web, run: Run) -> None:
    at = ["--catalog", built.catalog]
    for name in ("order", "select"):
        code, out, _ = run("sql", f'select count(*) as n from "{name}".samples', *at, "--format", "csv")
        assert (code, out.split()) == (0, ['"n"', "2"])
        code, out, _ = run("sql", f'select count(*) as n from "{name}".samples', *at, "--format", "csv", "--at", "1")
        assert (code, out.split()) == (0, ['"n"', "2"])
        for words in (["versions", name], ["show", name], ["diff", name, "web"], ["errors", name], ["why", name, "0"]):
            assert run(*words, *at)[0] == 0, words
    code, _, err = run("sql", "select * from order.samples", *at)
    assert code == 2
    assert 'write "order"' in err
    code, out, _ = run("sql", "select count(*) as n from web.samples order by 1", *at, "--format", "csv")
    assert (code, out.split()) == (0, ['"n"', "2"])


def test_what_is_listed(built: Web, run: Run) -> None:
    (Path(built.catalog) / "begun" / "source").mkdir(parents=True, exist_ok=True)
    (Path(built.catalog) / "begun" / "source" / "x.parquet").write_bytes(b"x" * 20_000)
    code, out, _ = run("ls", "--catalog", built.catalog, "--json")
    rows = {row["dataset"]: row for row in json.loads(out)}
    assert (code, list(rows)) == (0, ["begun", "order", "select", "web"])
    assert (rows["web"]["last"], rows["web"]["samples"], rows["web"]["versions"]) == ("web@2", 2, 2)
    assert (rows["begun"]["versions"], rows["begun"]["MB"], rows["begun"]["last_build"]) == (0, 0.02, None)
    assert rows["begun"]["note"] == "nothing published"
    disk = sum(path.stat().st_size for path in (Path(built.catalog) / "web").rglob("*") if path.is_file())
    assert rows["web"]["MB"] == round(disk / 1e6, 2)
    assert "nothing published" in run("ls", "--catalog", built.catalog)[1]
    _, out, _ = run("versions", "web", "--catalog", built.catalog, "--json")
    _, shown, _ = run("show", "web@1", "--catalog", built.catalog, "--json")
    tables = sum(table["bytes"] for table in json.loads(shown)["tables"].values())
    shards = sum(path.stat().st_size for path in (Path(built.catalog) / "web" / "shards").rglob("*"))
    assert shards > 3000
    assert json.loads(out)[0]["MB"] == round((tables + shards) / 1e6, 2)


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


def test_errors_of_a_version(built: Web, run: Run) -> None:
    for label in ("web", "web@1"):
        code, out, _ = run("errors", label, "--catalog", built.catalog, "--json")
        assert (code, [(row["reason"], row["rows"]) for row in json.loads(out)]) == (0, [("not_found", 1)])


def test_the_version_and_completion(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    code, out, _ = run("--version")
    assert code == 0
    assert out.startswith("espalier 0.")
    for name, value in {"COMP_WORDS": "espalier ver", "COMP_CWORD": "1"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("_ESPALIER_COMPLETE", "complete_bash")
    code, out, _ = run()
    assert (code, "versions" in out.split()) == (0, True)


@contextmanager
def read_only(folder: Path, mounted: Path) -> Iterator[Path]:
    """Show a folder where nothing can be written, not even by root. Needs the right to mount; skipped without it."""
    mounted.mkdir()
    for command in (
        ["mount", "--bind", str(folder), str(mounted)],
        ["mount", "-o", "remount,bind,ro", str(mounted)],
    ):
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            subprocess.run(["umount", "-l", str(mounted)], capture_output=True, check=False)
            pytest.skip(f"cannot mount read-only: {done.stderr.strip()}")
    try:
        with pytest.raises(OSError, match="Read-only"):
            (mounted / "x").write_text("x")
        yield mounted
    finally:
        subprocess.run(["umount", "-l", str(mounted)], check=True)


def test_a_read_only_catalog_is_read_by_every_reading_command(built: Web, run: Run, tmp_path: Path) -> None:
    with read_only(Path(built.catalog), tmp_path / "mounted") as mounted:
        at = ["--catalog", str(mounted)]
        for words in [
            ["ls"],
            ["versions", "web"],
            ["show", "web@1"],
            ["diff", "web@1", "web@2"],
            ["sql", "select count(*) from web.verdicts"],
            ["why", "web", "0"],
            ["errors", "web"],
            ["gc", "web"],
            ["takedown", "web", "--list", "--json"],
            ["plan", str(built.folder / "recipe.yaml")],
            ["build", "--dry-run", str(built.folder / "recipe.yaml")],
            ["report", "web@1"],
            ["report", "web@1", "-o", str(tmp_path / "card.html")],
        ]:
            code, out, err = run(*words, *at)
            assert code == 0, (words, err)
            assert out, words
        assert "<title>web · data card" in (tmp_path / "card.html").read_text()
        check(["gc"], *run("gc", "web", "--delete", *at))


def test_a_read_only_catalog_is_searched(run: Run, tmp_path: Path) -> None:
    Planted(tmp_path / "catalog").publish([0])
    at = ["--catalog", str(tmp_path / "catalog")]
    assert run("index", "birds", "--column", "clip", "--kind", "ivf", *at)[0] == 0
    with read_only(tmp_path / "catalog", tmp_path / "mounted") as mounted:
        at = ["--catalog", str(mounted)]
        for words in ([], ["--exact"], ["--where", "width > 0"]):
            code, out, err = run("search", "birds", "--like", "3", "--json", *words, *at)
            assert code == 0, err
            assert len(json.loads(out)["hits"]) > 0
