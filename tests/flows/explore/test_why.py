"""The story of a row: the same verdict as the view, for rows that are in and for rows that are out for any reason."""

import json
import sys
from pathlib import Path

import pytest

from catalog.database import sql
from catalog.dataset import Catalog
from catalog.errors import NotFoundError
from flows.build.build import build_here
from flows.build.spec import BuildSpec
from flows.cli import main
from flows.explore.why import stories
from flows.recipe.recipe import stage_models
from tests.flows.conftest import Run, Web
from tests.pictures import jpeg

STAGES = """  - use: filter
    where: original_width >= 50
  - use: deduplicate
  - {use: prune, method: random, keep_rows: 4}
"""


@pytest.fixture
def built(web: Web) -> Web:
    web.add_file("b", [web.server.body(jpeg(40, 80, 99))])
    build_here(BuildSpec.read(web.recipe(STAGES), catalog=web.catalog, executor="inline"))
    return web


def test_every_row_has_one_verdict_and_a_story_that_ends_in_it(built: Web) -> None:
    catalog = Catalog(built.catalog)
    verdicts = sql(catalog, "select * from web.verdicts order by sample_id").to_pylist()
    counts: dict[str | None, int] = {}
    for verdict in verdicts:
        counts[verdict["stage"]] = counts.get(verdict["stage"], 0) + 1
        (facts,) = stories(catalog, "web", str(verdict["sample_id"]))
        assert facts["verdict"] == {k: verdict[k] for k in ("keep", "stage", "reason", "evidence")}
        assert (facts["published"] is not None) == verdict["keep"]
    assert counts == {None: 4, "download": 1, "filter": 1, "deduplicate": 1, "prune": 2}


def test_no_stage_judges_what_is_out_already() -> None:
    judges = [model for model in stage_models() if getattr(model, "table", "") == "decisions"]
    assert judges
    assert all(model.alive_only for model in judges), "the view `verdicts` counts on one rejection a row"


def test_a_copy_names_what_stands_for_it(built: Web) -> None:
    catalog = Catalog(built.catalog)
    url = sql(catalog, "select url from web.source where sample_id = 0").to_pylist()[0]["url"]
    first, copy = stories(catalog, "web", url)
    assert first["stands_for"] == 1
    assert (copy["verdict"]["reason"], copy["verdict"]["stage"]) == ("duplicate_exact", "deduplicate")
    judged = copy["decisions"][-1]
    assert (judged["representative"], judged["representative_url"], judged["similarity"]) == (0, url, 1)
    assert [row["stage"] for row in first["decisions"]] == ["filter", "deduplicate", "prune"]
    assert first["decisions"][0]["thresholds"] == {"where": "original_width >= 50"}


def test_a_decision_has_the_numbers_of_its_evidence(built: Web, run: Run) -> None:
    query = "select sample_id from web.decisions where stage = 'filter' and not keep"
    (row,) = sql(Catalog(built.catalog), query).to_pylist()
    (facts,) = stories(Catalog(built.catalog), "web", str(row["sample_id"]))
    assert facts["decisions"][0]["numbers"] == {"original_width": 40}
    _, shown, _ = run("why", "web", str(row["sample_id"]), "--catalog", built.catalog)
    assert "numbers: original_width 40" in shown
    kept = next(iter(stories(Catalog(built.catalog), "web", "0")))["decisions"]
    assert kept[0]["numbers"] == {}


def test_where_a_row_came_from(built: Web) -> None:
    rows = sql(Catalog(built.catalog), "select sample_id from web.source order by 1")["sample_id"].to_pylist()
    origins = [stories(Catalog(built.catalog), "web", str(i))[0]["source"] for i in rows]
    assert [(Path(o["file"]).name, o["row"]) for o in origins] == [("a.parquet", n) for n in range(8)] + [
        ("b.parquet", 0)
    ]


def test_an_older_version_tells_its_own_story(built: Web) -> None:
    none_left = built.recipe(STAGES.replace("50", "5000"), "guards: {no_samples: false}\n")
    build_here(BuildSpec.read(none_left, catalog=built.catalog, executor="inline"))
    catalog = Catalog(built.catalog)
    assert stories(catalog, "web", "0")[0]["verdict"]["stage"] == "filter"
    assert stories(catalog, "web@1", "0")[0]["verdict"]["stage"] != "filter"


def test_an_unknown_row(built: Web) -> None:
    catalog = Catalog(built.catalog)
    url = sql(catalog, "select url from web.source where sample_id = 1").to_pylist()[0]["url"]
    with pytest.raises(NotFoundError, match=r"no row with the URL .*; did you mean 'http://") as caught:
        stories(catalog, "web", url + "x")
    assert "\n" not in str(caught.value)
    with pytest.raises(NotFoundError, match="a row is named by its URL or its sample_id"):
        stories(catalog, "web", "something else")
    with pytest.raises(NotFoundError, match="no row with the sample_id 77"):
        stories(catalog, "web", "77")


def test_the_command(built: Web, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def run(*words: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["espalier", "why", *words, "--catalog", built.catalog])
        with pytest.raises(SystemExit) as caught:
            main()
        out, err = capsys.readouterr()
        return int(caught.value.code or 0), out, err

    code, out, _ = run("web", str(1 << 24 | 2))
    assert code == 0
    for words in ("duplicate_exact", "same SHA-256", "espalier why web@1 0", "published", "picture 6 of a"):
        assert words in out
    kept = sql(Catalog(built.catalog), "select sample_id from web.samples limit 1").to_pylist()[0]["sample_id"]
    _, out, _ = run("web", str(kept))
    assert out.splitlines()[0].endswith("  kept")
    code, out, _ = run("web", "0", "--json")
    assert (code, json.loads(out)[0]["sample_id"]) == (0, 0)
    code, out, err = run("web", "http://nowhere/")
    assert (code, out, len(err.splitlines())) == (2, "", 1)
