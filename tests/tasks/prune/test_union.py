"""What holds for every combination (labels, seeds, notes, evidence, bad recipes), and the union itself."""

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from catalog.errors import RecipeError
from catalog.inputs import Inputs
from catalog.schema import CLUSTERS, SAMPLE_ID
from tasks.prune import Random, Score, Then, Union
from tasks.prune._combine import Combination, MemberRun
from tests.helpers import LocalRun
from tests.tasks.prune.worlds import SCORES, decide, kept, make, tables, world

LEAF: st.SearchStrategy[dict[str, Any]] = st.one_of(
    st.builds(dict, method=st.just("random"), keep=st.sampled_from([0.1, 0.5, 1.0])),
    st.builds(dict, method=st.just("score"), keep=st.sampled_from([0.2, 0.6]), lowest=st.booleans()),
    st.builds(dict, method=st.just("prototypes"), keep=st.sampled_from([0.3, 0.7])),
    st.builds(dict, method=st.just("hierarchical"), keep_rows=st.sampled_from([1, 20, 999])),
    st.builds(dict, method=st.just("density"), keep=st.sampled_from([0.3, 0.7]), min_per_cluster=st.just(0)),
)
OF: st.SearchStrategy[dict[str, Any]] = st.recursive(
    LEAF,
    lambda members: st.builds(
        dict,
        method=st.sampled_from(["union", "intersection"]),
        of=st.lists(members, min_size=2, max_size=3),
    ),
    max_leaves=4,
)


def alone(fields: dict[str, object], inputs: Inputs, folder: Path, seed: int, label: str) -> set[int]:
    """Return what a member keeps where it is a stage of its own with the seed that it has as a member."""
    seeded = MemberRun(LocalRun(folder, seed=seed), label).seed
    return set(kept(decide(make(**fields), inputs, folder, seeded)))


@settings(max_examples=25, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(of=st.lists(OF, min_size=2, max_size=3), seed=st.integers(0, 9))
def test_combinations_are_set_algebra(tmp_path: Path, of: list[dict[str, object]], seed: int) -> None:
    inputs = world(60, seed % 3)
    union, intersection = (make(method=method, of=of) for method in ("union", "intersection"))
    assert isinstance(union, Combination)
    labels = [label for label, _ in union.members()]
    members = [alone(fields, inputs, tmp_path, seed, label) for fields, label in zip(of, labels, strict=True)]
    assert set(kept(decide(union, inputs, tmp_path, seed))) == set.union(*members)
    assert set(kept(decide(intersection, inputs, tmp_path, seed))) == set.intersection(*members)
    # one after the other: the first keeps what it does alone, and each keeps a part of what the one before left
    left = decide(make(method="then", of=of), inputs, tmp_path, seed)
    assert set(kept(left)) <= members[0]


def test_evidence_says_which_members_kept_a_row(tmp_path: Path) -> None:
    stage = make(
        method="union",
        of=[
            {"method": "score", "keep_rows": 2},
            {"method": "score", "keep_rows": 1, "lowest": True},
            {"name": "near", "method": "prototypes", "which": "easy", "keep_rows": 1},
        ],
    )
    clusters = pa.table(
        [np.arange(4), np.zeros(4, np.int32), np.array([0.5, 0.25, 0.75, 1], np.float32)], schema=CLUSTERS
    )
    scores = pa.table([np.arange(4), np.array([0.1, 0.2, 0.3, 0.4], np.float32)], schema=SCORES)
    run = LocalRun(tmp_path)
    table = pa.concat_tables(stage.run(Inputs.of(clusters=clusters, embeddings=scores), run))
    assert table["keep"].to_pylist() == [True, True, True, True]
    assert table["evidence"].to_pylist()[:2] == [
        "score drops: clip_score 0.1, rank 2 of 4 has 0.3; score-2 keeps: clip_score 0.1, rank 1 of 4 has 0.1; "
        "near drops: distance 0.5, rank 2 of 4 in cluster 0, floor 0",
        "score drops: clip_score 0.2, rank 2 of 4 has 0.3; score-2 drops: clip_score 0.2, rank 1 of 4 has 0.1; "
        "near keeps: distance 0.25, rank 1 of 4 in cluster 0, floor 0",
    ]
    assert run.notes["score_kept"] == 2
    assert run.notes["score-2_total"] == run.notes["near_kept"] == 1
    assert (run.notes["rows"], run.notes["kept"]) == (4, 4)


def test_a_row_that_no_member_keeps_is_out(tmp_path: Path) -> None:
    few = [{"method": "random", "keep_rows": 1, "name": name} for name in "ab"]
    table = decide(make(method="union", of=few), world(40), tmp_path)
    assert set(table.filter(table["keep"])["reason"].to_pylist()) == {None}
    assert set(table["reason"].to_pylist()) == {None, "pruned_union"}
    assert len(kept(table)) == 2  # members of one method draw with seeds of their own


def test_evidence_of_a_nested_combination_is_in_brackets(tmp_path: Path) -> None:
    inner = {"method": "then", "of": [{"method": "random", "keep": 1.0}, {"method": "score", "keep": 1.0}]}
    table = decide(make(method="union", of=[inner, {"method": "random", "keep": 1.0}]), world(1), tmp_path)
    (said,) = table["evidence"].to_pylist()
    assert said.startswith("then keeps: (random keeps: drawn as 1 of 1 & score keeps: clip_score ")
    assert said.endswith("); random keeps: drawn as 1 of 1")


def test_members_read_what_they_need_once() -> None:
    given = {name: table.schema for name, table in tables(3).items()}
    stage = make(method="union", of=[{"method": "density", "keep": 0.5}, {"method": "score", "keep": 0.5}])
    assert stage.inputs(given) == {"clusters": ("cluster", "distance"), "embeddings": ("clip_score",)}
    assert stage.sides(given) == ("centroids",)
    with pytest.raises(RecipeError, match="put a stage `use: cluster` before it"):
        stage.inputs({"embeddings": SCORES})
    clash = make(
        method="union",
        of=[{"method": "prototypes", "keep": 0.5}, {"method": "score", "keep": 0.5, "column": "images.distance"}],
    )
    images = pa.schema([SAMPLE_ID, ("distance", pa.float32())])
    with pytest.raises(RecipeError, match=r"reads both clusters\.distance and images\.distance, which have one name"):
        clash.inputs(given | {"images": images})


TWO = [{"method": "random", "keep": 0.5}, {"method": "score", "keep": 0.5}]


@pytest.mark.parametrize("method", ["union", "intersection", "then"])
@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({}, "Field required"),
        ({"of": TWO[:1]}, "combines two or more selectors in `of`; found 1"),
        ({"of": TWO, "keep": 0.5}, "takes no `keep`: put it into the entries of `of`"),
        ({"of": [{"method": "random"}, TWO[1]]}, "found neither"),
        ({"of": [{"method": "dense", "keep": 0.5}, TWO[1]]}, "'density', 'hierarchical'"),
        ({"of": [TWO[0], TWO[1] | {"of": "all"}]}, "'score' is `of: all`, which a combination does not support"),
        ({"of": [TWO[0] | {"resources": {"cpus": 2}}, TWO[1]]}, "'random' in `of` has `resources`"),
        ({"of": [TWO[0] | {"name": "a; b"}, TWO[1]]}, "named 'a; b'; use only a-z"),
        ({"of": [TWO[0] | {"name": "x-2"}, *[TWO[1] | {"name": "x"}] * 2]}, "two selectors in `of` are named 'x-2'"),
    ],
)
def test_wrong_combinations(method: str, fields: dict[str, object], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        make(method=method, **fields)


def test_a_combination_survives_its_own_dump() -> None:
    """Labels are in evidence and seeds: they must not depend on which fields were set explicitly."""
    stage = Union(of=(Random(keep=0.5), Then(of=(Score(keep=0.5), Random(keep=0.5, name="second")))))
    again = Union.model_validate(stage.model_dump())
    assert again == stage
    assert [label for label, _ in again.members()] == ["random", "then"]
