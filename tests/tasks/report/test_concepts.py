import json
import math
from pathlib import Path

import pyarrow as pa
import pytest

from catalog.inputs import Inputs
from catalog.schema import CLUSTERS, DECISIONS, SOURCE
from tasks.cluster.concepts import CONCEPTS
from tasks.report import Report
from tasks.report._base import ReportTables
from tasks.report._concepts import concepts
from tasks.report._page import render
from tests.helpers import LocalRun
from tests.tasks.report.gallery import CONCEPTS as CAPTIONS
from tests.tasks.report.gallery import Gallery


def planted() -> Inputs:
    clusters = [
        (0, 7, 0.5),
        (1, 7, 0.1),
        (2, 7, 0.1),
        (3, 7, 0.3),
        (4, 7, 0.2),
        (5, 3, 0.0),
        (6, None, None),
        (7, 3, None),
    ]
    rows = [dict(zip(("sample_id", "cluster", "distance"), row, strict=True)) for row in clusters]
    decisions = [{"sample_id": i, "stage": "p", "keep": i not in (0, 2, 5)} for i in range(8)]
    return Inputs.of(
        alive_only=False,
        source=pa.Table.from_pylist(
            [{"sample_id": i, "caption": "a sheep" if i < 5 else None} for i in range(8)], SOURCE
        ),
        clusters=pa.Table.from_pylist(rows, CLUSTERS),
        decisions=pa.Table.from_pylist(decisions, DECISIONS),
    )


def test_sizes_kept_and_nearest_are_exact() -> None:
    entries = list(concepts(ReportTables(planted()), limit=5))
    first, second = [e.content for e in entries if e.section == "concept"]
    assert (first["cluster"], first["size"], first["kept"], first["terms"]) == (7, 5, 3, ["sheep"])
    assert first["mean_distance"] == pytest.approx((0.5 + 0.1 + 0.1 + 0.3 + 0.2) / 5, abs=1e-6)
    assert (second["cluster"], second["size"], second["kept"], second["terms"]) == (3, 2, 1, [])
    shown = [(e.content["cluster"], e.sample_id, e.content["kept"]) for e in entries if e.section == "concept_image"]
    assert shown == [(7, 1, True), (7, 2, False), (7, 4, True), (7, 3, True), (3, 5, False)]


def test_balance_ranks_before_and_after() -> None:
    (balance,) = [e.content for e in concepts(ReportTables(planted()), limit=5) if e.section == "balance"]
    assert balance["before"]["rows"] == [5, 2]
    assert balance["after"]["rows"] == [3, 1]
    assert balance["after"]["effective"] == pytest.approx(
        math.exp(-(0.75 * math.log(0.75) + 0.25 * math.log(0.25))), abs=1e-3
    )


def test_only_the_largest_are_shown() -> None:
    shown = [e.content["cluster"] for e in concepts(ReportTables(planted()), limit=1) if e.section == "concept"]
    assert shown == [7]


def test_names_find_the_planted_captions(photos: Gallery) -> None:
    texts = [text.replace(",", "").split() for text in CAPTIONS.values()]
    shown = [entry.content for entry in concepts(ReportTables(photos.inputs), limit=12) if entry.section == "concept"]
    assert sorted(content["cluster"] for content in shown) == list(range(len(CAPTIONS)))
    for content in shown:
        words = {word for term in content["terms"] for word in term.split()}
        assert len(words & set(texts[content["cluster"]])) >= 2


def facts(photos: Gallery) -> pa.Table:
    """A table `concepts` whose names and numbers are unlike what the card would find itself."""
    clusters = photos.tables["clusters"]
    rows = []
    for cluster, name in enumerate(CAPTIONS):
        mine = [r for r in clusters.to_pylist() if r["cluster"] == cluster]
        ids = [r["sample_id"] for r in sorted(mine, key=lambda r: -r["distance"])]
        row = {
            "cluster": cluster,
            "size": len(ids),
            "kept": 0,
            "intra": 0.25,
            "inter": 0.5,
            "name_caption": f"facts, {name}",
        }
        row |= {"name_label": "a <b>label</b>", "label_cosine": 0.3, "nearest": ids[:8], "farthest": ids[::-1][:8]}
        rows.append(row)
    return pa.Table.from_pylist(rows, CONCEPTS)


def test_the_table_of_concepts_is_believed_but_what_is_kept_is_counted(photos: Gallery) -> None:
    table = facts(photos)
    inputs = Inputs.of(alive_only=False, **photos.tables, concepts=table)
    entries = list(concepts(ReportTables(inputs), limit=3))
    plain = [e.content for e in concepts(ReportTables(photos.inputs), limit=3) if e.section == "concept"]
    shown = [e.content for e in entries if e.section == "concept"]
    for one, other in zip(shown, plain, strict=True):
        assert {key: one[key] for key in ("cluster", "size", "kept", "mean_distance")} == {
            key: other[key] for key in ("cluster", "size", "kept", "mean_distance")
        }
        assert one["terms"] == ["facts", list(CAPTIONS)[one["cluster"]]]
        assert (one["label"], one["label_cosine"], one["intra"], one["inter"]) == ("a <b>label</b>", 0.3, 0.25, 0.5)
        row = table.to_pylist()[one["cluster"]]
        pictures = [e for e in entries if e.section == "concept_image" and e.content["cluster"] == one["cluster"]]
        assert [e.sample_id for e in pictures if "at" not in e.content] == row["nearest"][:4]
        edge = [e.sample_id for e in pictures if e.content.get("at") == "edge"]
        assert edge == [i for i in row["farthest"] if i not in row["nearest"][:4]][:4]


def test_the_page_shows_label_and_edge(photos: Gallery, tmp_path: Path) -> None:
    inputs = Inputs.of(alive_only=False, **photos.tables, concepts=facts(photos))
    assert "concepts" in Report().inputs({name: inputs.schema(name) for name in inputs.tables()})
    (card,) = Report(concepts=3).run(inputs, LocalRun(tmp_path))
    edge = [json.loads(c) for c in card["content"].to_pylist() if json.loads(c).get("at") == "edge"]
    page = render(card, {})
    assert page.count('aria-label="farthest from the centre"') == 3
    assert len(edge) == 12
    assert page.count("a &lt;b&gt;label&lt;/b&gt;") == 3
    (bare,) = Report(concepts=3).run(photos.inputs, LocalRun(tmp_path))
    assert 'aria-label="farthest from the centre"' not in render(bare, {})
