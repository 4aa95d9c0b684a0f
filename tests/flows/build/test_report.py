"""The data card of a version: drawn from its report, with where the version comes from and what its stages took."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from catalog import runs as runs_module
from catalog.database import sql
from catalog.dataset import Catalog, Dataset
from catalog.takedown.reach import Names
from flows.build.progress import Display
from flows.build.report import draw_report, lineage, page_path, report_path, timings, write_report
from flows.explore.card import card_of
from flows.govern.takedown import take_down
from tests.flows.cards import build
from tests.flows.conftest import Web


class Listener(Display):
    """Keeps what a build says."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def message(self, text: str) -> None:
        self.lines.append(text)


def test_timings_are_those_of_the_parts_that_a_version_has(web: Web) -> None:
    dataset = Catalog(web.catalog, create=True).dataset("web")
    first = build(web)
    facts = {t["stage"]: (t["parts"], t["cached_parts"], t["rows"]) for t in timings(dataset, first)}
    assert facts["download"] == (2, 0, 8)
    assert report_path(dataset, first) == f"{dataset.storage.uri}/{page_path(1)}" == write_report(dataset, first)
    dataset.storage.delete([page_path(1)])
    assert report_path(dataset, first) is None
    card = draw_report(dataset, first)
    assert card is not None
    assert card.startswith(b"<!doctype html>")
    assert report_path(dataset, first) is None, "drawing writes nothing"
    tables = {name: state for name, state in first.tables.items() if name != "report"}
    assert write_report(dataset, replace(first, tables=tables)) is None
    web.add_file("b", web.pictures(range(20, 22)))
    second = build(web)
    assert {t["stage"]: t["parts"] for t in timings(dataset, first)} == {name: n for name, (n, _, _) in facts.items()}
    again = {t["stage"]: (t["parts"], t["cached_parts"], t["rows"]) for t in timings(dataset, second)}
    assert again["download"] == (1, 2, 2)
    third = build(web, kept=2)  # the download is cached: it took what it took for the second
    assert {t["stage"]: t["parts"] for t in timings(dataset, third)}["download"] == 1


def test_runs_of_an_older_release_count_by_name(web: Web, monkeypatch: pytest.MonkeyPatch) -> None:
    fields = [field for field in runs_module.RUNS if field.name != "fingerprint"]
    record = Dataset.record_run

    def older(self: Dataset, *runs: dict[str, Any]) -> None:
        record(self, *({name: run[name] for name in run if name != "fingerprint"} for run in runs))

    with monkeypatch.context() as patch:
        patch.setattr(runs_module, "RUNS", pa.schema(fields))
        patch.setattr(Dataset, "record_run", older)
        first = build(web)
    dataset = Catalog(web.catalog).dataset("web")
    before = timings(dataset, first)
    assert [t["stage"] for t in before][:2] == ["parquet", "download"]
    build(web, kept=2)
    assert timings(dataset, first) == before
    found = sql(Catalog(web.catalog), "select count(*) as n, count(fingerprint) as known from web.runs").to_pylist()[0]
    assert 0 < found["known"] < found["n"]


def test_counts_of_a_version_follow_a_takedown(web: Web) -> None:
    first = build(web)
    dataset = Catalog(web.catalog).dataset("web")
    newest = sql(Catalog(web.catalog), "select max(sample_id)::varchar as id from web.samples").to_pylist()[0]["id"]
    take_down(dataset, Names.of([newest]))
    facts = {stage["table"]: stage["rows"] for stage in lineage(dataset.version(first.number))["stages"]}
    assert (first.tables["samples"].rows, facts["samples"]) == (4, 3)


def test_a_card_that_cannot_be_written_is_one_line(web: Web) -> None:
    folder = Path(web.catalog) / "web"
    folder.mkdir(parents=True)
    (folder / "_reports").write_text("a file where the cards' folder should be")
    listener = Listener()
    version = build(web, display=listener)
    assert version.number == 1
    (line,) = [line for line in listener.lines if "could not be drawn" in line]
    assert f"`espalier report web@1 --catalog {web.catalog}` draws it again" in line
    assert "\n" not in line
    assert listener.lines[-1].startswith("1 of 8 rows failed: 1 not_found; `espalier errors web")
    (folder / "_reports").unlink()
    assert Path(card_of(Catalog(web.catalog), "web@1", None)).exists()
