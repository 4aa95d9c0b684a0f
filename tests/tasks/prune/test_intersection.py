"""DataComp's kind of filter: the top of two rankings of the same rows. (Set algebra: test_union.py.)"""

from pathlib import Path

import numpy as np

from tasks.prune import Intersection, Prototypes, Score
from tests.helpers import LocalRun
from tests.tasks.prune.worlds import decide, kept, tables, world


def test_intersection_has_both_fractions_of_the_same_rows(tmp_path: Path) -> None:
    given = tables(200, 2)
    stage = Intersection(of=(Score(keep=0.5), Prototypes(keep=0.3, balance=0)))
    run = LocalRun(tmp_path)
    keep = np.concatenate([t["keep"].to_numpy() for t in stage.run(world(200, 2), run)])
    scores, distance = given["embeddings"]["clip_score"].to_numpy(), given["clusters"]["distance"].to_numpy()
    top = np.argsort(-scores, kind="stable")[:100]
    hard = np.argsort(-distance, kind="stable")[:60]
    assert set(np.flatnonzero(keep)) == set(top) & set(hard)
    assert (run.notes["score_kept"], run.notes["prototypes_kept"]) == (100, 60)
    assert run.notes["kept"] == keep.sum()


def test_intersection_says_who_dropped_a_row(tmp_path: Path) -> None:
    table = decide(Intersection(of=(Score(keep=0.5), Prototypes(keep=0.3))), world(50), tmp_path)
    out = table.filter(table["reason"].is_valid())
    assert set(out["reason"].to_pylist()) == {"pruned_intersection"}
    assert all("drops: " in said for said in out["evidence"].to_pylist())
    left = table.filter(table["keep"])["evidence"].to_pylist()
    assert len(left) == len(kept(table)) > 0
    assert not any("drops: " in said for said in left)
