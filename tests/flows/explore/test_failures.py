"""Rows that failed: how many there are, and what trying them again comes to, before and after."""

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from catalog.dataset import Catalog
from catalog.errors import BusyError, UserError
from catalog.lease import hold
from flows.build.build import build_here
from flows.build.plan import RETRIES
from flows.build.spec import BuildSpec
from flows.cli import main
from flows.explore.failures import begin_retry, plan_retry
from tests.flows.conftest import Web
from tests.pictures import jpeg

STAGES = """\
  - use: language
  - use: filter
    where: original_width >= 10
"""


def built(web: Web, stages: str = STAGES) -> str:
    """Build five parts, one row of which failed and now heals; return its URL."""
    flaky = web.server.heals(jpeg(96, 80, 77), [(503, {})])
    web.add_file("b", [*web.pictures(range(20, 23)), flaky])
    web.add_file("c", web.pictures(range(30, 38)))
    build_here(BuildSpec.read(web.recipe(stages), catalog=web.catalog, executor="inline"))
    return flaky


def run(web: Web, monkeypatch: pytest.MonkeyPatch, *words: str) -> int:
    monkeypatch.setattr(sys, "argv", ["espalier", *words, "--catalog", web.catalog])
    with pytest.raises(SystemExit) as caught:
        main()
    return int(caught.value.code or 0)


def made_since(web: Web, runs: int) -> dict[str, int]:
    found = Catalog(web.catalog).dataset("web").runs().to_pylist()[runs:]
    return {row["stage"]: row["parts_made"] for row in found}


def test_one_row_makes_anew_its_part_alone(web: Web) -> None:
    flaky = built(web)
    dataset = Catalog(web.catalog).dataset("web")
    runs, before = dataset.runs().num_rows, dict(web.server.hits)
    found = begin_retry(dataset, ["server_error"], web.catalog, "inline")
    assert (found.rows, found.parts, found.made) == (1, 1, 4)
    outcome = build_here(found.spec)
    assert outcome.made == found.made
    assert made_since(web, runs) == {"download": 1, "language": 1, "filter": 1, "samples": 1}
    asked = {url: n - before.get(url, 0) for url, n in web.server.hits.items() if n != before.get(url, 0)}
    assert {url for url in asked if not url.endswith((".txt", ".json"))} == {flaky}


def test_what_judges_all_rows_is_made_anew_too(web: Web) -> None:
    """And every part of what comes after it, as any row may be judged otherwise now."""
    built(web, STAGES + "  - {use: prune, method: random, keep: 0.5}\n")
    dataset = Catalog(web.catalog).dataset("web")
    runs = dataset.runs().num_rows
    found = begin_retry(dataset, ["server_error"], web.catalog, "inline")
    assert build_here(found.spec).made == found.made == 1 + 1 + 1 + 1 + 5
    assert made_since(web, runs) == {"download": 1, "language": 1, "filter": 1, "prune": 1, "samples": 5}


def test_a_dry_run_says_it_and_changes_nothing(
    web: Web, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    built(web)
    folder = Path(web.catalog) / "web"
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    assert run(web, monkeypatch, "retry", "web", "--reason", "server", "--dry-run", "--json") == 0
    facts: dict[str, Any] = json.loads(capsys.readouterr().out)
    stages = {s["stage"]: (s["parts"], s["parts_to_run"], s["rows"]) for s in facts.pop("stages")}
    assert facts == {"rows_tried": 1, "parts_tried": 1, "parts_to_run": 4, "parts": 25}
    assert stages == {
        "parquet": (5, 0, 0), "download": (5, 1, 4), "language": (5, 1, 4), "filter": (5, 1, 4), "samples": (5, 1, 4)
    }  # fmt: skip
    assert run(web, monkeypatch, "retry", "web", "--reason", "server", "--dry-run") == 0
    out = capsys.readouterr().out
    assert "1 row of 1 part to retry; with all parts that depend on them, 4 of 25 parts are made" in out
    assert "download" in out
    assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before
    assert run(web, monkeypatch, "retry", "web", "--reason", "timeuot", "--dry-run") == 2


def test_rows_whose_files_are_gone_cannot_be_tried(web: Web) -> None:
    built(web)
    dataset = Catalog(web.catalog).dataset("web")
    (web.folder / "urls" / "b.parquet").unlink()
    with pytest.raises(UserError, match="1 row failed for server_error, but none is in the source any more"):
        plan_retry(dataset, ["server"], web.catalog, "inline")


def test_nothing_is_ordered_while_somebody_builds(web: Web) -> None:
    built(web)
    dataset = Catalog(web.catalog).dataset("web")
    with hold(dataset), pytest.raises(BusyError, match="is being built"):
        begin_retry(dataset, ["server"], web.catalog, "inline")
    assert dataset.state(RETRIES) == {}
