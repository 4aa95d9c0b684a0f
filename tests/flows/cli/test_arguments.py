"""Arguments that several commands have: the catalog, and a dataset or one of its versions."""

import inspect
import json
from pathlib import Path

import pytest

from catalog.errors import NotFoundError
from flows.cli.app import COMMANDS
from flows.cli.arguments import open_catalog, open_dataset
from tests.flows.cli.conftest import check, filled
from tests.flows.conftest import Run, Web

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
    "approve": [],
    "verify": [],
}
"""The commands whose first argument names a dataset or version, with the other arguments that they need."""


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


def test_every_command_that_names_a_dataset_is_tried() -> None:
    first = {command.__name__: next(iter(inspect.signature(command).parameters), "") for command in COMMANDS}
    assert {name for name, argument in first.items() if argument in ("label", "dataset")} == set(LABELLED)


def test_the_catalog_is_that_of_the_option_the_environment_or_datasets(
    built: Web, run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    check(["ls"], *run("ls"), expected="datasets")
    (tmp_path / "datasets").symlink_to(built.catalog)
    (tmp_path / "empty").mkdir()
    for environment, words, expected in [
        (None, [], ["order", "select", "web"]),
        ("empty", [], []),
        ("empty", ["--catalog", built.catalog], ["order", "select", "web"]),
    ]:
        if environment:
            monkeypatch.setenv("ESPALIER_CATALOG", environment)
        code, out, _ = run("ls", *words, "--json")
        assert (code, [row["dataset"] for row in json.loads(out)]) == (0, expected)


def test_open_what_is_there(built: Web, tmp_path: Path) -> None:
    assert open_catalog(built.catalog).datasets() == ("order", "select", "web")
    assert open_dataset("web", built.catalog).version().label == "web@2"
    with pytest.raises(NotFoundError, match="did you mean 'web'"):
        open_dataset("wep", built.catalog)
    with pytest.raises(NotFoundError, match="does not exist"):
        open_catalog(str(tmp_path / "nowhere"))
    assert not (tmp_path / "nowhere").exists()
