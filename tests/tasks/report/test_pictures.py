import hashlib
from collections.abc import Sequence

import pyarrow as pa

from catalog.inputs import Inputs
from catalog.schema import DECISIONS, IMAGES
from tasks.report._base import ReportTables
from tasks.report._pictures import grids, pairs
from tests.tasks.report.gallery import Gallery


def alive(photos: Gallery) -> tuple[set[int], set[int]]:
    decoded = {r["sample_id"] for r in photos.tables["images"].to_pylist() if r["status"] == "success"}
    out = {r["sample_id"] for r in photos.tables["decisions"].to_pylist() if not r["keep"]}
    return decoded, decoded - out


def shown(photos: Gallery, section: str, samples: int = 20, seed: int = 3) -> list[int | None]:
    return [e.sample_id for e in grids(ReportTables(photos.inputs), samples, seed) if e.section == section]


def test_both_grids_follow_one_random_order(photos: Gallery) -> None:
    decoded, kept = alive(photos)
    order = sorted(decoded, key=lambda i: (hashlib.md5(f"{i}:3".encode()).hexdigest(), i))
    assert shown(photos, "before") == order[:20]
    assert shown(photos, "after") == [i for i in order if i in kept][:20]


def test_another_seed_draws_other_samples(photos: Gallery) -> None:
    assert shown(photos, "before", seed=4) != shown(photos, "before")


def test_rejected_samples_carry_stage_reason_and_evidence_of_every_reason(photos: Gallery) -> None:
    rejected = [e for e in grids(ReportTables(photos.inputs), 24, 0) if e.section == "rejected"]
    truth = {r["sample_id"]: r for r in photos.tables["decisions"].to_pylist() if not r["keep"]}
    for entry in rejected:
        assert entry.content["kept"] is False
        for key in ("stage", "reason", "evidence"):
            assert entry.content[key] == truth[entry.sample_id][key]
    assert {e.content["reason"] for e in rejected} == {row["reason"] for row in truth.values()}


def planted(similarities: Sequence[tuple[int, str, float | None]]) -> Inputs:
    rows = [
        {"sample_id": i, "stage": "d", "keep": False, "reason": reason, "representative": 100, "similarity": similarity}
        for i, reason, similarity in similarities
    ]
    rows.append({"sample_id": 100, "stage": "d", "keep": True})
    rows.append({"sample_id": 101, "stage": "other", "keep": False, "reason": "dull"})
    return Inputs.of(alive_only=False, decisions=pa.Table.from_pylist(rows, DECISIONS))


def test_the_least_similar_pairs_come_first_and_equal_ones_are_few() -> None:
    exact = [(i, "exact", 1.0) for i in range(10)]
    semantic = [(10, "semantic", 0.97), (11, "semantic", 0.91), (12, "semantic", 0.99)]
    entries = list(pairs(ReportTables(planted(exact + semantic)), limit=12))
    assert [e.sample_id for e in entries] == [100, 11, 100, 10, 100, 12, 100, 0, 100, 1]
    assert [e.content["shows"] for e in entries] == ["representative", "sample_id"] * 5
    assert [e.content["pair"] for e in entries] == [0, 0, 1, 1, 2, 2, 3, 3, 4, 4]


def test_pairs_stop_at_their_limit() -> None:
    assert len(list(pairs(ReportTables(planted([(i, "semantic", 0.9 + i / 100) for i in range(9)])), limit=3))) == 6
    assert list(pairs(ReportTables(planted([])), limit=3)) == []
    assert list(pairs(ReportTables(planted([(1, "semantic", 0.9)])), limit=0)) == []


def test_no_images_no_grids() -> None:
    assert list(grids(ReportTables(Inputs.of(alive_only=False)), 5, 0)) == []
    empty = Inputs.of(alive_only=False, images=IMAGES.empty_table(), decisions=DECISIONS.empty_table())
    assert list(grids(ReportTables(empty), 5, 0)) == []
    assert list(grids(ReportTables(Inputs.of(alive_only=False, images=IMAGES.empty_table())), 0, 0)) == []
