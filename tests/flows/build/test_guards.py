"""Guards hold a version back; it can be read by its number, tried again, and approved. Nothing else sees it."""

import json
from collections.abc import Sequence
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from catalog.dataset import Catalog, Dataset
from catalog.errors import HeldError, NotFoundError, UserError
from catalog.takedown.reach import Names
from flows.build.build import build_here, up_to_date
from flows.build.failed_rows import FailedRows
from flows.build.spec import BuildSpec
from flows.explore.failures import begin_retry
from flows.explore.index import budget_of, update
from flows.explore.save import check_target
from flows.explore.search import Query, search
from flows.govern.approve import approve
from flows.govern.takedown import take_down
from flows.recipe.guards import Guards
from tests.flows.conftest import Run, Web
from tests.flows.shelf import Shelf
from tests.flows.vectors import Planted
from tests.pictures import jpeg


def names(found: Sequence[str]) -> list[str]:
    return [reason.partition(":")[0] for reason in found]


def test_no_samples_and_min_rows(shelf: Shelf) -> None:
    some = [shelf.samples(0, 3), shelf.samples(1, 2)]
    assert names(shelf.tripped(Guards())) == ["no_samples"]
    assert shelf.tripped(Guards(no_samples=False)) == ()
    assert shelf.tripped(Guards(min_rows=5), samples=some) == ()
    assert shelf.tripped(Guards(min_rows=6), samples=some) == ("min_rows: 5 rows are kept, expected at least 6",)
    assert names(shelf.tripped(Guards(min_rows=1))) == ["no_samples", "min_rows"]


def test_an_outage_is_of_the_rows_that_were_tried(shelf: Shelf) -> None:
    some = [shelf.samples(0, 1)]
    old = shelf.images(0, [None, "not_found", "timeout"])
    down = shelf.images(1, ["dns_failed", "timeout", "dns_failed"])
    shown = "outage: every row that was tried failed for reasons of the network (2 dns_failed, 1 timeout)"
    assert shelf.tripped(Guards(), [down], some) == (shown,)
    assert shelf.tripped(Guards(outage=False), [down], some) == ()
    assert shelf.tripped(Guards(), [old, down], some) == ()  # all of a first build: one of its rows came
    shelf.publish([old], some)
    assert shelf.tripped(Guards(), [old, down], some) == (shown,)  # all that is new since the last version
    assert shelf.tripped(Guards(), [old], some) == ()  # nothing was tried
    assert shelf.tripped(Guards(), [old, shelf.images(1, ["timeout", "not_found"])], some) == ()
    again = shelf.images(0, ["timeout", "timeout", "timeout"])  # one had come before
    assert shelf.tripped(Guards(), [again], some) == (shown.replace("2 dns_failed, 1 timeout", "1 timeout"),)
    shelf.publish([old, down], some)
    assert shelf.tripped(Guards(), [old, shelf.images(1, ["timeout"] * 3)], some) == ()  # a retry that did not help


def test_failed_shares(shelf: Shelf) -> None:
    some = [shelf.samples(0, 1)]
    images = [
        shelf.images(0, [None, "timeout", "not_found", "taken_down"]),
        shelf.images(1, [None, None, "timeout", None]),
    ]
    found = shelf.tripped(Guards(max_failed={"any": 0.25, "timeout": 0.2, "not_found": 0.125}), images, some)
    assert found == (
        "max_failed: 3 of 8 rows (37.5 %) failed, expected at most 25 %",  # one more was taken down: on purpose
        "max_failed: 2 of 8 rows (25 %) failed for timeout, expected at most 20 %",
    )
    assert shelf.tripped(Guards(max_failed={"any": 0.375, "timeout": 0.25}), images, some) == ()


def test_change_counts_rows_not_totals(shelf: Shelf) -> None:
    first = [shelf.samples(0, 10), shelf.samples(1, 10)]
    guards = Guards(max_change=0.25)
    assert shelf.tripped(guards, samples=[shelf.samples(0, 1)]) == ()  # there is nothing to compare with
    shelf.publish(samples=first)
    assert shelf.tripped(guards, samples=first) == ()
    assert shelf.tripped(guards, samples=[first[0], shelf.samples(1, 5)]) == ()
    assert shelf.tripped(guards, samples=[first[0], shelf.samples(1, 4)]) == (
        "max_change: 6 of the 20 rows of web@1 are removed and 0 came in (30 %), expected at most 25 %",
    )
    assert shelf.tripped(guards, samples=[*first, shelf.samples(2, 6)]) == (
        "max_change: 0 of the 20 rows of web@1 are removed and 6 came in (30 %), expected at most 25 %",
    )
    other = [first[0], shelf.samples(3, 10)]  # as many rows, half of them others
    assert "10 of the 20 rows of web@1 are removed and 10 came in (100 %)" in shelf.tripped(guards, samples=other)[0]
    assert shelf.tripped(Guards(max_change=1), samples=other) == ()


def spec_of(web: Web, text: str = "", stages: str = "  - use: report\n") -> BuildSpec:
    return BuildSpec.read(web.recipe(stages, text), catalog=web.catalog, executor="inline")


def dataset_of(web: Web) -> Dataset:
    return Catalog(web.catalog).dataset("web")


def sql_count(run: Run, web: Web, table: str, *words: str) -> int:
    code, out, err = run(
        "sql", f"select count(*) as n from web.{table}", "--catalog", web.catalog, "--format", "json", *words
    )
    assert code == 0, err
    return int(json.loads(out)[0]["n"])


def test_an_outage_is_held_tried_again_and_never_the_latest_meanwhile(web: Web, run: Run) -> None:
    where = ["--catalog", web.catalog]
    assert build_here(spec_of(web)).version.number == 1
    ill = [web.server.heals(jpeg(96, 80, seed), [(503, {})]) for seed in (40, 41)]
    web.add_file("b", ill)
    with pytest.raises(HeldError) as caught:
        build_here(spec_of(web))
    shown = str(caught.value)
    assert shown == (
        "web@2 is held, and web@1 stays the latest: outage: every row that was tried failed for reasons of the network "
        f"(2 server_error). `espalier approve web@2 --catalog {web.catalog}` makes it the latest; "
        f"`espalier retry web@2 --reason server_error --catalog {web.catalog}` tries failed rows again"
    )
    facts = caught.value.facts
    assert (facts["version"], facts["failed"]["reasons"]) == ("web@2", {"server_error": 2, "not_found": 1})
    assert Path(facts["report"]).exists()

    asked = dict(web.server.hits)
    code, out, err = run("build", str(web.folder / "recipe.yaml"), *where, "--executor", "inline", "--json")
    assert (code, err.strip().splitlines()[-1], json.loads(out)) == (1, f"espalier: {shown}", facts | {"parts_made": 0})
    assert (web.server.hits, [v.number for v in dataset_of(web).versions()]) == (asked, [1, 2])

    assert sql_count(run, web, "source") == 8
    assert sql_count(run, web, "source", "--at", "2") == 10
    code, out, _ = run("versions", "web", *where, "--json")
    assert [(v["version"], v["state"], v["held_for"]) for v in json.loads(out)] == [
        ("web@1", "", []),
        ("web@2", "held", ["outage: every row that was tried failed for reasons of the network (2 server_error)"]),
    ]
    assert "held" in run("versions", "web", *where)[1]
    assert "held: outage: every row" in run("show", "web@2", *where)[1]
    assert json.loads(run("show", "web", *where, "--json")[1])["version"] == "web@1"
    for words in (["diff", "web@1", "web@2"], ["report", "web@2"], ["why", "web@2", ill[0]]):
        assert run(*words, *where)[0] == 0, words
    assert json.loads(run("diff", "web", "web@2", *where, "--json")[1])["a"] == "web@1"
    assert run("why", "web", ill[0], *where)[0] == 2  # the latest has no such row

    found = begin_retry(dataset_of(web), ["server_error"], web.catalog, "inline", dataset_of(web).version(2))
    spec, rows = found.spec, found.rows
    assert rows == 2
    outcome = build_here(spec)
    assert (outcome.version.number, outcome.version.tables["samples"].rows) == (3, 9)
    assert outcome.failed == FailedRows(10, {"not_found": 1})
    assert dataset_of(web).version().number == 3


def test_a_first_version_that_is_held(web: Web, run: Run) -> None:
    """There is no latest then; approving makes one, once."""
    where = ["--catalog", web.catalog]
    strict = spec_of(web, "guards: {min_rows: 8}\n", "")
    with pytest.raises(HeldError, match="web@1 is held, and there is no other version: min_rows: 7 rows are kept"):
        build_here(strict)
    assert "held" in run("versions", "web", *where)[1]
    code, _, err = run("sql", "select count(*) from web.samples", *where)
    assert (code, err.count("\n")) == (2, 1)
    assert "name one, like web@1, or let it count with `espalier approve web@1`" in err
    assert run("approve", "web@1", *where) == (0, "web@1 is approved; it is the latest version of web\n", "")
    code, _, err = run("approve", "web@1", *where)
    assert (code, err.startswith("espalier: web@1 was approved before, at 20")) == (2, True)
    assert sql_count(run, web, "samples") == 7
    found = up_to_date(strict)
    assert found is not None
    assert found.version.number == 1
    assert build_here(strict).version.number == 1


def test_a_guard_that_is_turned_off_lets_the_same_parts_through(web: Web) -> None:
    with pytest.raises(HeldError, match="web@1 is held, and there is no other version: min_rows: "):
        build_here(spec_of(web, "guards: {min_rows: 8}\n"))
    asked = dict(web.server.hits)
    outcome = build_here(spec_of(web))
    assert (outcome.version.number, outcome.made, web.server.hits) == (2, 0, asked)
    with pytest.raises(HeldError, match=r"web@3 .* web@2 stays the latest: max_change: 3 of the 7 rows"):
        build_here(spec_of(web, "guards: {max_change: 0.4}\n", "  - {use: prune, method: random, keep_rows: 4}\n"))
    build_here(spec_of(web, "", "  - {use: prune, method: random, keep_rows: 5}\n"))
    approved, last = approve(Catalog(web.catalog), "web@3")
    assert (approved.label, last.label) == ("web@3", "web@4")


def test_a_held_version_is_searched_and_indexed_by_its_number(tmp_path: Path) -> None:
    birds = Planted(tmp_path)
    birds.publish([0])
    birds.publish([0, 1], held=["small"])
    like = (1 << 24) + 17
    found = search(birds.catalog, "birds@2", Query(like=like))
    assert (found.version.label, found.searched) == ("birds@2", 600)
    with pytest.raises(NotFoundError, match=r"birds@1 has no sample"):
        search(birds.catalog, "birds", Query(like=like))
    version = birds.catalog.resolve("birds@2")
    made = update(birds.dataset, version, "", budget_of("flat", 100.0, 0.9))
    assert made.facts["rows"] == 600
    with pytest.raises(UserError, match="is a dataset that was built"):
        check_target(birds.catalog, "birds")
    only = Planted(tmp_path / "other")
    only.publish([0], held=["small"])
    with pytest.raises(UserError, match="is a dataset that was built"):
        check_target(only.catalog, "birds")


def test_a_takedown_reaches_held_versions(web: Web) -> None:
    first = build_here(spec_of(web)).version
    web.add_file("b", web.pictures(range(30, 32)))
    with pytest.raises(HeldError, match="web@2 is held, and web@1 stays the latest: min_rows: "):
        build_here(spec_of(web, "guards: {min_rows: 100}\n"))
    dataset = dataset_of(web)
    paths = [f"{web.catalog}/web/{file.path}" for file in dataset.files(dataset.version(2), "samples")]
    newest = max(max(pq.read_table(path)["sample_id"].to_pylist()) for path in paths)  # a row that version 1 has not
    shown = take_down(dataset, Names.of([str(newest)]))
    assert shown["versions"] == [2]
    assert (shown["published"], dataset.version().number, dataset.version().held) == ("web@3", 3, ())
    assert dataset.version().tables == first.tables
    assert [v.is_held for v in dataset.versions()] == [False, True, False]
    assert dataset.version(2).tables["samples"].rows == 8
    with pytest.raises(HeldError, match=r"web@4 is held, and web@3 stays the latest"):
        build_here(spec_of(web, "guards: {min_rows: 100}\n"))  # of what is left, and later than web@3
    assert approve(Catalog(web.catalog), "web@4")[1].tables["samples"].rows == 8
