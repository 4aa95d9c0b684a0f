"""Folded vectors exclude no pair above the threshold, against all pairs multiplied in full."""

from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from catalog.inputs import Inputs
from catalog.schema import CLUSTERS, SAMPLE_ID, vector
from tasks.cluster.centroids import centroids_table
from tasks.deduplicate import Deduplicate
from tasks.deduplicate._limits import Limits
from tasks.deduplicate._near import SLACK, Fold, Near, nearest
from tasks.deduplicate._semantic import Rule, judge
from tests.helpers import LocalRun

RULES: list[Rule] = ["order", "greedy", "components"]


def unit(rows: np.ndarray) -> np.ndarray:
    """Rows of length 1: float64 (n, d)."""
    long = rows.astype(np.float64)
    return np.asarray(long / np.linalg.norm(long, axis=1, keepdims=True))


def planted(seed: int, count: int = 600, dim: int = 48, spread: float = 1.0) -> np.ndarray:
    """Rows about one direction, a fifth of them near-copies of the row before, some of them equal: float16 (n, d)."""
    rng = np.random.default_rng(seed)
    rows = rng.normal(size=dim) + spread * rng.normal(size=(count, dim))
    rows[1::5] = rows[::5] + 0.2 * spread * rng.normal(size=rows[1::5].shape)
    rows[3::25] = rows[2::25]
    return rows.astype(np.float16)


def fold_of(seed: int, dim: int, width: int) -> Fold:
    directions, _ = np.linalg.qr(np.random.default_rng(seed).normal(size=(dim, width - 1)))
    return Fold(torch.from_numpy(directions.astype(np.float32)))


def folded_by(fold: Fold, rows: np.ndarray) -> np.ndarray:
    folded = np.empty((len(rows), fold.width), np.float16)
    fold.write(rows, folded, "cpu")
    return folded


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 2**32),
    dim=st.integers(2, 80),
    share=st.floats(0, 1),
    spread=st.sampled_from([1e-3, 0.1, 1.0, 10.0]),
)
def test_folding_decreases_no_cosine(seed: int, dim: int, share: float, spread: float) -> None:
    rows = planted(seed, 40, dim, spread)
    fold = fold_of(seed, dim, 2 + int(share * (dim - 1)))
    folded = unit(folded_by(fold, rows))
    cosine = unit(rows) @ unit(rows).T
    assert (folded @ folded.T >= cosine - SLACK).all()


@pytest.mark.parametrize("epsilon", [1e-3, 0.02, 0.1, 0.6, 1.0])
@pytest.mark.parametrize("width", [4, 12, 40])
def test_pairs_are_those_of_the_full_product(width: int, epsilon: float) -> None:
    """In blocks, with itself and with others, by range and by number; also where hardly a pair is ruled out."""
    rows = planted(width)
    folded = folded_by(fold_of(1, 48, width), rows)
    near = Near(rows, folded, slice(100, 500), 1 - epsilon, "cpu")
    among = np.random.default_rng(0).permutation(600)[:150]
    other = Near(rows, folded, among, 1 - epsilon, "cpu")
    cosine = unit(rows) @ unit(rows).T

    def check(found: Any, places: np.ndarray, others: np.ndarray, own: bool) -> None:
        at, to, values = found
        true = cosine[np.ix_(places, others)]
        wanted = np.tril(true > 1 - epsilon, -1) if own else true > 1 - epsilon
        certain = np.abs(true - (1 - epsilon)) > 1e-6  # else rounding may say either
        got = np.zeros_like(wanted)
        got[at, to] = True
        assert (got == wanted)[certain].all()
        assert len(at) == got.sum()
        np.testing.assert_allclose(values, true[at, to], atol=1e-6)
        assert (np.diff(at * len(others) + to) > 0).all()

    at, to, values = near.pairs(slice(130, 260), near, slice(130, 260))
    check((at - 130, to - 130, values), np.arange(230, 360), np.arange(230, 360), own=True)
    at, to, values = near.pairs(slice(130, 260), near, slice(0, 130))
    check((at - 130, to, values), np.arange(230, 360), np.arange(100, 230), own=False)
    check(near.pairs(slice(0, 400), other, slice(0, 150)), np.arange(100, 500), among, own=False)
    some = np.arange(0, 150, 3)
    at, to, values = near.pairs(slice(0, 400), other, some)
    check((at, to // 3, values), np.arange(100, 500), among[some], own=False)
    assert near.pairs(slice(0, 400), other, some[:0])[0].size == 0


def test_the_nearest_of_each_row_and_the_first_of_equals() -> None:
    at = np.array([2, 2, 2, 5, 7, 7])
    to = np.array([0, 1, 3, 4, 2, 6])
    cosine = np.array([0.96, 0.99, 0.99, 0.97, 0.98, 0.97], np.float32)
    row, partner, best = nearest((at, to, cosine))
    assert (row.tolist(), partner.tolist()) == ([2, 5, 7], [1, 4, 2])
    np.testing.assert_array_equal(best, np.array([0.99, 0.97, 0.98], np.float32))
    assert nearest((at[:0], to[:0], cosine[:0]))[0].size == 0


def test_directions_are_those_in_which_rows_differ() -> None:
    """Rows that differ in few directions are folded into few numbers; rows that hardly differ are not folded."""
    rng = np.random.default_rng(0)
    centre = rng.normal(size=512)
    few = centre + (3 * rng.normal(size=(8192, 20))) @ rng.normal(size=(20, 512)) / np.sqrt(20)
    narrow, wide = (Fold.fit(rows[::2], rows[1::2], 0.95, "cpu") for rows in (few, rng.normal(size=(8192, 512))))
    assert narrow is not None
    assert wide is not None
    assert narrow.width == 32 < wide.width < 256
    eye = narrow.directions.T @ narrow.directions
    np.testing.assert_allclose(eye.numpy(), np.eye(31), atol=1e-5)
    alike = centre + 0.1 * rng.normal(size=(8192, 512))
    assert Fold.fit(alike[::2], alike[1::2], 0.95, "cpu") is None
    assert Fold.fit(alike[:1], alike[1:2], 0.95, "cpu") is None


@pytest.mark.parametrize("rule", RULES)
def test_a_large_cluster_has_the_same_verdict(rule: Rule, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = planted(3, 2500, 192)
    plain = judge(rows, rule, 0.05, block=300)
    widths: list[int] = []
    write = Fold.write

    def noted(self: Fold, *args: Any) -> None:
        widths.append(self.width)
        write(self, *args)

    monkeypatch.setattr(Fold, "write", noted)
    folded = judge(rows, rule, 0.05, block=300, limits=Limits(least_folded_pairs=1 << 20))
    assert len(widths) == 1
    assert 300 < (~plain.keep).sum() < 700
    np.testing.assert_array_equal(folded.keep, plain.keep)
    np.testing.assert_array_equal(folded.representative, plain.representative)
    np.testing.assert_array_equal(folded.tied, plain.tied)
    np.testing.assert_allclose(folded.similarity, plain.similarity, atol=1e-6)


def by_definition(cosine: np.ndarray, order: np.ndarray, rule: str, epsilon: float) -> np.ndarray:
    """Return which rows stay, row by row: bool (n,). `cosine` is NaN for rows that cannot be compared."""
    tied = cosine > 1 - epsilon
    stay = np.ones(len(order), bool)
    seen = np.zeros(len(order), bool)
    for place, row in enumerate(order.tolist()):
        before = order[:place]
        if rule == "components":
            stay[row] = not seen[row]
            reached = np.zeros(len(order), bool)
            reached[row] = not seen[row]
            while reached.any():
                seen |= reached
                reached = tied[reached].any(axis=0) & ~seen
        else:
            stay[row] = not tied[row, before[stay[before]] if rule == "greedy" else before].any()
    return stay


@st.composite
def worlds(draw: Any) -> dict[str, Any]:
    """Return rows in a few clumps, some equal, zero, NaN or absent, in cells of centroids, or in any clusters."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    count, dim, cells = draw(st.integers(2, 90)), draw(st.sampled_from([3, 12])), draw(st.integers(1, 5))
    noise = draw(st.floats(0, 0.6)) * rng.normal(size=(count, dim))
    rows = (rng.normal(size=(4, dim))[rng.integers(0, 4, count)] + noise).astype(np.float16)
    copied = rng.random(count) < draw(st.floats(0, 0.5))
    rows[copied] = rows[rng.integers(0, count, int(copied.sum()))]
    kind = rng.choice(4, count, p=[0.85, 0.05, 0.05, 0.05])
    centroids = unit(rng.normal(size=(cells, dim))).astype(np.float32) if draw(st.booleans()) else None
    cluster = rng.integers(0, cells, count) if centroids is None else (unit(rows) @ centroids.T).argmax(axis=1)
    rows[kind == 1] = 0
    rows[kind == 2] = np.nan
    return {
        "rows": rows,
        "absent": kind == 3,
        "usable": kind == 0,
        "cluster": cluster.astype(np.int32),
        "centroids": centroids,
        "distance": np.round(rng.random(count), 1).astype(np.float32),  # many ties
        "epsilon": draw(st.sampled_from([1e-3, 0.03, 0.2, 1.0])),
        "order": draw(st.sampled_from(["hard", "easy", "first"])),
    }


def inputs_of(world: dict[str, Any]) -> Inputs:
    rows, count = world["rows"], len(world["rows"])
    values = [None if absent else row for row, absent in zip(rows, world["absent"], strict=True)]
    ids = pa.array(np.arange(count) * 2 + 5)
    embedded = pa.array(values, pa.list_(pa.float16(), rows.shape[1]))
    embeddings = pa.table([ids, embedded], schema=pa.schema([SAMPLE_ID, vector("clip", rows.shape[1], "")]))
    clusters = pa.table([ids, world["cluster"], world["distance"]], schema=CLUSTERS)
    if world["centroids"] is None:
        return Inputs.of(embeddings=embeddings, clusters=clusters)
    centroids = centroids_table(world["centroids"], np.bincount(world["cluster"], minlength=len(world["centroids"])))
    return Inputs.of(embeddings=embeddings, clusters=clusters, centroids=centroids)


FOLD_ALL = Limits(least_folded_pairs=1, folded_pairs_per_row=0, folded_widths=(2, 3, 5), verify_cost=0)
"""Fold even if it does not pay."""


@pytest.mark.parametrize("borders", [0, 5])
@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("folds", [False, True])
@settings(max_examples=25, deadline=None)
@given(world=worlds())
def test_the_stage_equals_its_rule(folds: bool, rule: Rule, borders: int, world: dict[str, Any]) -> None:
    """Each cluster alone; and, where clusters are cells of centroids, with all cells in a certain reach, all pairs."""
    usable, cluster, epsilon = world["usable"], world["cluster"], world["epsilon"]
    cosine = np.full((len(usable), len(usable)), np.nan)
    cosine[np.ix_(usable, usable)] = unit(world["rows"][usable]) @ unit(world["rows"][usable]).T
    np.fill_diagonal(cosine, np.nan)
    key = {"hard": -world["distance"], "easy": world["distance"], "first": np.zeros(len(usable))}[world["order"]]
    order = np.argsort(key, kind="stable")
    semantic = {"epsilon": epsilon, "rule": rule, "borders": borders, "reach": "certain", "order": world["order"]}
    with TemporaryDirectory() as folder:
        run = LocalRun(Path(folder))
        stage = Deduplicate.model_validate({"exact": False, "semantic": semantic})
        table = pa.concat_tables(stage.run(inputs_of(world), run, FOLD_ALL if folds else Limits()))
    keep = table["keep"].to_numpy(zero_copy_only=False)
    assert keep[~usable].all()
    if (np.abs(cosine - (1 - epsilon)) < 2e-6).any():
        return  # rounding may say either
    within = np.where(cluster[:, None] == cluster[None], cosine, np.nan)
    alone = by_definition(within, order, rule, epsilon)
    if borders == 0:
        np.testing.assert_array_equal(keep, alone)
    elif world["centroids"] is not None:
        assert (run.notes.get("border_strays", 0), run.notes.get("border_rows_cut_short", 0)) == (0, 0)
        np.testing.assert_array_equal(keep, by_definition(cosine, order, rule, epsilon))
    gone = np.flatnonzero(~keep)
    stands = (table["representative"].to_numpy(zero_copy_only=False)[gone].astype(int) - 5) // 2
    rank = np.argsort(order)
    assert keep[stands].all()
    assert (rank[stands] < rank[gone]).all()
    np.testing.assert_allclose(
        table["similarity"].to_numpy(zero_copy_only=False)[gone], cosine[gone, stands], atol=1e-5
    )


def test_the_stage_folds_if_it_pays() -> None:
    """With many pairs it folds, and notes the width; what stays is what the whole product says."""
    count, dim = 9000, 192
    rows = planted(1, count, dim)
    centre = unit(rows.astype(np.float64).sum(axis=0, keepdims=True)).astype(np.float32)
    distance = (1 - unit(rows) @ centre[0]).astype(np.float32)
    ids = pa.array(np.arange(count))
    values = pa.FixedSizeListArray.from_arrays(pa.array(rows.ravel()), dim)
    embeddings = pa.table([ids, values], schema=pa.schema([SAMPLE_ID, vector("clip", dim, "")]))
    clusters = pa.table([ids, pa.array(np.zeros(count, np.int32)), distance], schema=CLUSTERS)
    inputs = Inputs.of(embeddings=embeddings, clusters=clusters, centroids=centroids_table(centre, np.array([count])))
    with TemporaryDirectory() as folder:
        run = LocalRun(Path(folder))
        stage = Deduplicate.model_validate({"exact": False, "semantic": {"borders": 0}})
        keep = pa.concat_tables(stage.run(inputs, run))["keep"].to_numpy(zero_copy_only=False)
    order = np.argsort(-distance, kind="stable")
    whole = unit(rows)[order].astype(np.float32)
    expected = np.empty(count, bool)
    expected[order] = np.triu(whole @ whole.T, 1).max(axis=0) <= 0.95
    assert 0 < run.notes["semantic_folded_width"] < dim / 2
    np.testing.assert_array_equal(keep, expected)
