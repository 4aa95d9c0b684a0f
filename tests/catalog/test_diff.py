"""Differences between versions, against what was planted."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from catalog.database import sql
from catalog.dataset import Catalog, Dataset
from catalog.diff import KEPT, NOT_JUDGED, Diff, Example, diff
from catalog.errors import NotFoundError, UserError
from catalog.parts import PartFile, PartWriter
from catalog.schema import DECISIONS, IMAGES, SAMPLE_ID, SOURCE
from catalog.version import TableState, VersionFacts

WritePart = Callable[..., PartFile]
Decisions = dict[str, dict[int, str | None]]
"""Stage -> sample_id -> reason, None where kept."""


@pytest.fixture
def publish(write_part: WritePart, facts: VersionFacts) -> Callable[..., None]:
    part = iter(range(1, 1000))

    def publish(dataset: Dataset, urls: dict[int, str], decisions: Decisions) -> None:
        rows: list[dict[str, Any]] = [
            {"sample_id": i, "stage": stage, "keep": reason is None, "reason": reason}
            for stage, judged in decisions.items()
            for i, reason in judged.items()
        ]
        number = next(part)
        source = [{"sample_id": i, "url": url} for i, url in urls.items()]
        images = [{"sample_id": i, "status": "success"} for i in urls]
        out = {row["sample_id"] for row in rows if not row["keep"]}
        samples = [row for row in source if row["sample_id"] not in out]
        tables = {
            "source": TableState(SOURCE, [write_part(dataset, "source", number, source)]),
            "images": TableState(IMAGES, [write_part(dataset, "images", number, images)]),
            "decisions": TableState(DECISIONS, [write_part(dataset, "decisions", number, rows)] if rows else []),
            "samples": TableState(SOURCE, [write_part(dataset, "samples", number, samples, SOURCE)]),
        }
        dataset.publish(tables, replace(facts, recipe_sha256=str(number)))

    return publish


def changes(found: Diff) -> dict[tuple[str, str, str], tuple[int, list[int]]]:
    return {(c.stage, c.before, c.after): (c.rows, [e.sample_id for e in c.examples]) for c in found.decisions}


def test_planted_changes_are_found(dataset: Dataset, uri: str, publish: Callable[..., None]) -> None:
    urls = {i: f"http://x/{i}" for i in range(10)}
    filtered: dict[int, str | None] = {i: "small" if i < 4 else None for i in range(10)}
    publish(dataset, urls, {"filter": filtered})
    changed = filtered | {0: None, 1: None, 2: "blurry", 9: "small"}
    more = {i: f"http://x/{i}" for i in range(1, 12)}  # 0 is gone, 10 and 11 are new
    publish(dataset, more, {"filter": changed, "prune": {1: None, 5: "near", 6: "near", 7: "near", 10: "near"}})
    found = diff(Catalog(uri), "birds@1", "birds", examples=2)
    assert (found.a.number, found.b.number, found.key) == (1, 2, "sample_id")
    source, samples = found.rows
    assert (source.table, source.added, source.removed) == ("source", 2, 1)
    assert source.added_examples == [Example(10, "http://x/10"), Example(11, "http://x/11")]
    assert source.removed_examples == [Example(0, "http://x/0")]
    # samples: 4..9 before; after, 1, 4, 8 and 11 (not judged: kept) remain.
    assert (samples.table, samples.added, samples.removed) == ("samples", 2, 4)
    assert [e.sample_id for e in samples.added_examples] == [1, 11]
    assert changes(found) == {
        ("prune", NOT_JUDGED, "near"): (3, [5, 6]),  # 10 is a new row, not a changed decision
        ("filter", "small", KEPT): (1, [1]),  # 0 is no longer there
        ("filter", "small", "blurry"): (1, [2]),
        ("filter", KEPT, "small"): (1, [9]),
    }


def test_backwards_it_is_the_mirror(dataset: Dataset, uri: str, publish: Callable[..., None]) -> None:
    publish(dataset, {1: "a", 2: "b"}, {"f": {1: "x", 2: None}})
    publish(dataset, {2: "b", 3: "c", 4: "d"}, {"f": {2: "y"}})
    forward, back = diff(Catalog(uri), "birds@1", "birds@2"), diff(Catalog(uri), "birds@2", "birds@1")
    for one, other in zip(forward.rows, back.rows, strict=True):
        assert (one.added, one.removed, one.added_examples) == (other.removed, other.added, other.removed_examples)
    assert {(s, b, a): n for (s, a, b), n in changes(forward).items()} == changes(back)


def test_a_version_does_not_differ_from_itself(dataset: Dataset, uri: str, publish: Callable[..., None]) -> None:
    publish(dataset, {1: "a", 2: "b"}, {"f": {1: "x", 2: None}})
    found = diff(Catalog(uri), "birds@1", "birds@1")
    assert [(r.added, r.removed) for r in found.rows] == [(0, 0), (0, 0)]
    assert found.decisions == []


def test_datasets_are_compared_by_url(uri: str, publish: Callable[..., None]) -> None:
    catalog = Catalog(uri, create=True)
    publish(catalog.dataset("birds"), {1: "a", 2: "b", 3: "c", 4: "c"}, {"f": {1: "x", 2: None, 3: "x", 4: None}})
    publish(catalog.dataset("cats"), {71: "b", 72: "c", 73: "d"}, {"f": {71: "x", 72: None}})
    found = diff(catalog, "birds", "cats")
    assert found.key == "url"
    source = found.rows[0]
    assert (source.added, source.removed) == (1, 1)
    assert source.added_examples == [Example(73, "d")]
    assert changes(found) == {("f", KEPT, "x"): (1, [71])}  # c is kept on both sides: once is enough


def test_no_decisions_on_one_side(dataset: Dataset, uri: str, publish: Callable[..., None]) -> None:
    publish(dataset, {1: "a", 2: "b"}, {})
    publish(dataset, {1: "a", 2: "b"}, {"f": {1: "x", 2: None}})
    assert changes(diff(Catalog(uri), "birds@1", "birds@2")) == {("f", NOT_JUDGED, "x"): (1, [1])}


def test_what_cannot_be_compared(local_dataset: Dataset, facts: VersionFacts) -> None:
    catalog = Catalog(str(local_dataset.storage.local("..")))
    local_dataset.publish({"decisions": TableState(DECISIONS, [])}, facts)
    with pytest.raises(UserError, match="birds@1 has no table 'source'"):
        diff(catalog, "birds@1", "birds@1")
    with pytest.raises(NotFoundError, match="no version 2"):
        diff(catalog, "birds@1", "birds@2")


@pytest.mark.parametrize("name", ["memory", "table", "default", "a", "source"])
def test_datasets_of_any_name_are_compared_and_queried(tmp_path: Path, name: str) -> None:
    """Words of SQL, of DuckDB's and of ours; none of them has decisions."""
    schema = pa.schema([SAMPLE_ID, ("url", pa.string())])
    catalog = Catalog(tmp_path)
    for dataset in (catalog.dataset(name), catalog.dataset("other")):
        with (writer := PartWriter(dataset.storage, "source", "0" * 32, schema, 0)):
            rows = pa.table([pa.array([1, 2]), pa.array(["u", dataset.name])], schema=schema)
            writer.write(rows)
        dataset.publish({"source": TableState(schema, [writer.part()])}, VersionFacts("x", dataset.name, "z"))
    assert sql(catalog, f'select url from "{name}".source order by 1 desc limit 1').to_pylist() == [{"url": "u"}]
    found = diff(catalog, name, "other")
    assert [(rows.table, rows.added, rows.removed) for rows in found.rows] == [("source", 1, 1)]
