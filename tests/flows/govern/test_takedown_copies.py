"""A takedown reaches what was saved from a dataset, and what it was saved from, over any number of datasets."""

import json
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from catalog.database import sql
from catalog.dataset import Catalog, Dataset
from catalog.edges import edges_of
from catalog.errors import BusyError, UserError
from catalog.gc import plan
from catalog.lease import hold
from catalog.takedown.ledger import REASON, Ledger
from catalog.takedown.reach import Names
from flows.build.build import build_here
from flows.explore import save as saving
from flows.explore.save import save
from flows.explore.search import Found, Hit, Query
from flows.explore.why import stories
from flows.govern.takedown import records, take_down
from tests.flows.conftest import Web
from tests.flows.govern.test_takedown import dataset_of, killed_at, needles_of, spec_of, traces, url_of
from tests.hostile_server import HostileServer

SAVED = ("few", "fewer", "other")
FIVE, SIX = 1 << 24, 1 << 24 | 1
"""The sample_ids of the fifth and the sixth row: a part has four."""


def found_in(catalog: Catalog, label: str, ids: Sequence[int], text: str) -> Found:
    """Return what a search would have found."""
    hits = [Hit(rank, 1.0, sample_id) for rank, sample_id in enumerate(ids, 1)]
    return Found(catalog.resolve(label), Query(text=text), "clip", "exact", hits, len(ids))


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Web]:
    """`few` and `other` were saved from `web`, `fewer` from `few`, which holds fewer rows since."""
    with HostileServer() as server:
        web = Web(tmp_path_factory.mktemp("web"), server)
        web.add_file("a", web.pictures(range(6)))
        build_here(spec_of(web, 6))
        catalog = Catalog(web.catalog)
        save(catalog, found_in(catalog, "web", [0, 1, 2], "picture 0 of a"), "few")
        save(catalog, found_in(catalog, "few", [0, 1], "picture"), "fewer")
        save(catalog, found_in(catalog, "few", [2], "fox"), "few")
        save(catalog, found_in(catalog, "web", [3, 0], "some picture 0 of a, please"), "other")
        yield web


@pytest.fixture
def built(original: Web, tmp_path: Path) -> Web:
    """A copy of it that may be changed."""
    shutil.copytree(original.folder, tmp_path / "web")
    web = Web.__new__(Web)
    web.folder, web.server, web.catalog = tmp_path / "web", original.server, str(tmp_path / "web" / "catalog")
    return web


def dataset(web: Web, name: str) -> Dataset:
    return Catalog(web.catalog).dataset(name)


def kept(web: Web, name: str, version: int | None = None) -> list[int]:
    at = {name: version} if version else None
    return [
        r["sample_id"] for r in sql(Catalog(web.catalog), f"select * from {name}.samples order by 1", at).to_pylist()
    ]


def test_rows_say_what_they_are_copies_of(built: Web) -> None:
    rows = edges_of(dataset(built, "fewer")).sort_by([("child", "ascending"), ("parent_dataset", "ascending")])
    origins = [(r["child"], r["parent_dataset"], r["parent_version"], r["parent"]) for r in rows.to_pylist()]
    assert origins == [(0, "few", 1, 0), (0, "web", 1, 0), (1, "few", 1, 1), (1, "web", 1, 1)]
    assert set(rows["role"].to_pylist()) == {"copy_of"}
    shown = sql(Catalog(built.catalog), "select count(*) as n from fewer.edges").to_pylist()
    assert shown == [{"n": 4}]


def test_lineage_of_a_row_in_sql_and_in_its_story(built: Web) -> None:
    catalog = Catalog(built.catalog)
    rows = sql(catalog, "select * from derived_from('web', 0) order by all").to_pylist()
    found = [(row["dataset"], row["sample_id"]) for row in rows]
    assert found == [("fewer", 0), ("other", 0)]  # the last version of `few` has row 2 only
    children = stories(catalog, "web", "0")[0]["children"]
    assert [(row["dataset"], row["sample_id"], row["role"]) for row in children] == [(*row, "copy_of") for row in found]
    parents = stories(catalog, "fewer", "0")[0]["parents"]
    assert [(row["dataset"], row["sample_id"]) for row in parents] == [("few", 0), ("web", 0)]


def test_it_reaches_every_copy(built: Web) -> None:
    web = dataset_of(built)
    needles = needles_of(web, 0)
    before = traces(Path(built.catalog), needles)
    assert set.union(*before.values()) == {"web", *SAVED}
    listed = take_down(web, Names(frozenset([url_of(built, 0)])), dry_run=True)
    assert {name: at["samples"] for name, at in listed["others"].items()} == dict.fromkeys(SAVED, 1)
    assert traces(Path(built.catalog), needles) == before
    facts = take_down(web, Names(frozenset([url_of(built, 0)])), "a letter")
    assert traces(Path(built.catalog), needles) == {}
    assert {name: at["published"] for name, at in facts["others"].items()} == {
        "few": "few@3", "fewer": "fewer@2", "other": "other@2",
    }  # fmt: skip
    assert (kept(built, "web"), kept(built, "few"), kept(built, "few", 1)) == ([1, 2, 3, FIVE, SIX], [2], [1, 2])
    assert (kept(built, "fewer"), kept(built, "other")) == ([1], [3])
    for name in SAVED:
        (record,) = records(dataset(built, name))
        assert (record["samples"], record["named_in"], record["reason"]) == (1, "web", "a letter")
        verdicts = sql(
            Catalog(built.catalog), f"select keep, reason from {name}.verdicts where sample_id = 0"
        ).to_pylist()
        assert verdicts == ([] if name == "few" else [{"keep": False, "reason": REASON}])
        page = Path(built.catalog, name, "_reports").glob("*.html")
        assert len(list(page)) == dataset(built, name).version().number
        report = sql(Catalog(built.catalog), f"select content from {name}.report where section = 'summary'").to_pylist()
        assert json.loads(report[0]["content"])["kept"] == len(kept(built, name)), "the card counts what is left"
    assert "text: (taken down)" in dataset(built, "few").version(1).recipe
    assert dataset(built, "other").version(1).recipe.count("some (taken down), please") == 1
    assert all(build_here(spec_of(built, 6)).version.number == 3 for _ in range(2)), "what sees all rows is made again"


def test_it_reaches_what_was_copied_and_its_other_copies(built: Web) -> None:
    needles = needles_of(dataset_of(built), 1)
    take_down(dataset(built, "fewer"), Names(sample_ids=frozenset([1])))
    assert traces(Path(built.catalog), needles) == {}
    assert (kept(built, "web"), kept(built, "few", 1), kept(built, "fewer")) == ([0, 2, 3, FIVE, SIX], [0, 2], [0])
    assert kept(built, "other") == [0, 3]
    assert not Ledger.read(dataset(built, "other").storage).records, "it has no such row"


def test_copies_are_found_when_those_between_are_gone(built: Web) -> None:
    needles = needles_of(dataset_of(built), 1)
    shutil.rmtree(Path(built.catalog, "few"))
    take_down(dataset_of(built), Names(sample_ids=frozenset([1])))
    assert traces(Path(built.catalog), needles) == {}


def test_rows_saved_before_there_were_edges_are_found(built: Web, monkeypatch: pytest.MonkeyPatch) -> None:
    catalog = Catalog(built.catalog)
    with monkeypatch.context() as patch:
        tables = saving._Saving.tables
        patch.setattr(saving._Saving, "tables", lambda work: {k: v for k, v in tables(work).items() if k != "edges"})
        save(catalog, found_in(catalog, "web", [FIVE], "x"), "old")
    shutil.rmtree(Path(built.catalog, "old", "edges"))
    needles = needles_of(dataset_of(built), FIVE)
    facts = take_down(dataset_of(built), Names(sample_ids=frozenset([FIVE])))
    assert list(facts["others"]) == ["old"]
    assert traces(Path(built.catalog), needles) == {}


def test_nothing_is_erased_while_one_of_them_is_held(built: Web) -> None:
    needles = needles_of(dataset_of(built), 0)
    before = traces(Path(built.catalog), needles)
    with hold(dataset(built, "other")), pytest.raises(BusyError, match="'other' is being built"):
        take_down(dataset_of(built), Names(sample_ids=frozenset([0])))
    assert traces(Path(built.catalog), needles) == before
    assert Ledger.read(dataset_of(built).storage).pending is None


def test_what_was_taken_down_is_not_saved_again(built: Web) -> None:
    catalog = Catalog(built.catalog)
    found = found_in(catalog, "web", [3, SIX], "x")
    take_down(dataset_of(built), Names(sample_ids=frozenset([SIX])))
    with pytest.raises(UserError, match="1 of the rows that were found were taken down since: search again"):
        save(catalog, found, "late")
    ledger = Ledger.read(dataset(built, "other").storage)
    url = url_of(built, FIVE)
    ledger.ordered({"urls": [ledger.url(url)]}, None).save(dataset(built, "other").storage)
    before = dataset(built, "other").storage.list()
    with pytest.raises(UserError, match="taken down from 'other' and must not come back"):
        save(catalog, found_in(catalog, "web", [3, FIVE], "x"), "other")
    assert dataset(built, "other").storage.list() == before
    pending = Ledger.read(dataset_of(built).storage)
    pending.ordered({}, {"sample_ids": []}).save(dataset_of(built).storage)
    with pytest.raises(UserError, match="was interrupted"):
        save(catalog, found_in(catalog, "web", [3], "x"), "later")
    assert list(dataset(built, "later").storage.list()) == ["_lease"]


def test_versions_that_others_have_rows_of_are_kept(built: Web) -> None:
    for keep in (5, 4):
        build_here(spec_of(built, keep))
    garbage = plan(dataset_of(built), -5.0, keep_versions=1)
    assert (garbage.forgotten, dict(garbage.used)) == ([2], {1: ["few", "fewer", "other"]})


def test_killed_it_goes_on_through_all_datasets(built: Web, tmp_path: Path) -> None:
    _kill_and_go_on(built, tmp_path, [0.5], "few")


@pytest.mark.slow
@pytest.mark.parametrize("name", ["web", "few"])
def test_killed_anywhere_it_goes_on_through_all_datasets(built: Web, tmp_path: Path, name: str) -> None:
    _kill_and_go_on(built, tmp_path, [step / 30 for step in range(1, 30)], name)


def _kill_and_go_on(built: Web, tmp_path: Path, shares: Sequence[float], name: str) -> None:
    """Kill a takedown after a share of its changes; let one of the datasets go on with it, if its ledger says so."""
    url, needles = url_of(built, 0), needles_of(dataset_of(built), 0)
    steps = killed_at(Path(shutil.copytree(built.catalog, tmp_path / "whole")), url, 10**9)
    assert steps > 60
    for share in shares:
        target = Path(shutil.copytree(built.catalog, tmp_path / f"killed-{share}"))
        assert killed_at(target, url, round(steps * share)) == -1
        catalog = Catalog(target)
        waiting = [n for n in (name, "web") if Ledger.read(catalog.dataset(n).storage).pending is not None]
        if waiting:
            take_down(catalog.dataset(waiting[0]), None)
        else:
            take_down(catalog.dataset("web"), Names(frozenset([url])))
        assert traces(target, needles) == {}, share
        for reached in ("web", *SAVED):
            assert [r["state"] for r in records(catalog.dataset(reached))] == ["done"], (share, reached)
            assert Ledger.read(catalog.dataset(reached).storage).pending is None
        shutil.rmtree(target)
