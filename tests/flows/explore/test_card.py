"""A card belongs to its version, whatever is built later, and drawing it never makes a build fail."""

from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from catalog import runs as runs_module
from catalog.database import sql
from catalog.dataset import Catalog, Dataset
from catalog.takedown.reach import Names
from catalog.version import Version
from flows.build.build import build_here
from flows.build.context import BuildContext
from flows.build.progress import Display
from flows.build.report import draw_report, lineage, timings
from flows.build.spec import BuildSpec
from flows.explore.card import card_of
from flows.explore.failures import begin_retry
from flows.govern.takedown import take_down
from tests.flows.conftest import Web
from tests.pictures import jpeg

STAGES = """\
  - {use: filter, where: width >= 10}
  - {use: prune, method: random, keep_rows: KEPT}
  - use: report
"""


class Listener(Display):
    """Keeps what a build says."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def message(self, text: str) -> None:
        self.lines.append(text)


def build(web: Web, kept: int = 4, display: Display | None = None) -> Version:
    spec = BuildSpec.read(web.recipe(STAGES.replace("KEPT", str(kept))), catalog=web.catalog, executor="inline")
    return build_here(spec, BuildContext(display or Display())).version


def test_the_card_of_a_version_stays_its_own(web: Web) -> None:
    """Its page is the same byte for byte, drawn again after a growth, other parameters, a retry and a takedown."""
    dataset = Catalog(web.catalog, create=True).dataset("web")
    first = build(web)
    page = (Path(web.catalog) / "web/_reports/1.html").read_bytes()
    web.add_file("b", [web.server.heals(jpeg(96, 80, 77), [(503, {})]), *web.pictures(range(20, 23))])
    build(web)
    build(web, kept=2)
    spec = begin_retry(dataset, ["server_error"], web.catalog, "inline").spec
    build_here(spec)
    newest = sql(Catalog(web.catalog), "select max(sample_id)::varchar as id from web.samples").to_pylist()[0]["id"]
    take_down(dataset, Names.of([newest]))
    assert draw_report(dataset, first) == page
    assert Path(card_of(Catalog(web.catalog), "web@1", None)).read_bytes() == page
    cards = {version.number: draw_report(dataset, version) for version in dataset.versions()}
    assert cards[2] != cards[1]


def test_timings_are_those_of_the_parts_that_a_version_has(web: Web) -> None:
    dataset = Catalog(web.catalog, create=True).dataset("web")
    first = build(web)
    facts = {t["stage"]: (t["parts"], t["cached_parts"], t["rows"]) for t in timings(dataset, first)}
    assert facts["download"] == (2, 0, 8)
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


def test_pictures_of_one_size_and_one_that_is_not(web: Web) -> None:
    """Their aspect ratios fall into one bin, however often it is cut finer: a division by zero, once."""
    web.add_file("a", [*[web.server.body(jpeg(24, 24, seed)) for seed in range(220)], web.server.body(jpeg(30, 2, 1))])
    recipe = web.recipe("  - use: report\n")
    recipe.write_text(recipe.read_text().replace("rows_per_part: 4", "rows_per_part: 500"))
    outcome = build_here(BuildSpec.read(recipe, catalog=web.catalog, executor="inline"))
    assert outcome.report is not None
    rows = pq.read_table(sorted((Path(web.catalog) / "web/report").glob("*.parquet"))[0])["section"].to_pylist()
    assert "histogram" in rows
