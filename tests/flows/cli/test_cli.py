"""The command line: results on standard output, one line for a mistake, the exit codes that the help promises."""

import csv
import io
import json
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from flows.build.build import build_here
from flows.build.spec import BuildSpec
from tests.flows.conftest import Run, Web


@pytest.fixture
def built(web: Web) -> Web:
    """Two versions: of four samples, and of two."""
    for keep in (4, 2):
        recipe = web.recipe(f"  - {{use: prune, method: random, keep_rows: {keep}}}\n  - use: report\n")
        build_here(BuildSpec.read(recipe, catalog=web.catalog, executor="inline"))
    return web


def test_sql_in_every_format(built: Web, run: Run, tmp_path: Path) -> None:
    query = "select reason, count(*) as n from web.images group by 1 order by 2"
    code, out, _ = run("sql", query, "--catalog", built.catalog)
    assert code == 0
    assert "not_found" in out
    assert "(2 rows)" in out
    _, out, _ = run("sql", query, "--catalog", built.catalog, "--format", "json")
    assert json.loads(out) == [{"reason": "not_found", "n": 1}, {"reason": None, "n": 7}]
    _, out, _ = run("sql", query, "--catalog", built.catalog, "--format", "csv")
    assert list(csv.reader(io.StringIO(out)))[1] == ["not_found", "1"]
    run("sql", query, "--catalog", built.catalog, "--format", "parquet", "-o", str(tmp_path / "out.parquet"))
    assert pq.read_table(tmp_path / "out.parquet").to_pylist()[0] == {"reason": "not_found", "n": 1}


def test_sql_at_a_version(built: Web, run: Run) -> None:
    counts = []
    query = "select count(*) as n from web.samples"
    for words in ([], ["--at", "1"]):
        _, out, _ = run("sql", query, "--catalog", built.catalog, "--format", "json", *words)
        counts.append(json.loads(out)[0]["n"])
    assert counts == [2, 4]


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["sql", "select * from web.imagse"], "images"),
        (["sql", "select reson from web.images"], "reason"),
        (["sql", "drop table web.images"], "read-only"),
        (["sql", "select * from read_csv('/etc/passwd')"], "espalier: "),
        (["show", "wep"], "did you mean 'web'?"),
        (["show", "web@9"], "no version 9"),
        (["versions", "nothing"], "no dataset 'nothing'"),
        (["diff", "web@1", "web@x"], "names no version"),
        (["retry", "web", "--reason", "timeuot"], "did you mean 'timeout'?"),
        (["build", "no/such.yaml"], "no recipe"),
        (["plan", "no/such.yaml"], "no recipe"),
        (["sql", "select 1", "--format", "xml"], "xml"),
        (["retry", "web", "--reason", ""], "no reason is named; there is: not_found"),
        (["retry", "web", "--reason", "timeout"], "failed for timeout; there is: not_found"),
        (["why", "web", "\udcff"], "is no UTF-8 text"),
        (["why", "web", "9" * 5000], "has no row with the sample_id 9999"),
        (["diff", "web@1", "web@2", "--examples", "-1"], "--examples"),
        (["gc", "web", "--older-than-h", "-1"], "cannot be -1 hours old"),
        (["gc", "web", "--older-than-h", "nan"], "cannot be nan hours old"),
        (["gc", "web", "--keep-versions", "0"], "expected at least 1"),
        (["errors", "wep"], "did you mean 'web'?"),
        (["takedown", "web"], "name the rows with --file"),
        (["takedown", "web", "--file", "/no/such/file.csv"], "it is not there"),
        (["sql", "select 1", "--limit", "-1"], "--limit"),
        (["report", "web", "-o", "/no/such/folder/card.html"], "cannot write '/no/such/folder/card.html'"),
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


def test_versions_show_and_diff(built: Web, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    _, out, _ = run("versions", "web", "--catalog", built.catalog, "--json")
    assert [(v["version"], v["samples"]) for v in json.loads(out)] == [("web@1", 4), ("web@2", 2)]
    with monkeypatch.context() as patch:
        patch.setenv("COLUMNS", "300")  # the folder of a test may have a long name
        _, out, _ = run("show", "web@1", "--catalog", built.catalog)
        for word in ("web@1", "images", "decisions", "a.parquet", "keep_rows: 4"):
            assert word in out
        patch.setenv("COLUMNS", "40")  # what does not fit goes on in the next line, and is not cut off
        _, out, _ = run("show", "web@1", "--catalog", built.catalog)
    assert str(built.folder / "urls") in "".join(line.strip() for line in out.splitlines())
    _, out, _ = run("show", "web", "--catalog", built.catalog, "--json")
    assert json.loads(out)["tables"]["samples"]["rows"] == 2
    _, out, _ = run("diff", "web@1", "web@2", "--catalog", built.catalog, "--json")
    found = json.loads(out)
    assert {r["table"]: (r["added"], r["removed"]) for r in found["rows"]} == {"source": (0, 0), "samples": (0, 2)}
    assert [(c["before"], c["after"], c["rows"]) for c in found["decisions"]] == [("kept", "pruned_random", 2)]
    _, out, _ = run("diff", "web@1", "web@2", "--catalog", built.catalog)
    assert "pruned_random" in out


def test_errors_and_report(built: Web, run: Run, tmp_path: Path) -> None:
    _, out, _ = run("errors", "web", "--catalog", built.catalog)
    assert "not_found" in out
    assert "404" in out
    code, out, _ = run("report", "web@1", "--catalog", built.catalog, "-o", str(tmp_path / "card.html"))
    assert (code, out.strip()) == (0, str(tmp_path / "card.html"))
    assert "<title>web · data card" in (tmp_path / "card.html").read_text()


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::ResourceWarning")  # of Prefect's
def test_a_retry_says_what_it_made(built: Web, run: Run, prefect_server: str) -> None:
    words = ["retry", "web", "--reason", "not_found", "--catalog", built.catalog, "--executor", "inline", "--json"]
    code, out, err = run(*words)
    facts = json.loads(out)
    assert (code, facts["version"], facts["rows_tried"]) == (0, "web@3", 1)
    assert facts["parts_made"] >= 2  # the images of that row's part, and what reads them
    assert "1 row of 1 part to retry; with all parts that depend on them, " in err


def test_gc_shows_before_it_deletes(built: Web, run: Run) -> None:
    words = ["gc", "web", "--catalog", built.catalog, "--keep-versions", "1", "--older-than-h", "0", "--json"]
    _, out, _ = run(*words)
    shown = json.loads(out)
    assert shown["files"]
    assert not shown["deleted"]
    _, out, _ = run(*words, "--delete")
    assert json.loads(out)["files"] == shown["files"]
    _, out, _ = run("sql", "select count(*) as n from web.samples", "--catalog", built.catalog, "--format", "json")
    assert json.loads(out) == [{"n": 2}]
    assert run("show", "web@1", "--catalog", built.catalog)[0] == 2


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
