"""Balanced sampling: the cut's worked values, the hierarchy against a plain recursion, and a flatter tail."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from catalog.errors import UserError
from catalog.inputs import Inputs
from catalog.schema import CLUSTERS
from tasks.concepts.coverage import effective_number
from tasks.prune.hierarchical import Hierarchical, cut, share_out
from tests.helpers import LocalRun
from tests.tasks.prune.worlds import HIERARCHY, decide, kept, tables, world

SIZES = np.array([1, 2, 10, 20])


def one_cut(sizes: np.ndarray, total: int, seed: int = 0) -> np.ndarray:
    keys = np.random.default_rng(seed).permutation(len(sizes)).astype(np.uint64)
    return cut(sizes, np.zeros(len(sizes), np.int64), np.array([total]), keys)


def test_cut_worked_values() -> None:
    """Sizes (1, 2, 10, 20): 15 is m = 6; 16 gives one of the large ones a row more; 2 are two at random; 40 is all."""
    assert one_cut(SIZES, 15).tolist() == [1, 2, 6, 6]
    sixteen = {tuple(one_cut(SIZES, 16, seed).tolist()) for seed in range(20)}
    assert sixteen == {(1, 2, 7, 6), (1, 2, 6, 7)}
    two = [one_cut(SIZES, 2, seed) for seed in range(60)]
    assert all(x.sum() == 2 and x.max() == 1 for x in two)
    assert (np.sum(two, axis=0) > 0).all()
    assert one_cut(SIZES, 40).tolist() == SIZES.tolist()
    assert one_cut(SIZES, 0).tolist() == [0, 0, 0, 0]
    assert one_cut(np.array([0, 0, 5]), 1).tolist() == [0, 0, 1]


@settings(max_examples=200, deadline=None, derandomize=True)
@given(
    groups=st.lists(
        st.tuples(st.lists(st.integers(0, 9), min_size=1, max_size=6), st.integers(0, 40)), min_size=1, max_size=5
    ),
    seed=st.integers(0, 3),
)
def test_cut_by_definition(groups: list[tuple[list[int], int]], seed: int) -> None:
    sizes = np.array([s for group, _ in groups for s in group])
    of = np.repeat(np.arange(len(groups)), [len(group) for group, _ in groups])
    mixed = np.random.default_rng(seed).permutation(len(sizes))
    keys = np.random.default_rng(seed + 9).permutation(len(sizes)).astype(np.uint64)
    found = np.empty_like(sizes)
    found[mixed] = cut(sizes[mixed], of[mixed], np.array([t for _, t in groups]), keys[mixed])
    for g, (group, total) in enumerate(groups):
        s, x, key = np.array(group), found[of == g], keys[of == g]
        m = max(m for m in range(max(s.max(), total) + 1) if np.minimum(m, s).sum() <= total)
        expected = np.minimum(m, s)
        rest = min(total, s.sum()) - expected.sum()
        larger = [i for i in np.argsort(key) if s[i] > m]
        expected[larger[:rest]] += 1
        assert x.tolist() == expected.tolist()


def test_share_out_goes_top_down() -> None:
    """12 rows over two trees are 6 and 6, however many leaves each has; a tree of 3 rows gives its 3."""
    levels = [np.arange(5), np.array([0, 0, 0, 0, 1])]
    assert share_out(levels, np.array([9, 9, 9, 1, 50]), 14, 0)[4] == 7
    assert share_out(levels, np.array([9, 9, 9, 1, 3]), 13, 0).tolist() == [3, 3, 3, 1, 3]
    assert share_out(levels, np.array([9, 9, 9, 1, 3]), 99, 0).tolist() == [9, 9, 9, 1, 3]


def planted(seed: int, n: int = 3000) -> dict[str, pa.Table]:
    """12 leaves of a steep tail below 4 parents below 2; an unused leaf, and one that the training saw otherwise."""
    found = tables(n, seed, k=12, tail=1.2)
    rows: list[dict[str, int | None]] = [{"level": 1, "cluster": j, "parent": j // 3} for j in range(13)]
    rows += [{"level": 2, "cluster": j, "parent": j % 2} for j in range(5)]
    rows += [{"level": 3, "cluster": j, "parent": None} for j in range(2)]
    found["hierarchy"] = pa.Table.from_pylist(rows, schema=HIERARCHY)
    return found


@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize("levels", [1, 3])
def test_hierarchical_flattens_a_long_tail(tmp_path: Path, seed: int, levels: int) -> None:
    given = planted(seed)
    if levels == 1:
        del given["hierarchy"]
    run = LocalRun(tmp_path, seed=seed)
    table = pa.concat_tables(Hierarchical(keep=0.2).run(Inputs.of(**given), run))
    cluster = given["clusters"]["cluster"].to_numpy()
    before = np.bincount(cluster, minlength=12)
    after = np.bincount(cluster[kept(table)], minlength=12)
    assert after.sum() == 600
    assert effective_number(after) > 1.25 * effective_number(before)
    assert effective_number(after) > 1.25 * effective_number(np.round(before * 0.2))
    assert run.notes["levels"] == levels
    assert run.notes["clusters"] == ([12] if levels == 1 else [12, 4, 2])
    tops = np.bincount(np.arange(12) // 3 % 2, weights=after)
    if levels == 1:
        assert after.max() - after[after < before].min() <= 1
    else:
        assert tops.tolist() == [300, 300]


def test_hierarchical_takes_the_nearest_of_a_leaf_unless_told(tmp_path: Path) -> None:
    given = tables(400, 1, k=3)
    cluster, distance = (given["clusters"][name].to_numpy() for name in ("cluster", "distance"))
    for which in ("easy", "hard", "random"):
        table = decide(Hierarchical(keep=0.25, which=which), Inputs.of(**given), tmp_path)
        keep = table["keep"].to_numpy()
        assert keep.sum() == 100
        overlaps = []
        for j in range(3):
            mine, others = distance[keep & (cluster == j)], distance[~keep & (cluster == j)]
            overlaps.append((mine.max() <= others.min(), mine.min() >= others.max()))
        assert overlaps == [(which == "easy", which == "hard")] * 3
    assert Hierarchical(keep=0.5).which == "easy"


def test_hierarchical_is_seeded_and_says_what_it_did(tmp_path: Path) -> None:
    stage = Hierarchical(keep_rows=2)
    chosen = {tuple(kept(decide(stage, world(50, 0), tmp_path, seed))) for seed in range(8)}
    assert len(chosen) > 1  # which clusters get the two rows is drawn
    table = decide(Hierarchical(keep_rows=2), Inputs.of(**tables(1, 0, k=1)), tmp_path)
    (said,) = table["evidence"].to_pylist()
    assert said.endswith("rank 1 of 1 in cluster 0, share 1")


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([], "the hierarchy has no cluster 0 at level 1"),
        ([{"level": 1, "cluster": 0, "parent": 7}, {"level": 2, "cluster": 1}], "no cluster 7 at level 2"),
        ([{"level": 1, "cluster": 0, "parent": 3}], "no cluster 3 at level 2"),
        (
            [{"level": 1, "cluster": 0, "parent": 0}, {"level": 1, "cluster": 1}, {"level": 2, "cluster": 0}],
            "cluster 1 at level 1 has no parent, but others have",
        ),
    ],
)
def test_a_hierarchy_of_other_clusters_is_refused(tmp_path: Path, rows: list[dict[str, int]], message: str) -> None:
    count = 2 if len(rows) == 3 else 1
    clusters = pa.table(
        [np.arange(count), np.arange(count, dtype=np.int32), np.zeros(count, np.float32)], schema=CLUSTERS
    )
    inputs = Inputs.of(clusters=clusters, hierarchy=pa.Table.from_pylist(rows, schema=HIERARCHY))
    with pytest.raises(UserError, match=message):
        decide(Hierarchical(keep=1.0), inputs, tmp_path)


def test_it_reads_the_hierarchy_where_there_is_one() -> None:
    stage = Hierarchical(keep=0.5)
    alone = {"clusters": CLUSTERS}
    both = alone | {"hierarchy": HIERARCHY}
    assert stage.inputs(alone) == stage.inputs(both) == {"clusters": ("cluster", "distance")}
    assert (stage.sides(alone), stage.sides(both)) == ((), ("hierarchy",))
