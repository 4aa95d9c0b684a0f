"""The command line: results on standard output, one line for a mistake, the exit codes that the help promises."""

import json
from pathlib import Path

import pytest

from tests.flows.conftest import Run, Web


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["retry", "web", "--reason", "timeuot"], "did you mean 'timeout'?"),
        (["build", "no/such.yaml"], "no recipe"),
        (["plan", "no/such.yaml"], "no recipe"),
        (["retry", "web", "--reason", ""], "no reason is named; there is: not_found"),
        (["retry", "web", "--reason", "timeout"], "failed for timeout; there is: not_found"),
        (["nonsense"], "nonsense"),
    ],
)
def test_a_mistake_is_one_line_and_exit_code_2(built: Web, run: Run, words: list[str], expected: str) -> None:
    catalog = [] if words == ["nonsense"] else ["--catalog", built.catalog]
    code, out, err = run(*words, *catalog)
    assert (code, out) == (2, "")
    assert expected in err
    assert err.startswith("espalier: ")
    assert len(err.splitlines()) == 1
    assert "Traceback" not in err


def test_debug_shows_the_traceback(built: Web, run: Run) -> None:
    code, _, err = run("--debug", "show", "wep", "--catalog", built.catalog)
    assert code == 2
    assert "Traceback" in err


def test_a_catalog_that_is_not_there(run: Run, tmp_path: Path) -> None:
    code, _, err = run("versions", "web", "--catalog", str(tmp_path / "nowhere"))
    assert code == 2
    assert "is not there" in err


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::ResourceWarning")  # of Prefect's
def test_a_retry_says_what_it_made(own: str, run: Run, prefect_server: str) -> None:
    words = ["retry", "web", "--reason", "not_found", "--catalog", own, "--executor", "inline", "--json"]
    code, out, err = run(*words)
    facts = json.loads(out)
    assert (code, facts["version"], facts["rows_tried"]) == (0, "web@3", 1)
    assert facts["parts_made"] >= 2  # the images of that row's part, and what reads them
    assert "1 row of 1 part to retry; with all parts that depend on them, " in err


def test_plan_knows_what_it_measured(built: Web, run: Run) -> None:
    stages_text = "  - {use: prune, method: random, keep_rows: 1}\n  - use: report\n"
    recipe = built.recipe(stages_text, "prices: {cpu_hour: 0.1}\n")
    code, out, _ = run("plan", str(recipe), "--catalog", built.catalog, "--json")
    stages = {s["stage"]: s for s in json.loads(out)}
    assert code == 0
    assert stages["download"]["status"] == "cached"
    assert (stages["prune"]["status"], stages["prune"]["parts_to_run"]) == ("to run", 1)
    assert stages["prune"]["seconds"] > 0
    assert stages["prune"]["cost"] > 0
    _, out, _ = run("plan", str(recipe), "--catalog", built.catalog)
    assert "cached" in out


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


def test_schema_and_help(run: Run) -> None:
    code, out, _ = run("schema")
    assert code == 0
    assert json.loads(out)["title"] == "Recipe"
    code, out, _ = run("--help")
    assert code == 0
    for command in [
        "build",
        "plan",
        "sql",
        "versions",
        "show",
        "diff",
        "gc",
        "errors",
        "why",
        "takedown",
        "retry",
        "report",
        "deploy",
        "demo",
    ]:
        assert command in out


def test_a_deployment_wants_a_lasting_server(web: Web, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    from prefect.settings import PREFECT_API_URL, temporary_settings

    monkeypatch.delenv("PREFECT_API_URL", raising=False)
    with temporary_settings(restore_defaults={PREFECT_API_URL}):  # other tests of this session may have a server
        code, _, err = run("deploy", str(web.recipe()), "--cron", "0 3 * * *", "--catalog", web.catalog)
    assert code == 2
    assert "prefect server start" in err
