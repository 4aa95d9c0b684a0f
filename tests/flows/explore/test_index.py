"""An index is measured, grows by what is new alone, forgets, and says where the budget is not met."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from catalog import lookup
from catalog.dataset import Catalog
from catalog.errors import NotFoundError, UserError
from flows.explore.index import budget_of, forget, render, update
from flows.explore.stored_index import columns, drop, kept
from tasks.index.choose import Budget
from tests.flows.vectors import DIM, Planted, brute_force

IVF = Budget(kind="ivf", recall=0.9)


@pytest.fixture
def birds(tmp_path: Path) -> Planted:
    return Planted(tmp_path)


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The parts of which vectors were read, once a pass."""
    seen: list[str] = []
    read = lookup.blocks

    def counted(storage: Any, path: str, column: str, wanted: Any = None) -> Iterator[Any]:
        seen.append(path)
        return read(storage, path, column, wanted)

    monkeypatch.setattr(lookup, "blocks", counted)
    return seen


def found_by(birds: Planted, query: np.ndarray, k: int = 10) -> list[int]:
    made = kept(birds.dataset, "clip")
    assert made is not None
    index = made.load(mapped=True)
    found: list[int] = index.search(query[None], k, index.most_effort)[1][0].tolist()
    return found


@pytest.mark.parametrize("kind", ["flat", "ivf", "hnsw", "ivfpq", "opq"])
def test_every_kind_says_how_well_it_finds(birds: Planted, kind: str) -> None:
    version = birds.publish(range(4))
    made = update(birds.dataset, version, "clip", budget_of(kind, 100, 0.8))
    facts = made.facts
    assert (facts["rows"], facts["choice"]["kind"], facts["choice"]["dim"], facts["met"]) == (1200, kind, DIM, True)
    recall = facts["recall_at_10_rescored"]
    assert set(recall) == {"image", "text"}
    assert all(0.8 <= r["mean"] <= 1 and r["standard_error"] is not None for r in recall.values())
    stored = Path(birds.dataset.storage.uri) / "_index" / "clip" / facts["files"]["index"]
    assert stored.stat().st_size == facts["bytes"]
    assert facts["ms_per_query"] > 0
    assert "budget: 100 MB, recall 0.8" in render(made)
    assert "CPU seconds: " in render(made)
    assert set(facts["cpu_s"]) == {"read", "draw", "learn", "add", "measure"}
    assert facts["cpu_s"]["measure"] > 0
    assert facts["cpu_s"]["learn"] > 0 or kind in ("flat", "hnsw")
    json.dumps(facts)


@pytest.mark.parametrize("kind", ["ivf", "hnsw"])
@pytest.mark.parametrize("seed", [0, 1])
def test_the_recall_that_is_written_is_what_new_queries_get(tmp_path: Path, kind: str, seed: int) -> None:
    birds = Planted(tmp_path, rows=1000, seed=seed)
    made = update(birds.dataset, birds.publish(range(4)), "clip", budget_of(kind, 100, 0.8))
    ids, pictures, _ = birds.all(range(4))
    _, new, _ = birds.all([99])
    _, found = made.load().search(new[:400], 10, made.facts["effort"]["value"])
    right = ids[np.argsort(-(new[:400] @ pictures.T), axis=1)[:, :10]]
    each = np.array([len(set(f) & set(r)) / 10 for f, r in zip(found.tolist(), right.tolist(), strict=True)])
    written = made.facts["recall_at_10"]["image"]
    assert made.facts["rows"] == 4000
    assert abs(each.mean() - written["mean"]) < 4 * np.hypot(written["standard_error"], each.std() / 20)


@pytest.mark.parametrize("kind", ["flat", "ivf", "hnsw", "opq"])
def test_new_parts_are_added_and_old_ones_are_not_read(birds: Planted, reads: list[str], kind: str) -> None:
    update(birds.dataset, birds.publish(range(3)), "clip", budget_of(kind, 100, 0.8))
    before = set(reads)
    reads.clear()
    messages: list[str] = []
    made = update(birds.dataset, birds.publish(range(5)), "clip", budget_of(kind, 100, 0.8), say=messages.append)
    assert len(reads) == 2
    assert not before & set(reads)
    assert messages[0] == "2 parts added, 0 taken out, 3 left as they were"
    assert made.facts["rows"] == 1500
    ids, pictures, _ = birds.all(range(5))
    if kind != "opq":
        for query in pictures[::251]:
            assert found_by(birds, query) == brute_force(ids, pictures, query, 10)
    exact = [brute_force(ids[ids != i], pictures[ids != i], q, 10) for i, q in zip(ids, pictures, strict=True)]
    held = made.held_out()
    assert 0 < held.captions.sum() < len(held.captions)
    for sample_id, caption, near in zip(held.sample_ids, held.captions, held.neighbours, strict=True):
        if not caption:
            assert set(near[:10]) == set(exact[np.flatnonzero(ids == sample_id)[0]])


def test_growing_ends_where_building_would(birds: Planted) -> None:
    grown = update(birds.dataset, birds.publish(range(3)), "clip", budget_of("flat", 100, 0.9))
    grown = update(birds.dataset, birds.publish(range(5)), "clip", budget_of("flat", 100, 0.9))
    assert grown.parts.keys() == {f"embeddings/{n:032x}.parquet" for n in range(5)}
    assert grown.facts["recall_at_10"]["text"]["mean"] == 1


def test_nothing_new_reads_nothing(birds: Planted, reads: list[str]) -> None:
    version = birds.publish(range(2))
    first = update(birds.dataset, version, "clip", IVF)
    reads.clear()
    messages: list[str] = []
    assert update(birds.dataset, version, "clip", IVF, say=messages.append).facts == first.facts
    assert (reads, messages) == ([], ["the index of clip is up to date"])


def test_parts_that_went_are_taken_out(birds: Planted, reads: list[str]) -> None:
    update(birds.dataset, birds.publish(range(4)), "clip", IVF)
    reads.clear()
    made = update(birds.dataset, birds.publish([0, 2, 3]), "clip", IVF)
    assert reads == []
    assert made.facts["rows"] == 900
    ids, pictures, _ = birds.all([0, 2, 3])
    query = birds.all([1])[1][7]
    assert found_by(birds, query) == brute_force(ids, pictures, query, 10)
    assert not (made.held_out().neighbours >> 24 == 1).any()


def test_a_graph_is_built_anew_and_says_so(birds: Planted) -> None:
    update(birds.dataset, birds.publish(range(3)), "clip", budget_of("hnsw", 100, 0.8))
    messages: list[str] = []
    made = update(birds.dataset, birds.publish(range(2)), "clip", budget_of("hnsw", 100, 0.8), say=messages.append)
    assert messages == ["building the index again: a graph cannot forget, and 1 of its parts are gone"]
    assert made.facts["rows"] == 600


def test_other_wishes_build_it_anew(birds: Planted) -> None:
    version = birds.publish(range(2))
    messages: list[str] = []
    update(birds.dataset, version, "clip", IVF, say=messages.append)
    update(birds.dataset, version, "clip", budget_of("flat", 100, 0.9), say=messages.append)
    small = update(birds.dataset, version, "clip", Budget(memory_mb=0.07, recall=0.5), say=messages.append)
    assert [line for line in messages if "again" in line] == [
        "building the index again: it is of kind ivf, and flat was requested",
        "building the index again: it does not fit 0.07 MB",
    ]
    assert small.facts["bytes"] < 70_000 + 2500
    assert len(list((Path(birds.catalog.uri) / "birds/_index/clip").iterdir())) == 3


def test_an_index_that_outgrew_its_lists_is_built_anew(tmp_path: Path) -> None:
    birds = Planted(tmp_path, rows=200)
    update(birds.dataset, birds.publish(range(2)), "clip", IVF)
    messages: list[str] = []
    made = update(birds.dataset, birds.publish(range(12)), "clip", IVF, say=messages.append)
    assert messages == ["building the index again: IVF10,Flat was for 400 rows, and there are 2,400"]
    assert (made.facts["factory"], made.facts["rows"]) == ("IVF61,Flat", 2400)


def test_a_missed_recall_is_said(tmp_path: Path) -> None:
    birds = Planted(tmp_path, rows=1500)
    messages: list[str] = []
    asked = Budget(kind="opq", memory_mb=0.12, recall=1)
    made = update(birds.dataset, birds.publish(range(4)), "clip", asked, say=messages.append)
    assert not made.facts["met"]
    assert "short of the 1 that was requested" in messages[0]
    assert "NOT met" in render(made)


def test_forgotten_samples_are_gone_from_everything(birds: Planted) -> None:
    update(birds.dataset, birds.publish(range(3)), "clip", IVF)
    ids, pictures, _ = birds.all(range(3))
    before = kept(birds.dataset, "clip")
    assert before is not None
    gone = np.append(before.held_out().sample_ids[:5], ids[100:110])
    assert forget(birds.dataset, gone) == [f"index of clip: {len(set(gone))} rows taken out"]
    after = kept(birds.dataset, "clip")
    assert after is not None
    held = after.held_out()
    assert not np.isin(held.sample_ids, gone).any()
    assert not np.isin(held.neighbours, gone).any()
    left = ~np.isin(ids, gone)
    assert found_by(birds, pictures[105]) == brute_force(ids[left], pictures[left], pictures[105], 10)
    assert len(list((Path(birds.catalog.uri) / "birds/_index/clip").iterdir())) == 3


def test_a_graph_that_must_forget_is_removed(birds: Planted) -> None:
    update(birds.dataset, birds.publish(range(2)), "clip", budget_of("hnsw", 100, 0.8))
    assert "removed; `espalier index birds" in forget(birds.dataset, np.array([3]))[0]
    assert kept(birds.dataset, "clip") is None
    assert columns(birds.dataset) == []
    assert forget(birds.dataset, np.array([3])) == []


def test_a_kill_between_the_files_leaves_the_old_index(birds: Planted, monkeypatch: pytest.MonkeyPatch) -> None:
    first = update(birds.dataset, birds.publish(range(2)), "clip", IVF)
    version = birds.publish(range(3))
    from catalog.storage import Storage

    def killed(self: Storage, path: str, data: bytes) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Storage, "put", killed)
        with pytest.raises(KeyboardInterrupt):
            update(birds.dataset, version, "clip", IVF)
    there = kept(birds.dataset, "clip")
    assert there is not None
    assert there.facts == first.facts
    assert there.load().rows == 600
    assert update(birds.dataset, version, "clip", IVF).facts["rows"] == 900
    assert len(list((Path(birds.catalog.uri) / "birds/_index/clip").iterdir())) == 3


def test_mistakes_are_one_line(birds: Planted) -> None:
    version = birds.publish(range(1))
    with pytest.raises(UserError, match="no embedding column 'clipp'; did you mean 'clip'"):
        update(birds.dataset, version, "clipp")
    with pytest.raises(UserError, match="take at least"):
        update(birds.dataset, version, "clip", Budget(memory_mb=0.001))
    with pytest.raises(UserError, match="--kind is 'ivff'; did you mean 'ivf'"):
        budget_of("ivff", 1, 1)
    with pytest.raises(UserError, match=r"--recall is 1\.2"):
        budget_of("ivf", 1, 1.2)
    with pytest.raises(UserError, match="--memory-mb is 0"):
        budget_of("ivf", 0, 1)
    for strange in ("nan", "inf"):
        with pytest.raises(UserError, match=f"--memory-mb is {strange}"):
            budget_of("ivf", float(strange), 1)
    place = Path(birds.catalog.uri) / "birds/_index/clip"
    empty = Planted(place / "other", rows=0)
    with pytest.raises(UserError, match="nothing to index"):
        update(empty.dataset, empty.publish([0]), "clip")


def test_a_lost_file_is_made_anew(birds: Planted) -> None:
    version = birds.publish(range(1))
    made = update(birds.dataset, version, "clip")
    place = Path(birds.catalog.uri) / "birds/_index/clip"
    (place / made.facts["files"]["index"]).unlink()
    with pytest.raises(NotFoundError, match="`espalier index birds` builds it again"):
        made.load()
    messages: list[str] = []
    assert update(birds.dataset, version, "clip", say=messages.append).load().rows == 300
    assert messages[0].startswith("building the index again")


def test_it_lives_on_an_object_store(s3: Callable[[], str], tmp_path: Path) -> None:
    birds = Planted(tmp_path)
    birds.catalog = Catalog(s3())
    birds.dataset = birds.catalog.dataset("birds")
    update(birds.dataset, birds.publish(range(2)), "clip", IVF)
    made = update(birds.dataset, birds.publish(range(3)), "clip", IVF)
    assert made.facts["rows"] == 900
    ids, pictures, _ = birds.all(range(3))
    assert found_by(birds, pictures[5]) == brute_force(ids, pictures, pictures[5], 10)
    assert len(birds.dataset.storage.list("_index/clip")) == 3
    drop(birds.dataset, "clip")
    assert kept(birds.dataset, "clip") is None
