"""What the card says of each pruning and each member, against planted choices; and its picture."""

from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from catalog.inputs import Inputs
from catalog.schema import CLUSTERS, DECISIONS, SAMPLE_ID, SOURCE, score
from tasks.concepts.coverage import coverage
from tasks.prune import Prototypes, Score, Then
from tasks.report import Report
from tasks.report._base import ReportTables
from tasks.report._coverage import BINS, coverages, facts, skyline
from tasks.report._page import render
from tests.helpers import LocalRun
from tests.tasks.report.gallery import Gallery


def judged(cluster: np.ndarray, keep: np.ndarray, stage: str = "thin", reason: str = "pruned_random") -> dict[str, Any]:
    """Return the tables of rows in clusters (-1: none) that one stage kept or not."""
    ids = np.arange(len(cluster))
    columns = {"sample_id": ids, "stage": [stage] * len(ids), "keep": keep}
    reasons = pa.array([None if k else reason for k in keep], pa.string())
    rest = {f.name: pa.nulls(len(ids), f.type) for f in DECISIONS if f.name not in columns} | {"reason": reasons}
    clusters = [ids, pa.array(cluster.astype(np.int32), mask=cluster < 0), pa.array(np.zeros(len(ids), np.float32))]
    return {
        "clusters": pa.table(clusters, schema=CLUSTERS),
        "decisions": pa.table({f.name: (columns | rest)[f.name] for f in DECISIONS}, schema=DECISIONS),
    }


def entries(tables: dict[str, pa.Table], *stages: str) -> list[dict[str, Any]]:
    return [entry.content for entry in coverages(ReportTables(Inputs.of(alive_only=False, **tables), stages))]


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_a_stage_is_counted_by_concept(seed: int) -> None:
    rng = np.random.default_rng(seed)
    cluster = rng.zipf(1.4, 900).clip(max=40) - 2  # some rows have no concept
    keep = rng.random(900) < 0.3
    (row,) = entries(judged(cluster, keep))
    found = coverage(cluster, keep)
    assert (row["stage"], row["member"]) == ("thin", None)
    assert row["before"] == (cluster >= 0).sum()
    assert row["kept"] == (keep & (cluster >= 0)).sum()
    assert {(c, b, k) for c, b, k in row["concepts"]} == set(
        zip(found.concept.tolist(), found.before.tolist(), found.kept.tolist(), strict=True)
    )
    sizes = [before for _, before, _ in row["concepts"]]
    assert sizes == sorted(sizes, reverse=True)
    assert row["tail_share"] == pytest.approx(found.tail_share, abs=1e-6)
    assert row["emptied"] == found.emptied
    assert sum(row["skyline"]["rows"]) == row["before"]
    assert sum(row["skyline"]["kept"]) == row["kept"]


def test_concepts_that_lost_and_won_are_named_where_they_are_large() -> None:
    cluster = np.repeat([0, 1, 2, 3], [20, 20, 20, 3])
    keep = np.concatenate([np.arange(20) < 5, np.arange(20) < 15, np.arange(20) < 10, np.ones(3, bool)])
    (row,) = entries(judged(cluster, keep))
    assert (row["most"], row["least"]) == ([[1, 20, 15]], [[0, 20, 5]])


def test_only_prunings_are_shown_in_the_order_they_ran() -> None:
    first = judged(np.zeros(8, int), np.arange(8) < 6, "z-first")
    then = judged(np.zeros(6, int), np.arange(6) < 3, "a-then", "pruned_density")
    other = judged(np.zeros(6, int), np.arange(6) < 3, "filter", "width >= 200")
    decisions = pa.concat_tables([other["decisions"], then["decisions"], first["decisions"]])
    found = entries({"clusters": first["clusters"], "decisions": decisions})
    assert [(row["stage"], row["before"], row["kept"]) for row in found] == [("z-first", 8, 6), ("a-then", 6, 3)]
    assert entries({"clusters": first["clusters"], "decisions": other["decisions"]}) == []
    assert entries({"decisions": first["decisions"]}) == []
    assert entries({"clusters": first["clusters"].slice(0, 0), "decisions": first["decisions"]}) == []


def test_a_stage_before_the_clusters_is_not_said_to_have_kept_everything() -> None:
    """The rows that it dropped have no cluster: of those that have one, all were kept."""
    before = judged(np.zeros(8, int), np.arange(8) < 6, "best")
    after = judged(np.array([0, 0, 0, 1, 1, -1]), np.arange(6) < 3, "thin")  # the sixth has no usable embedding
    decisions = pa.concat_tables([before["decisions"], after["decisions"]])
    found = entries({"clusters": after["clusters"], "decisions": decisions})
    assert [(row["stage"], row["before"], row["kept"]) for row in found] == [("thin", 5, 3)]


SCORES = pa.schema([SAMPLE_ID, score("clip_score", "clip", 1, "")])


def combined(tmp_path: Path, rows: int = 200, name: str = "both") -> tuple[dict[str, pa.Table], LocalRun]:
    rng = np.random.default_rng(0)
    tables = judged(rng.integers(0, 9, rows), np.ones(rows, bool))
    distance, scores = (rng.random(rows).astype(np.float32) for _ in range(2))
    tables["clusters"] = tables["clusters"].set_column(2, CLUSTERS.field(2), pa.array(distance))
    tables["embeddings"] = pa.table([np.arange(rows), scores], schema=SCORES)
    inputs = Inputs.of(clusters=tables["clusters"], embeddings=tables["embeddings"])
    run = LocalRun(tmp_path)
    nested = Then(of=(Prototypes(keep=0.9), Score(keep=0.9, lowest=True)), name="inner")
    stage = Then(of=(Score(keep=0.5), Prototypes(keep=0.5), nested), name=name)
    tables["decisions"] = pa.concat_tables(stage.run(inputs, run))
    return tables, run


def test_members_are_counted_from_the_numbers(tmp_path: Path) -> None:
    """As many rows as each member noted, in the members' order; those of a nested combination are not shown apart."""
    tables, run = combined(tmp_path)
    found = entries(tables)
    assert [row["member"] for row in found] == [None, "score", "prototypes", "inner"]
    assert [row["before"] for row in found] == [200, 200, 100, 50]
    assert [row["kept"] for row in found] == [run.notes[f"{m}kept"] for m in ("", "score_", "prototypes_", "inner_")]
    cluster, scores = (tables[t][c].to_numpy() for t, c in (("clusters", "cluster"), ("embeddings", "clip_score")))
    top = np.isin(np.arange(200), np.argsort(-scores)[:100])
    expected = coverage(cluster, top)
    assert found[1]["tail_share"] == pytest.approx(expected.tail_share, abs=1e-6)
    assert sorted(found[1]["concepts"]) == np.stack([expected.concept, expected.before, expected.kept], 1).tolist()


def test_no_sentence_is_read(tmp_path: Path) -> None:
    tables, _ = combined(tmp_path)
    expected = entries(tables)
    decisions = tables["decisions"]
    nothing_said = pa.array(["; score keeps: ; other drops: "] * decisions.num_rows)
    at = decisions.column_names.index("evidence")
    tables["decisions"] = decisions.set_column(at, DECISIONS.field("evidence"), nothing_said)
    assert entries(tables) == expected


@pytest.mark.parametrize("without", ["null", "no column"])
def test_a_combination_of_an_older_release_says_that_its_members_are_missing(tmp_path: Path, without: str) -> None:
    tables, run = combined(tmp_path)
    decisions = tables["decisions"].drop_columns("numbers")
    if without == "null":
        field = DECISIONS.field("numbers")
        decisions = decisions.append_column(field, pa.nulls(decisions.num_rows, field.type))
    tables["decisions"] = decisions
    (row,) = entries(tables)
    assert (row["member"], row["before"], row["kept"], row["numbers_missing"]) == (None, 200, run.notes["kept"], True)
    source = pa.table({f.name: np.arange(200) if f.name == "sample_id" else [""] * 200 for f in SOURCE}, schema=SOURCE)
    (card,) = Report(samples=0).run(Inputs.of(alive_only=False, source=source, **tables), LocalRun(tmp_path))
    assert "Its selectors are not shown: its decisions have no numbers" in words(render(card, {}))
    (other,) = entries(judged(np.zeros(4, int), np.arange(4) < 2))  # one selector: nothing is missing
    assert "numbers_missing" not in other


def test_prunings_are_in_the_order_in_which_they_ran() -> None:
    one, other = (judged(np.zeros(8, int), np.ones(8, bool), name) for name in ("a", "b"))
    for tables in (one, other):
        rows = tables["decisions"]
        reason = pa.array(["pruned_random", *[None] * 7], pa.string())
        tables["decisions"] = rows.set_column(rows.column_names.index("reason"), DECISIONS.field("reason"), reason)
    decisions = pa.concat_tables([one["decisions"], other["decisions"]])
    tables = {"clusters": one["clusters"], "decisions": decisions}
    assert [row["stage"] for row in entries(tables, "b", "a")] == ["b", "a"]
    assert [row["stage"] for row in entries(tables, "a", "b")] == ["a", "b"]


def test_many_concepts_are_drawn_as_few_steps() -> None:
    cluster = np.repeat(np.arange(5000), np.random.default_rng(0).zipf(1.6, 5000).clip(max=3000))
    row = facts(coverage(cluster, cluster % 2 == 0))
    assert 2 <= len(row["skyline"]["rows"]) <= BINS + 1
    assert sum(row["skyline"]["rows"]) == len(cluster)
    assert len(row["concepts"]) == 200


def test_skyline_is_as_wide_as_the_rows_and_as_high_as_the_share() -> None:
    row = facts(coverage(np.repeat([5, 6], [75, 25]), np.repeat([True, False, True], [15, 60, 25])))
    found = skyline(row)
    assert found.path == "M0 100V80.00H75.00V0.00H100.00V100Z"
    assert (found.level, found.tail) == (40.0, 20.0)
    assert skyline(facts(coverage(np.empty(0, int), np.empty(0, bool)))).path == ""


class Text(HTMLParser):
    def __init__(self, page: str) -> None:
        super().__init__()
        self.found: list[str] = []
        self.feed(page)

    def handle_data(self, data: str) -> None:
        self.found.append(data)


def words(page: str) -> str:
    return " ".join(" ".join(Text(page).found).split())


def test_the_page_shows_each_choice_with_its_numbers(photos: Gallery, card: pa.Table) -> None:
    page = render(card, {})
    assert 'href="#coverage"' in page
    said = words(page)
    assert "What pruning did to the concepts" in said
    assert "emptied" in said
    assert "of the tail" in said


def test_the_page_has_members_and_says_nothing_of_a_stages_name_but_text(tmp_path: Path) -> None:
    attack = "<script>parent.harmed=1</script>"
    tables, _ = combined(tmp_path, name=attack)
    source = pa.table({f.name: np.arange(200) if f.name == "sample_id" else [""] * 200 for f in SOURCE}, schema=SOURCE)
    inputs = Inputs.of(alive_only=False, source=source, **tables)
    (card,) = Report(samples=0).run(inputs, LocalRun(tmp_path))
    page = render(card, {})
    assert "<script" not in page
    said = words(page)
    assert f"in {attack} : prototypes 50 of 100 rows" in said


def test_no_pruning_no_section(photos: Gallery, tmp_path: Path) -> None:
    tables = {name: table for name, table in photos.tables.items() if name != "decisions"}
    (card,) = Report(samples=0).run(Inputs.of(alive_only=False, **tables), LocalRun(tmp_path))
    assert 'href="#coverage"' not in render(card, {})
