import json
from collections import Counter
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from catalog.errors import RecipeError
from catalog.inputs import Inputs
from catalog.schema import CLUSTERS, DECISIONS, IMAGES, MODELS, SOURCE
from tasks.report import Report
from tasks.report._page import render
from tasks.report.report import CARD
from tests.helpers import LocalRun
from tests.tasks.report.gallery import Gallery


def card_of(inputs: Inputs, folder: Path, seed: int = 0, **options: object) -> pa.Table:
    (table,) = Report(**options).run(inputs, LocalRun(folder, seed))
    return table


def test_the_card_has_its_schema_and_every_section(card: pa.Table, sections: dict[str, Any]) -> None:
    assert card.schema.equals(CARD, check_metadata=True)
    assert set(sections) == {
        *("summary", "funnel", "before", "after", "rejected", "concept", "concept_image"),
        *("balance", "coverage", "histogram", "pair", "model"),
    }
    for name, rows in Counter(card["section"].to_pylist()).items():
        positions = [r["position"] for r in card.to_pylist() if r["section"] == name]
        assert positions == list(range(rows))


def test_every_sample_shown_has_its_picture(card: pa.Table) -> None:
    for row in card.to_pylist():
        pictured = row["section"] in ("before", "after", "rejected", "concept_image", "pair")
        assert (row["image"] is not None) == pictured, row["section"]


def test_the_same_rows_give_the_same_bytes_in_any_order(photos: Gallery, card: pa.Table, tmp_path: Path) -> None:
    shuffled = {name: table.take(list(reversed(range(table.num_rows)))) for name, table in photos.tables.items()}
    again = card_of(Inputs.of(alive_only=False, **shuffled), tmp_path, description="Twelve photographs, cut up.")
    files = [tmp_path / "card.parquet", tmp_path / "again.parquet"]
    for path, table in zip(files, (card, again), strict=True):
        pq.write_table(table, path)
    assert files[0].read_bytes() == files[1].read_bytes()


@pytest.mark.parametrize(
    "there", [(), ("images",), ("images", "embeddings"), ("images", "decisions"), ("clusters", "decisions")]
)
def test_it_works_after_any_stages(there: tuple[str, ...], photos: Gallery, tmp_path: Path) -> None:
    tables = {name: photos.tables[name] for name in ("source", *there)}
    schemas = {name: table.schema for name, table in tables.items()}
    assert set(Report().inputs(schemas)) <= set(tables)
    card = card_of(Inputs.of(alive_only=False, **tables), tmp_path, samples=4)
    summary = json.loads(card["content"][0].as_py())
    assert summary["rows"] == 120
    assert (summary["kept"] < 120) == ("images" in there or "decisions" in there)
    assert ("duplicate_" in render(card, {})) == ("decisions" in there)


def test_an_empty_dataset_has_a_card(tmp_path: Path) -> None:
    schemas = {"source": SOURCE, "images": IMAGES, "decisions": DECISIONS, "clusters": CLUSTERS, "models": MODELS}
    inputs = Inputs.of(alive_only=False, **{name: schema.empty_table() for name, schema in schemas.items()})
    card = card_of(inputs, tmp_path)
    summary, *steps = [json.loads(c) for c in card["content"].to_pylist()]
    assert (summary["rows"], summary["kept"]) == (0, 0)
    assert [(step["stage"], step["seen"]) for step in steps] == [("source", 0), ("download", 0)]
    assert "Untitled dataset" in render(card, {})


def test_images_that_are_gone_leave_a_card_without_pictures(photos: Gallery, tmp_path: Path) -> None:
    images = photos.tables["images"]
    nothing = images.set_column(
        images.schema.get_field_index("image"), "image", pa.nulls(len(images), pa.large_binary())
    )
    card = card_of(Inputs.of(alive_only=False, **photos.tables | {"images": nothing}), tmp_path)
    assert card["image"].null_count == len(card)
    assert "no picture" in render(card, {})


def test_it_reads_scores_by_role_and_no_weights_or_vectors(photos: Gallery) -> None:
    columns = Report().inputs({name: table.schema for name, table in photos.tables.items()})
    assert columns["embeddings"] == ("clip_score",)
    assert "weights" not in columns["models"]


def test_a_recipe_with_nothing_to_show_is_refused() -> None:
    with pytest.raises(RecipeError, match="no earlier stage"):
        Report().inputs({})
