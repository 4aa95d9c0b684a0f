"""A perfect build passes every check; each kind of mistake, planted in its tables, fails the check that is about it."""

import re
from collections.abc import Callable
from io import StringIO
from math import floor
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from rich.console import Console

from catalog.schema import DECISIONS
from flows.demo.corpus import Plan
from flows.demo.scoreboard import Check, render, score

Tables = dict[str, pa.Table]
ROWS, HAZARDS = "rows of the source", "hazards with the right reason"
CAPTIONS, ORDINARY = "captions as they were", "ordinary rows came through"
EXACT, REENCODED, FALSE = "exact duplicates", "re-encoded duplicates", "false merges, of rows judged"
PURITY, AUC = "rows in a cluster of their concept", "wrong captions score low (AUC)"
KEPT, BALANCE = "kept by prune", "rows that end once: in = out + kept"


@pytest.fixture(scope="module")
def truth(web: Plan) -> pa.Table:
    return pq.read_table(web.truth)


def perfect(truth: pa.Table) -> Tables:
    """Return the tables of a build that did everything right."""
    rows = truth.to_pylist()
    ids = [at // 150 << 24 | at % 150 for at in range(len(rows))]
    reasons = [row["expected_reason"] if row["expected_stage"] == "download" else None for row in rows]
    decisions: list[tuple[Any, ...]] = []
    representative: dict[int, int] = {}
    files: dict[str, int] = {}

    names = ("sample_id", "stage", "keep", "reason", "evidence", "representative", "similarity")

    def decide(sample_id: int, stage: str, reason: str | None, stands: int | None = None) -> None:
        decisions.append((sample_id, stage, reason is None, reason, None, stands, None if stands is None else 0.99))

    alive = [(at, row) for at, row in zip(ids, rows, strict=True) if row["expected_stage"] != "download"]
    for at, row in alive:
        decide(at, "filter", "blank" if row["expected_stage"] == "filter" else None)
    alive = [(at, row) for at, row in alive if row["expected_stage"] is None]
    left = []
    for at, row in alive:
        first = representative.setdefault(row["picture"], at)
        same = files.setdefault(row["file"], at)
        reason = None if first == at else "duplicate_exact" if same != at else "duplicate_perceptual"
        decide(at, "deduplicate", reason, first if reason else None)
        left += [] if reason else [at]
    kept = set(left[: floor(0.5 * len(left))])
    for at in left:
        decide(at, "prune", None if at in kept else "pruned_density")
    rng = np.random.default_rng(0)
    concepts = sorted({row["concept"] for row in rows if row["concept"]})
    seen = [(at, row) for at, row in alive if row["concept"]]
    return {
        "source": pa.table(
            {
                "sample_id": ids,
                "url": truth["url"],
                "caption": [None if r["caption"] is None else r["caption"].replace("\0", "") for r in rows],
            }
        ),
        "images": pa.table(
            {"sample_id": ids, "status": ["failed" if reason else "success" for reason in reasons], "reason": reasons}
        ),
        "decisions": pa.Table.from_pylist([dict(zip(names, row, strict=True)) for row in decisions], schema=DECISIONS),
        "clusters": pa.table(
            {"sample_id": [at for at, _ in seen], "cluster": [concepts.index(row["concept"]) for _, row in seen]}
        ),
        "embeddings": pa.table(
            {
                "sample_id": [at for at, _ in seen],
                "clip_score": rng.normal([0.1 if row["wrong_caption"] else 0.6 for _, row in seen], 0.02),
            }
        ),
        "samples": pa.table({"sample_id": sorted(kept)}),
    }


def checks(truth: pa.Table, tables: Tables) -> dict[str, Check]:
    return {check.name: check for check in score(truth, **tables, keep=0.5)}


def replace(table: pa.Table, column: str, change: Callable[[dict[str, Any]], object]) -> pa.Table:
    values = pa.array([change(row) for row in table.to_pylist()], table.schema.field(column).type)
    return table.set_column(table.schema.get_field_index(column), table.schema.field(column), values)


def failing(truth: pa.Table, tables: Tables) -> set[str]:
    return {name for name, check in checks(truth, tables).items() if not check.passed}


def test_a_perfect_build_passes_every_check_with_the_numbers_that_were_planted(truth: pa.Table) -> None:
    found = checks(truth, perfect(truth))
    assert [name for name, check in found.items() if not check.passed] == []
    assert set(found) == {ROWS, HAZARDS, CAPTIONS, ORDINARY, EXACT, REENCODED, FALSE, PURITY, AUC, KEPT, BALANCE}
    rows = truth.to_pylist()
    assert found[HAZARDS].planted == sum(row["hazard"] is not None for row in rows)
    assert found[ORDINARY].planted == sum(row["hazard"] is None for row in rows)
    assert found[EXACT].found == found[EXACT].planted == sum(row["duplicate_kind"] == "exact" for row in rows)
    assert found[REENCODED].planted == sum(row["duplicate_kind"] == "reencoded" for row in rows)
    assert found[AUC].planted == sum(row["wrong_caption"] for row in rows)
    assert not any(check.detail for name, check in found.items() if name not in {AUC, KEPT})


def test_a_lost_and_a_doubled_row(truth: pa.Table) -> None:
    tables = perfect(truth)
    assert ROWS in failing(truth, tables | {"source": tables["source"].slice(1)})
    twice = pa.concat_tables([tables["source"], replace(tables["source"].slice(5, 1), "sample_id", lambda _: 1 << 30)])
    found = checks(truth, tables | {"source": twice})
    assert not found[ROWS].passed
    assert found[ROWS].detail == ("1 row that nobody planted",)


def test_a_wrong_reason_names_the_hazard(truth: pa.Table) -> None:
    tables = perfect(truth)
    gone = {row["url"] for row in truth.to_pylist() if row["hazard"] == "redirect loop"}
    ids = {row["sample_id"] for row in tables["source"].to_pylist() if row["url"] in gone}
    wrong = replace(tables["images"], "reason", lambda r: "timeout" if r["sample_id"] in ids else r["reason"])
    found = checks(truth, tables | {"images": wrong})
    assert {name for name, check in found.items() if not check.passed} == {HAZARDS}
    assert found[HAZARDS].planted - found[HAZARDS].found == len(ids) > 0
    expected = f"redirect loop: expected download redirect_limit, found download timeout ({len(ids)})"
    assert found[HAZARDS].detail == (expected,)


def test_hazards_that_came_through_and_pictures_that_did_not(truth: pa.Table) -> None:
    tables = perfect(truth)
    through = replace(tables["images"], "status", lambda _: "success")
    assert HAZARDS in failing(truth, tables | {"images": through})
    first = next(at for at, row in enumerate(truth.to_pylist()) if row["hazard"] is None)
    failed = tables["source"]["sample_id"][first].as_py()
    images = tables["images"]
    for column, value in (("status", "failed"), ("reason", "timeout")):
        images = replace(images, column, lambda r: value if r["sample_id"] == failed else r[column])  # noqa: B023
    found = checks(truth, tables | {"images": images})
    assert not found[ORDINARY].passed
    assert found[ORDINARY].detail == ("download timeout (1)",)


def test_a_blank_picture_that_the_filter_let_through(truth: pa.Table) -> None:
    tables = perfect(truth)
    kept = replace(tables["decisions"], "keep", lambda r: r["keep"] or r["stage"] == "filter")
    found = checks(truth, tables | {"decisions": kept})
    assert not found[HAZARDS].passed
    assert found[HAZARDS].detail[0].startswith("blank: expected filter blank, found it came through (")


def test_a_changed_caption(truth: pa.Table) -> None:
    tables = perfect(truth)
    cut = replace(tables["source"], "caption", lambda r: r["caption"] and r["caption"][:200])
    assert failing(truth, tables | {"source": cut}) == {CAPTIONS}


@pytest.mark.parametrize(("kind", "check"), [("exact", EXACT), ("perceptual", REENCODED)])
def test_missed_duplicates(truth: pa.Table, kind: str, check: str) -> None:
    tables = perfect(truth)
    reason = f"duplicate_{kind}"
    missed = replace(tables["decisions"], "keep", lambda r: r["keep"] or r["reason"] == reason)
    found = checks(truth, tables | {"decisions": missed})
    assert not found[check].passed
    assert found[check].found == 0
    assert found[check].detail


def test_the_other_copy_may_be_the_one_that_stays(truth: pa.Table) -> None:
    """Which of two copies is kept is the recipe's business."""
    tables = perfect(truth)
    pairs = [r for r in tables["decisions"].to_pylist() if r["reason"] == "duplicate_exact"]
    stands = [r["representative"] for r in tables["decisions"].to_pylist()]
    one, other = next((p["sample_id"], p["representative"]) for p in pairs if stands.count(p["representative"]) == 1)
    swapped = {one: other, other: one}
    rows = [
        r | {"sample_id": swapped.get(r["sample_id"], r["sample_id"])}
        | ({"representative": one} if r["sample_id"] == one and r["representative"] else {})
        for r in tables["decisions"].to_pylist()
    ]  # fmt: skip
    found = checks(truth, tables | {"decisions": pa.Table.from_pylist(rows, schema=DECISIONS)})
    assert found[EXACT].passed
    assert found[FALSE].passed


def test_false_merges_are_counted_and_named(truth: pa.Table) -> None:
    tables = perfect(truth)
    pictures = {
        s["sample_id"]: t["picture"] for s, t in zip(tables["source"].to_pylist(), truth.to_pylist(), strict=True)
    }
    judged = [r for r in tables["decisions"].to_pylist() if r["stage"] == "deduplicate"]
    kept = [r["sample_id"] for r in judged if r["keep"]]
    out = set(kept[:3])
    stands = kept[10]
    assert pictures[stands] not in {pictures[at] for at in out}
    decisions = tables["decisions"]
    verdict = {"keep": False, "reason": "duplicate_perceptual", "representative": stands, "similarity": None}
    for column, value in verdict.items():
        decisions = replace(
            decisions,
            column,
            lambda r: value if r["stage"] == "deduplicate" and r["sample_id"] in out else r[column],  # noqa: B023
        )
    found = checks(truth, tables | {"decisions": decisions})
    assert found[FALSE].found == 3
    assert not found[FALSE].passed
    assert found[FALSE].value == pytest.approx(3 / len(judged))
    assert len(found[FALSE].detail) == 3
    assert all(" is not files/" in line for line in found[FALSE].detail)


def test_a_build_that_never_deduplicated_does_not_pass_in_silence(truth: pa.Table) -> None:
    tables = perfect(truth)
    rows = [r for r in tables["decisions"].to_pylist() if r["stage"] != "deduplicate"]
    bare = tables | {"decisions": pa.Table.from_pylist(rows, schema=DECISIONS)}
    assert {EXACT, REENCODED} <= failing(truth, bare)
    without = score(truth, **bare, keep=0.5, deduplicate_stage=None)
    assert {EXACT, REENCODED, FALSE}.isdisjoint(check.name for check in without)


def test_purity_of_one_cluster_is_the_share_of_the_commonest_concept(truth: pa.Table) -> None:
    tables = perfect(truth)
    one = replace(tables["clusters"], "cluster", lambda _: 0)
    found = checks(truth, tables | {"clusters": one})[PURITY]
    ids = set(tables["clusters"]["sample_id"].to_pylist())
    concepts = [
        t["concept"]
        for s, t in zip(tables["source"].to_pylist(), truth.to_pylist(), strict=True)
        if s["sample_id"] in ids
    ]
    assert found.found == max(map(concepts.count, set(concepts)))
    assert found.planted == len(concepts)
    assert not found.passed


def test_scores_without_knowledge_have_an_auc_of_one_half(truth: pa.Table) -> None:
    tables = perfect(truth)
    rng = np.random.default_rng(0)
    blind = replace(tables["embeddings"], "clip_score", lambda _: float(rng.random()))
    found = checks(truth, tables | {"embeddings": blind})[AUC]
    assert 0.2 < found.value < 0.8
    assert not found.passed
    nothing = replace(tables["embeddings"], "clip_score", lambda _: None)
    assert not checks(truth, tables | {"embeddings": nothing})[AUC].passed


def test_one_row_too_many_is_kept(truth: pa.Table) -> None:
    tables = perfect(truth)
    pruned = next(r["sample_id"] for r in tables["decisions"].to_pylist() if r["reason"] == "pruned_density")
    more = replace(
        tables["decisions"], "keep", lambda r: r["keep"] or (r["stage"] == "prune" and r["sample_id"] == pruned)
    )
    found = checks(truth, tables | {"decisions": more})
    assert found[KEPT].value == 1
    assert not found[KEPT].passed
    assert not found[BALANCE].passed  # that row is neither out nor in the manifest


def test_published_rows_that_were_rejected_or_unknown(truth: pa.Table) -> None:
    tables = perfect(truth)
    out = next(r["sample_id"] for r in tables["decisions"].to_pylist() if not r["keep"])
    for extra in (out, 1 << 40):
        samples = pa.table({"sample_id": [*tables["samples"]["sample_id"].to_pylist(), extra]})
        assert failing(truth, tables | {"samples": samples}) == {BALANCE}


def test_checks_are_left_out_with_their_tables(truth: pa.Table) -> None:
    tables = perfect(truth)
    few = {name: tables[name] for name in ("source", "images", "decisions")}
    names = {check.name for check in score(truth, **few)}
    assert {PURITY, AUC, KEPT, BALANCE}.isdisjoint(names)


def test_the_board_shows_numbers_failures_and_stages(truth: pa.Table) -> None:
    tables = perfect(truth)
    one = replace(tables["clusters"], "cluster", lambda _: 0)
    stages = [{"stage": "download", "seconds": 12.34, "rows": 400, "parts": 3, "cached_parts": 1, "bytes": 2_500_000}]
    console = Console(width=140, record=True, file=StringIO())
    console.print(render(score(truth, **(tables | {"clusters": one}), keep=0.5), stages))
    text = console.export_text()
    assert re.search(r"NO\s+│ rows in a cluster of their concept", text)
    assert "rows in a cluster of their concept: cluster 0:" in text
    assert len(re.findall(r"^ok\s+│", text, re.MULTILINE)) == 10
    assert "12.3" in text
    assert "2.5" in text
