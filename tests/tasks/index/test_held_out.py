"""The exact neighbours are those of brute force, in any order of additions and removals."""

import numpy as np
import pytest

from tasks.index.held_out import DEPTH, HeldOut
from tasks.index.vector_index import unit_rows

DIM = 16


def rows_of(seed: int, count: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    return np.arange(count, dtype=np.int64) * 2, unit_rows(rng.standard_normal((count, DIM))).astype(np.float16)


def truth(ids: np.ndarray, vectors: np.ndarray, held: HeldOut, k: int) -> np.ndarray:
    cosines = held.queries @ unit_rows(vectors).T
    cosines[(held.sample_ids[:, None] == ids) & ~held.captions[:, None]] = -np.inf
    return ids[np.argsort(-cosines, axis=1, kind="stable")[:, :k]]


def held_out(ids: np.ndarray, vectors: np.ndarray, count: int = 20) -> HeldOut:
    captions = np.arange(count) % 2 == 1
    return HeldOut.of(ids[:count], vectors[:count], captions)


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_neighbours_are_exact(seed: int) -> None:
    ids, vectors = rows_of(seed, 20_000)
    held = held_out(ids, vectors)
    for piece in np.array_split(np.arange(20_000), 7):
        held.add(ids[piece], unit_rows(vectors[piece]))
    assert np.array_equal(held.neighbours, truth(ids, vectors, held, DEPTH))
    again = HeldOut.read(held.write())
    assert np.array_equal(again.neighbours, held.neighbours)
    assert (held.neighbours[~held.captions] != held.sample_ids[~held.captions, None]).all()
    assert (held.neighbours[held.captions, 0] == held.sample_ids[held.captions]).all()


@pytest.mark.parametrize("seed", [0, 1])
def test_neighbours_stay_exact_when_rows_are_removed_and_added(seed: int) -> None:
    ids, vectors = rows_of(seed, 3000)
    held = held_out(ids, vectors)
    held.add(ids[:2000], unit_rows(vectors[:2000]))
    held.remove_span(int(ids[500]), int(ids[999]))
    gone = np.random.default_rng(seed).choice(ids[100:500], 100, replace=False)
    held.remove(np.append(gone, ids[3]))
    held.add(ids[2000:], unit_rows(vectors[2000:]))
    left = ~np.isin(ids, gone) & ~np.isin(np.arange(3000), np.append(np.arange(500, 1000), 3))
    assert len(held) == 19
    expected = truth(ids[left], vectors[left], held, 10)
    assert np.array_equal(held.neighbours[:, :10], expected)
    assert np.allclose(held.recalls(truth(ids[left], vectors[left], held, 12)), 1)


def test_a_query_with_incomplete_neighbours_is_dropped() -> None:
    ids, vectors = rows_of(4, 2000)
    held = held_out(ids, vectors)
    held.add(ids, unit_rows(vectors))
    nearest = held.neighbours[0, : DEPTH - 5].copy()
    held.remove(nearest[~np.isin(nearest, ids[:20])])
    assert ids[0] not in held.sample_ids
    assert len(held) < 20


def test_recall_is_the_share_of_neighbours_found() -> None:
    ids, vectors = rows_of(5, 500)
    held = held_out(ids, vectors)
    held.add(ids, unit_rows(vectors))
    exact = truth(ids, vectors, held, 45)
    assert np.allclose(held.recalls(exact), 1)
    half = exact.copy()
    half[:, 5:] = -1
    assert np.allclose(held.recalls(half), 0.5)
    assert np.allclose(held.recalls(exact[:, ::-1], 40), np.mean([0.5]))
    with_itself = np.concatenate([held.sample_ids[:, None], exact], axis=1)
    assert np.allclose(held.recalls(with_itself)[~held.captions], 1)
    summary = held.summary(held.recalls(half))
    assert summary["image"] == {"mean": 0.5, "standard_error": 0.0, "queries": 10}


def test_copies_are_interchangeable() -> None:
    ids = np.arange(40, dtype=np.int64)
    vectors = np.repeat(rows_of(6, 2)[1], 20, axis=0)
    held = HeldOut.of(ids[:1], vectors[:1], np.array([False]))
    held.add(ids, unit_rows(vectors))
    assert held.recalls(np.arange(19, 8, -1)[None]).tolist() == [1.0]


def test_few_rows_and_none() -> None:
    ids, vectors = rows_of(7, 4)
    held = HeldOut.of(ids, vectors, np.zeros(4, bool))
    held.add(ids, unit_rows(vectors))
    assert np.allclose(held.recalls(truth(ids, vectors, held, 11)), 1)
    alone = HeldOut.of(ids[:1], vectors[:1], np.zeros(1, bool))
    alone.add(ids[:1], unit_rows(vectors[:1]))
    assert np.isnan(alone.recalls(np.array([[0, -1]]))).all()
    assert alone.summary(alone.recalls(np.array([[0, -1]]))) == {}
