"""What every selector must do, whatever it selects by."""

from pathlib import Path
from typing import get_args

import numpy as np
import pyarrow as pa
import pytest
from pydantic import ValidationError

from catalog.errors import RecipeError
from catalog.inputs import Inputs
from catalog.schema import CLUSTERS, DECISIONS
from tasks.cluster.centroids import centroids_table
from tasks.prune import AnyPrune
from tests.helpers import check_numbers
from tests.tasks.prune.worlds import decide, make, world

MEMBERS = [{"method": "random", "keep": 0.5}, {"method": "score", "keep": 0.5}]
FIELDS: dict[str, dict[str, object]] = {
    "density": {"keep": 0.5},
    "hierarchical": {"keep": 0.5},
    "prototypes": {"keep": 0.5},
    "random": {"keep": 0.5},
    "score": {"keep": 0.5},
    "then": {"of": [MEMBERS[0], {"method": "score", "keep": 0.5}], "of_total": True},
    "union": {"of": [MEMBERS[0], {"method": "random", "keep": 0.01, "name": "few"}]},
    "intersection": {"of": MEMBERS},
}
METHODS = list(FIELDS)
MEMBERS_OF = {"then": ["random", "score"], "union": ["random", "few"], "intersection": ["random", "score"]}
NUMBERS = DECISIONS.field("numbers").type
EXACT = METHODS[:6]
BY_CLUSTER = METHODS[:4]


def test_every_selector_is_here() -> None:
    """A selector that the family registers is tested by this file: it has fields in `FIELDS`."""
    selectors = get_args(get_args(AnyPrune)[0])
    assert sorted(METHODS) == sorted(selector.model_fields["method"].default for selector in selectors)


@pytest.mark.parametrize("method", METHODS)
def test_no_rows(tmp_path: Path, method: str) -> None:
    assert decide(make(method=method, **FIELDS[method]), world(0), tmp_path).num_rows == 0


@pytest.mark.parametrize("method", METHODS)
def test_same_bytes_twice_and_all_rows_judged(tmp_path: Path, method: str) -> None:
    stage = make(method=method, name="thin", **FIELDS[method])
    first, second = decide(stage, world(101), tmp_path / "a", 3), decide(stage, world(101), tmp_path / "b", 3)
    assert first.equals(second)
    assert first.schema == DECISIONS == stage.output({})
    assert first["sample_id"].to_pylist() == list(range(101))
    assert 0 < first["keep"].to_numpy().sum() < 101
    if method in EXACT:
        assert first["keep"].to_numpy().sum() == 50
    assert set(first["stage"].to_pylist()) == {"thin"}
    assert set(first["reason"].to_pylist()) == {None, f"pruned_{method}"}
    assert (first["reason"].is_valid().to_numpy() == ~first["keep"].to_numpy()).all()
    assert first["evidence"].null_count == 0


@pytest.mark.parametrize("method", BY_CLUSTER)
def test_only_broken_embeddings(tmp_path: Path, method: str) -> None:
    table = pa.table([[1, 2], pa.nulls(2, pa.int32()), pa.nulls(2, pa.float32())], schema=CLUSTERS)
    none = centroids_table(np.empty((0, 4), np.float32), np.empty(0, np.int64))
    found = decide(make(method=method, keep=1.0), Inputs.of(clusters=table, centroids=none), tmp_path)
    assert found["reason"].to_pylist() == ["no_embedding"] * 2


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"method": "density"}, "found neither"),
        ({"method": "random", "keep": 0.5, "keep_rows": 3}, "found both"),
        ({"method": "density", "keep": 1.5}, "less than or equal to 1"),
        ({"method": "dense", "keep": 0.5}, "'density', 'hierarchical', 'intersection', 'prototypes', 'random'"),
        ({"method": "random", "keep": 0.5, "temperature": 0.1}, "Extra inputs are not permitted"),
    ],
)
def test_wrong_recipes(fields: dict[str, object], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        make(**fields)


def test_prune_without_clusters_says_what_to_do() -> None:
    with pytest.raises(RecipeError, match="put a stage `use: cluster` before it"):
        make(method="density", keep=0.5).inputs({})


@pytest.mark.parametrize("method", METHODS)
def test_evidence_of_any_rows_is_that_of_all_rows(tmp_path: Path, method: str) -> None:
    """Sentences are made piece by piece: how rows are cut into pieces changes nothing."""
    stage = make(method=method, **FIELDS[method])
    whole = decide(stage, world(101), tmp_path)
    pieces = decide(stage, world(101), tmp_path, piece_rows=7)
    assert pieces["keep"].num_chunks == 15
    assert pieces.combine_chunks().equals(whole.combine_chunks())


@pytest.mark.parametrize("method", METHODS)
def test_the_numbers_are_those_in_the_evidence(tmp_path: Path, method: str) -> None:
    found = decide(make(method=method, name="thin", **FIELDS[method]), world(101), tmp_path, 3)
    for row in found.to_pylist(maps_as_pydicts="strict"):
        assert row["numbers"]
        verdicts = {name.removesuffix(".keep"): n for name, n in row["numbers"].items() if name.endswith(".keep")}
        assert list(verdicts) == MEMBERS_OF.get(method, [])[: len(verdicts) if method == "then" else None]
        assert all(f"{m} {'keeps' if n else 'drops'}: " in row["evidence"] for m, n in verdicts.items())
    # The verdicts of members are words in the evidence; all others are numbers there.
    plain = [[(name, n) for name, n in row or () if not name.endswith(".keep")] for row in found["numbers"].to_pylist()]
    check_numbers(found.set_column(found.num_columns - 1, found.schema.field("numbers"), pa.array(plain, NUMBERS)))
