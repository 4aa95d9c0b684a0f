"""A search gives what brute force gives: filtered or not, grown or not, with an index or without."""

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from catalog.database import connect
from catalog.errors import NotFoundError, QueryError, UserError
from catalog.storage import Storage
from flows.explore import search as searching
from flows.explore.index import budget_of, forget, update
from flows.explore.search import Found, Query, Searcher, Thresholds, search
from flows.explore.stored_index import Kept
from tasks.index.choose import Budget
from tasks.index.vector_index import VectorIndex
from tests.flows.vectors import Planted, brute_force

IVF = Budget(kind="ivf", recall=0.99)


@pytest.fixture
def birds(tmp_path: Path) -> Planted:
    return Planted(tmp_path)


EAGER = Thresholds(exact_rows=0, exact_share=0.0)
"""Use the index for however few rows."""


def ids_of(found: Found) -> list[int]:
    return [hit.sample_id for hit in found.hits]


def expected(birds: Planted, parts: range | list[int], like: int, k: int, keep: str = "True") -> list[int]:
    ids, pictures, _ = birds.all(parts)
    query = pictures[ids == like][0]
    rows = np.array([bool(eval(keep, {"row": int(i) & 0xFFFFFF, "part": int(i) >> 24})) for i in ids]) & (ids != like)
    return brute_force(ids[rows], pictures[rows], query, k)


@pytest.mark.parametrize("like", [0, (1 << 24) + 17, (2 << 24) + 299])
def test_without_an_index_it_is_exact_and_says_so(birds: Planted, like: int) -> None:
    birds.publish(range(3))
    found = search(birds.catalog, "birds", Query(like=like))
    assert ids_of(found) == expected(birds, range(3), like, 20)
    assert found.how == "exact, 900 rows: 'clip' has no index (`espalier index birds`)"
    assert [hit.rank for hit in found.hits] == list(range(1, 21))
    assert (found.hits[0].url, found.hits[0].caption) == (
        f"http://h/{found.hits[0].sample_id}.jpg",
        f"bird {found.hits[0].sample_id}",
    )
    ids, pictures, _ = birds.all(range(3))
    cosines = dict(zip(ids.tolist(), (pictures @ pictures[ids == like][0]).tolist(), strict=True))
    assert [hit.score for hit in found.hits] == pytest.approx([cosines[i] for i in ids_of(found)], abs=2e-3)
    assert [hit.score for hit in found.hits] == sorted((hit.score for hit in found.hits), reverse=True)
    json.dumps(found.describe())


@pytest.mark.parametrize("kind", ["flat", "ivf", "hnsw", "ivfpq", "opq"])
def test_with_an_index(birds: Planted, kind: str) -> None:
    update(birds.dataset, birds.publish(range(3)), "clip", budget_of(kind, 100, 0.99))
    hits = right = 0
    for like in range(0, 300, 75):
        found = search(birds.catalog, "birds", Query(like=like), thresholds=EAGER)
        exact = search(birds.catalog, "birds", Query(like=like, exact=True), thresholds=EAGER)
        assert found.how.startswith("index ")
        assert len(found.hits) == 20
        hits += len(set(ids_of(found)) & set(ids_of(exact)))
        right += 20
        scores = {hit.sample_id: hit.score for hit in exact.hits}
        assert all(abs(scores.get(hit.sample_id, hit.score) - hit.score) < 2e-3 for hit in found.hits)
    assert hits / right >= 0.95


@pytest.mark.parametrize("kind", [None, "flat", "ivf", "hnsw", "ivfpq"])
@pytest.mark.parametrize("where", ["row % 100 == 3", "row % 2 == 0", "part == 2", "row < 5"])
def test_a_filter_leaves_the_results_full(birds: Planted, kind: str | None, where: str) -> None:
    version = birds.publish(range(3))
    if kind:
        update(birds.dataset, version, "clip", budget_of(kind, 100, 0.99))
    sql = where.replace("row", "width").replace("part", "(sample_id >> 24)").replace("==", "=")
    found = search(birds.catalog, "birds", Query(like=7, where=sql, top=8), thresholds=EAGER)
    wanted = expected(birds, range(3), 7, 8, where)
    if kind == "ivfpq":
        assert len(found.hits) == len(wanted)
        assert len(set(ids_of(found)) & set(wanted)) >= 6
    else:
        assert ids_of(found) == wanted


def test_a_rare_filter_compares_its_rows_alone(birds: Planted) -> None:
    update(birds.dataset, birds.publish(range(3)), "clip", IVF)
    found = search(birds.catalog, "birds", Query(like=7, where="width % 100 = 3", top=30))
    assert ids_of(found) == expected(birds, range(3), 7, 30, "row % 100 == 3")
    assert found.how == "exact, 9 rows: so few need no index"
    assert found.searched == 9


def test_more_rows_than_can_be_selected(birds: Planted) -> None:
    update(birds.dataset, birds.publish(range(3)), "clip", budget_of("flat", 100, 1))
    few = replace(EAGER, selected_rows=10)
    for where in ("row % 3 == 1", "part == 1", "row % 90 == 8"):
        sql = where.replace("row", "width").replace("part", "(sample_id >> 24)").replace("==", "=")
        found = search(birds.catalog, "birds", Query(like=7, where=sql), thresholds=few)
        assert ids_of(found) == expected(birds, range(3), 7, 20, where)


def test_where_may_say_what_sql_may(birds: Planted) -> None:
    birds.publish(range(2))
    some = "sample_id in (select sample_id from source where caption like '%5') and url is not null -- all of them"
    assert len(search(birds.catalog, "birds", Query(like=1, where=some)).hits) == 20
    assert search(birds.catalog, "birds", Query(like=1, where="false")).hits == []
    every = search(birds.catalog, "birds", Query(like=1, where="caption = 'bird 5'", all=True))
    assert ids_of(every) == [5]


def test_what_was_rejected_is_not_shown(birds: Planted) -> None:
    version = birds.publish(range(2))
    nearest = ids_of(search(birds.catalog, "birds", Query(like=1)))[0]
    samples = [p for p in birds.dataset.files(version, "samples") if f"{nearest >> 24:032x}" in p.path]
    local = birds.dataset.storage.local(samples[0].path)
    assert local is not None
    import pyarrow.compute as pc
    import pyarrow.parquet as pq

    kept = pq.read_table(local)
    pq.write_table(kept.filter(pc.not_equal(kept.column("sample_id"), nearest)), local)
    for made in (False, True):
        if made:
            update(birds.dataset, version, "clip", IVF)
        assert nearest not in ids_of(search(birds.catalog, "birds", Query(like=1)))
        assert ids_of(search(birds.catalog, "birds", Query(like=1, all=True)))[0] == nearest


def test_parts_beside_the_index_are_searched_too(birds: Planted) -> None:
    update(birds.dataset, birds.publish(range(2)), "clip", budget_of("flat", 100, 1))
    birds.publish(range(4))
    found = search(birds.catalog, "birds", Query(like=5), thresholds=EAGER)
    assert ids_of(found) == expected(birds, range(4), 5, 20)
    assert found.how == "index Flat, 1,200 rows, and 2 parts beside it exactly"


def test_another_version_is_searched_as_it_was(birds: Planted) -> None:
    birds.publish(range(2))
    update(birds.dataset, birds.publish([0, 2]), "clip", budget_of("flat", 100, 1))
    assert ids_of(search(birds.catalog, "birds@1", Query(like=5), thresholds=EAGER)) == expected(birds, [0, 1], 5, 20)
    assert ids_of(search(birds.catalog, "birds@2", Query(like=5), thresholds=EAGER)) == expected(birds, [0, 2], 5, 20)
    everything = search(birds.catalog, "birds@1", Query(like=5, all=True), thresholds=EAGER)
    assert ids_of(everything) == expected(birds, [0, 1], 5, 20)
    assert "has parts that birds@1 has not" in everything.how


def test_rows_that_were_taken_down_are_not_found(birds: Planted) -> None:
    update(birds.dataset, birds.publish(range(2)), "clip", IVF)
    gone = frozenset(expected(birds, range(2), 5, 3))
    birds.publish(range(2), without=gone, attempt=1)
    left = [i for i in expected(birds, range(2), 5, 40) if i not in gone][:20]
    assert ids_of(search(birds.catalog, "birds", Query(like=5), thresholds=EAGER)) == left
    forget(birds.dataset, np.array(sorted(gone)))
    assert ids_of(search(birds.catalog, "birds", Query(like=5), thresholds=EAGER)) == left
    made = update(birds.dataset, birds.dataset.version(), "clip", IVF)
    assert made.facts["rows"] == 600 - len(gone)
    assert ids_of(search(birds.catalog, "birds", Query(like=5), thresholds=EAGER)) == left


@pytest.mark.parametrize("indexed", [False, True])
def test_near_duplicates_stand_for_each_other(birds: Planted, indexed: bool) -> None:
    version = birds.publish(range(3))
    if indexed:
        update(birds.dataset, version, "clip", budget_of("flat", 100, 1))
    threshold = 0.75
    found = search(birds.catalog, "birds", Query(like=4, unique=threshold, top=15), thresholds=EAGER)
    ids, pictures, _ = birds.all(range(3))
    order = [4, *expected(birds, range(3), 4, 899)]
    rows = pictures[np.searchsorted(ids, order)]
    leaders: list[int] = []
    for row in range(len(order)):
        if not any(rows[row] @ rows[leader] >= threshold for leader in leaders):
            leaders.append(row)
    assert ids_of(found) == [order[leader] for leader in leaders[1:16]]
    assert sum(hit.copies for hit in found.hits) > 0
    every = search(birds.catalog, "birds", Query(like=4, unique=-0.99, top=5), thresholds=EAGER)
    assert every.hits == []


def test_mistakes_are_one_line(birds: Planted, tmp_path: Path) -> None:
    version = birds.publish(range(1))
    cases: list[tuple[Query, type[UserError], str]] = [
        (Query(), UserError, "give one of --text, --image and --like; found none of them"),
        (Query(text="a", like=1), UserError, "found --text and --like"),
        (Query(text=" "), UserError, "--text is empty"),
        (Query(like=1, top=0), UserError, "--top is 0"),
        (Query(like=1, unique=1.5), UserError, "--unique is 1.5"),
        (Query(like=1, column="clap"), UserError, "no embedding column 'clap'; did you mean 'clip'"),
        (Query(like=77_777), NotFoundError, "birds@1 has no sample 77777 with a vector in 'clip'"),
        (Query(image=str(tmp_path / "no.jpg")), UserError, "cannot read the image"),
        (Query(like=1, where="widht > 3"), QueryError, "no column 'widht'; did you mean 'width'"),
        (Query(like=1, where="width >"), QueryError, "syntax error"),
        (Query(like=1, where="true); drop table samples; --"), QueryError, "syntax error"),
        (Query(like=1, where="1) union select sample_id from source where (true"), QueryError, "not one SQL condition"),
        (Query(like=1, where="true order by 1"), QueryError, "not one SQL condition"),
        (Query(like=1, where="true; select 1"), QueryError, "not one SQL condition"),
        (Query(like=1, where=" "), QueryError, "--where is empty"),
        (Query(like=1 << 70), NotFoundError, "no sample"),
        (Query(like=1, where="exists (select * from read_csv('/etc/passwd'))"), QueryError, "passwd"),
    ]
    for asked, kind, message in cases:
        with pytest.raises(kind) as raised:
            search(birds.catalog, "birds", asked)
        assert message in str(raised.value)
        assert "\n" not in str(raised.value)
    with connect(birds.catalog) as connection:
        assert connection.execute("select count(*) from samples").fetchone() == (300,)
    empty = Planted(tmp_path / "empty")
    empty.publish([])
    with pytest.raises(NotFoundError, match="birds@1 has no sample 1"):
        search(empty.catalog, "birds", Query(like=1))
    with pytest.raises(NotFoundError, match=r"no dataset 'brids' .* did you mean 'birds'"):
        search(birds.catalog, "brids", Query(like=1))
    assert Storage.open(birds.catalog.uri).exists(f"birds/{birds.dataset.files(version, 'samples')[0].path}")


def test_a_searcher_goes_on_with_what_it_has_opened(birds: Planted, monkeypatch: pytest.MonkeyPatch) -> None:
    update(birds.dataset, birds.publish(range(3)), "clip", IVF)
    asked = [Query(like=7), Query(like=40, where="width % 2 = 0"), Query(like=7, all=True), Query(like=9, exact=True)]
    each = [search(birds.catalog, "birds", one, thresholds=EAGER) for one in asked]
    loads: list[str] = []
    load = Kept.load

    def loading(self: Kept, mapped: bool = False) -> VectorIndex:
        loads.append("index")
        return load(self, mapped)

    def connecting(*of: Any) -> Any:
        loads.append("duckdb")
        return connect(*of)

    monkeypatch.setattr(Kept, "load", loading)
    monkeypatch.setattr(searching, "connect", connecting)
    with Searcher(birds.catalog, "birds", thresholds=EAGER) as searcher:
        assert [searcher.search(one) for one in [*asked, *asked]] == [*each, *each]
        with pytest.raises(UserError, match="reads the column 'clip'; found 'clip_text'"):
            searcher.search(Query(like=1, column="clip_text"))
    assert sorted(loads) == ["duckdb", "index"]


@pytest.mark.parametrize("kind", [None, "flat", "ivf", "hnsw", "ivfpq"])
def test_more_results_than_rows_are_all_rows(birds: Planted, kind: str | None) -> None:
    version = birds.publish(range(3))
    if kind:
        update(birds.dataset, version, "clip", budget_of(kind, 100, 0.9))
    found = search(birds.catalog, "birds", Query(like=7, top=10**9), thresholds=EAGER)
    assert sorted(ids_of(found)) == [i for i in birds.all(range(3))[0] if i != 7]
    some = search(birds.catalog, "birds", Query(like=7, top=10**9, where="width % 3 = 0"), thresholds=EAGER)
    assert ids_of(some) == expected(birds, range(3), 7, 10**9, "row % 3 == 0")


def test_searching_imports_nothing_that_builds_and_no_duckdb_without_a_condition(birds: Planted) -> None:
    birds.publish(range(2))
    code = (
        "import sys\nfrom catalog.dataset import Catalog\nfrom flows.explore.search import Query, search\n"
        "loaded = lambda: [name for name in ('torch', 'duckdb', 'flows.build.build') if name in sys.modules]\n"
        "catalog, first = Catalog(sys.argv[1]), loaded()\n"
        "search(catalog, 'birds', Query(like=5))\nsecond = loaded()\n"
        "search(catalog, 'birds', Query(like=5, where='width > 3'))\nprint(first, second, loaded())"
    )
    command = [sys.executable, "-c", code, birds.catalog.uri]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[] [] ['duckdb']"
