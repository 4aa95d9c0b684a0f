"""One selector after another: as stages in a row would do it, with fractions of what was left, or of all."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from catalog.inputs import Inputs
from catalog.schema import CLUSTERS
from tasks.prune import AnyPrune, Density, Hierarchical, Intersection, Prototypes, Random, Score, Then
from tests.helpers import LocalRun
from tests.tasks.prune.worlds import SCORES, decide, kept, tables, world

SECOND = [Density(keep=0.5), Prototypes(keep=0.5), Hierarchical(keep=0.5), Score(keep=0.5, lowest=True)]


@pytest.mark.parametrize("second", SECOND, ids=lambda stage: stage.method)
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_then_is_two_stages_in_a_row(tmp_path: Path, seed: int, second: AnyPrune) -> None:
    given = tables(300, seed)
    first = Score(keep=0.6)
    together = decide(Then(of=(first, second)), Inputs.of(**given), tmp_path)
    judged = decide(first, Inputs.of(**given), tmp_path)
    if second.method == "hierarchical":  # what it draws at random hangs on its seed; how many of each does not
        assert len(kept(together)) == 90
        return
    alone = decide(second, Inputs.of(**given, decisions=judged), tmp_path)
    assert kept(together) == kept(alone)
    assert len(kept(together)) == 90  # 0.5 of 0.6 of 300


@pytest.mark.parametrize("second", [*SECOND, Random(keep=0.5)], ids=lambda stage: stage.method)
def test_fractions_of_the_total(tmp_path: Path, second: AnyPrune) -> None:
    run = LocalRun(tmp_path)
    table = pa.concat_tables(Then(of=(Score(keep=0.6), second), of_total=True).run(world(300), run))
    assert table["keep"].to_numpy().sum() == 150  # 0.5 of 300
    assert run.notes[f"{'score-2' if second.method == 'score' else second.method}_kept"] == 150
    too_many = decide(Then(of=(Score(keep=0.3), second), of_total=True), world(300), tmp_path)
    assert too_many["keep"].to_numpy().sum() == 90  # no more than were left


def test_of_total_counts_the_rows_that_the_member_could_have_judged(tmp_path: Path) -> None:
    """100 rows, 80 of them with a cluster: half of the total is 40 for a member that goes by clusters."""
    absent = np.arange(100) < 20
    cluster, distance = np.zeros(100, np.int32), np.linspace(0, 1, 100, dtype=np.float32)
    clusters = pa.table(
        [np.arange(100), pa.array(cluster, mask=absent), pa.array(distance, mask=absent)], schema=CLUSTERS
    )
    scores = pa.table([np.arange(100), np.linspace(1, 0, 100, dtype=np.float32)], schema=SCORES)
    inputs = Inputs.of(clusters=clusters, embeddings=scores)
    table = decide(Then(of=(Score(keep=0.9), Prototypes(keep=0.5)), of_total=True), inputs, tmp_path)
    assert kept(table) == list(range(50, 90))
    nested = Intersection(of=(Prototypes(keep=0.5), Random(keep=1.0)))
    assert kept(decide(Then(of=(Score(keep=0.9), nested), of_total=True), inputs, tmp_path)) == list(range(50, 90))


def test_evidence_tells_how_far_a_row_came(tmp_path: Path) -> None:
    scores = pa.table([np.arange(4), np.array([0.1, 0.2, 0.3, 0.4], np.float32)], schema=SCORES)
    clusters = pa.table(
        [np.arange(4), np.zeros(4, np.int32), np.array([0.5, 0.25, 0.75, 1], np.float32)], schema=CLUSTERS
    )
    stage = Then(of=(Score(keep_rows=3), Prototypes(keep_rows=2), Score(keep_rows=1, lowest=True, name="last")))
    table = decide(stage, Inputs.of(embeddings=scores, clusters=clusters), tmp_path)
    assert kept(table) == [2]
    assert table["reason"].to_pylist() == ["pruned_then"] * 2 + [None, "pruned_then"]
    assert table["evidence"].to_pylist() == [
        "score drops: clip_score 0.1, rank 3 of 4 has 0.2",
        "score keeps: clip_score 0.2, rank 3 of 4 has 0.2; "
        "prototypes drops: distance 0.25, rank 3 of 3 in cluster 0, floor 1",
        "score keeps: clip_score 0.3, rank 3 of 4 has 0.2; "
        "prototypes keeps: distance 0.75, rank 2 of 3 in cluster 0, floor 1; "
        "last keeps: clip_score 0.3, rank 1 of 2 has 0.3",
        "score keeps: clip_score 0.4, rank 3 of 4 has 0.2; "
        "prototypes keeps: distance 1, rank 1 of 3 in cluster 0, floor 1; "
        "last drops: clip_score 0.4, rank 1 of 2 has 0.3",
    ]


def test_nothing_left_for_the_second(tmp_path: Path) -> None:
    table = decide(Then(of=(Score(keep=0.01), Density(keep=0.5))), world(20), tmp_path)
    assert kept(table) == []
    assert table["evidence"][0].as_py().count("drops") == 1
