"""The commands that show what a catalog has: their results, formats, and answers to mistakes."""

import csv
import io
import json
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from tests.flows.cli.conftest import check, filled, name_of
from tests.flows.conftest import Run, Web
from tests.flows.vectors import Planted

MISTAKES = [
    ("found 0 statements, expected one SELECT", "sql", ""),
    ("found 0 statements, expected one SELECT", "sql", "   "),
    ('syntax error at or near "selct"', "sql", "selct 1"),
    ("SELECT clause without selection list", "sql", "select"),
    ("found 2 statements, expected one SELECT", "sql", "select 1; select 2"),
    ("was not found", "sql", "select \x00"),
    ("no column 'widht'; did you mean 'width'?", "sql", "select * from web.images where widht > 1"),
    ("did you mean 'reason'?", "sql", "select reson from web.images"),
    ("did you mean 'web.images'?", "sql", "select * from web.imagse"),
    ("no table 'nothing.images'", "sql", "select * from nothing.images"),
    ("read-only", "sql", "drop table web.images"),
    ("file system operations are disabled", "sql", "select * from read_csv('/etc/passwd')"),
    ("--at", "sql", "select 1", "--at", "0"),
    ("--at", "sql", "select 1", "--at", "-1"),
    ("--at", "sql", "select 1", "--at", "x"),
    ("dataset 'web' has no version 99; there is: 1, 2", "sql", "select count(*) from web.images", "--at", "99"),
    ("--limit", "sql", "select 1", "--limit", "-1"),
    ("'xml' is not one of 'table', 'csv', 'json', 'jsonl', 'parquet'", "sql", "select 1", "--format", "xml"),
    ("--timeout is -1, expected seconds, or 0 for no limit", "sql", "select 1", "--timeout", "-1"),
    ("--timeout is nan", "sql", "select 1", "--timeout", "nan"),
    ("--memory", "sql", "select 1", "--memory", "0"),
    ("it has the ending '.xls'; known are .csv", "sql", "select 1", "-o", "x.xls"),
    ("cannot write '/no/such/folder/x.csv'", "sql", "select 1", "-o", "/no/such/folder/x.csv"),
    ("it is a folder", "sql", "select 1", "-o", "{folder}", "--format", "csv"),
    ("it has no ending", "sql", "select 1", "-o", ""),
    ("syntax error", "sql", "(" * 3000),
    ("expression depth limit of 1000", "sql", "select " + "(" * 3000 + "1" + ")" * 3000),
    ("no", "sql", "select error('no')"),
    ("Could not convert string 'x' to INT32", "sql", "select 'x'::int"),
    ("disabled by configuration", "sql", "select 1 // 0 as a from read_parquet('/etc/passwd')"),
    ("did you mean 'web'?", "show", "wep"),
    ("no version 9", "show", "web@9"),
    ("no dataset 'nothing'", "versions", "nothing"),
    ("did you mean 'web'?", "errors", "wep"),
    ("names no version", "diff", "web@1", "web@x"),
    ("no version 99", "diff", "web", "web@99"),
    ("no dataset ''", "diff", "web", ""),
    ("--examples", "diff", "web@1", "web@2", "--examples", "-1"),
    ("a row is named by its URL or its sample_id", "why", "web", ""),
    ("No such option: -1", "why", "web", "-1"),
    ("no row with the sample_id 99999999999999999999", "why", "web", "99999999999999999999"),
    ("has no row with the sample_id 9999", "why", "web", "9" * 5000),
    ("no row with the URL 'http://not/there'", "why", "web", "http://not/there"),
    ("cannot write '/no/such/folder/x.html'", "report", "web@1", "-o", "/no/such/folder/x.html"),
    ("it is a folder", "report", "web@1", "-o", "{folder}"),
    ("unexpected extra argument", "ls", "extra"),
]


@pytest.mark.parametrize("mistake", MISTAKES, ids=name_of)
def test_a_mistake_is_one_line(built: Web, run: Run, mistake: tuple[str, ...]) -> None:
    expected, *words = mistake
    check(words, *run(*filled(built, words), "--catalog", built.catalog), expected=expected)


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


def test_the_limit_is_of_tables_on_the_terminal(built: Web, run: Run, tmp_path: Path) -> None:
    """A file has all rows; its format is that of its ending."""
    words = ["sql", "select sample_id from web.images order by 1", "--catalog", built.catalog, "--limit", "3"]
    code, out, err = run(*words)
    assert (code, err) == (0, "")
    assert "(8 rows, 5 not shown)" in out
    assert run(*words, "-o", str(tmp_path / "out.jsonl"))[:2] == (0, "")
    assert len((tmp_path / "out.jsonl").read_text().splitlines()) == 8


def test_sql_at_a_version(built: Web, run: Run) -> None:
    counts = []
    query = "select count(*) as n from web.samples"
    for words in ([], ["--at", "1"]):
        _, out, _ = run("sql", query, "--catalog", built.catalog, "--format", "json", *words)
        counts.append(json.loads(out)[0]["n"])
    assert counts == [2, 4]


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


def test_report_prints_the_path_of_the_card(built: Web, own: str, run: Run, tmp_path: Path) -> None:
    code, out, _ = run("report", "web", "--catalog", own)
    assert code == 0
    assert Path(own) in Path(out.strip()).parents
    assert "<title>web · data card" in Path(out.strip()).read_text()
    code, out, _ = run("report", "web@1", "--catalog", built.catalog, "-o", str(tmp_path / "card.html"))
    assert (code, out.strip()) == (0, str(tmp_path / "card.html"))
    assert "<title>web · data card" in (tmp_path / "card.html").read_text()


def test_errors_of_a_version(built: Web, run: Run) -> None:
    for label in ("web", "web@1"):
        code, out, _ = run("errors", label, "--catalog", built.catalog, "--json")
        assert (code, [(row["reason"], row["rows"]) for row in json.loads(out)]) == (0, [("not_found", 1)])
    _, out, _ = run("errors", "web", "--catalog", built.catalog)
    assert "not_found" in out
    assert "404" in out


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


def test_ls_and_versions_count_bytes_on_disk(own: str, run: Run) -> None:
    (Path(own) / "begun" / "source").mkdir(parents=True)
    (Path(own) / "begun" / "source" / "x.parquet").write_bytes(b"x" * 20_000)
    code, out, _ = run("ls", "--catalog", own, "--json")
    rows = {row["dataset"]: row for row in json.loads(out)}
    assert (code, list(rows)) == (0, ["begun", "order", "select", "web"])
    assert (rows["web"]["last"], rows["web"]["samples"], rows["web"]["versions"]) == ("web@2", 2, 2)
    assert (rows["begun"]["versions"], rows["begun"]["MB"], rows["begun"]["last_build"]) == (0, 0.02, None)
    assert rows["begun"]["note"] == "nothing published"
    disk = sum(path.stat().st_size for path in (Path(own) / "web").rglob("*") if path.is_file())
    assert rows["web"]["MB"] == round(disk / 1e6, 2)
    assert "nothing published" in run("ls", "--catalog", own)[1]
    _, out, _ = run("versions", "web", "--catalog", own, "--json")
    _, shown, _ = run("show", "web@1", "--catalog", own, "--json")
    tables = sum(table["bytes"] for table in json.loads(shown)["tables"].values())
    shards = sum(path.stat().st_size for path in (Path(own) / "web" / "shards").rglob("*"))
    assert shards > 3000
    assert json.loads(out)[0]["MB"] == round((tables + shards) / 1e6, 2)


def test_nothing_to_list(built: Web, run: Run, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    for words in (
        ["ls", "--catalog", str(tmp_path / "empty")],
        ["takedown", "web", "--list", "--catalog", built.catalog],
    ):
        assert run(*words) == (0, "nothing\n", "")
        assert run(*words, "--json") == (0, "[]\n", "")


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
