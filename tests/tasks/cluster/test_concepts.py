"""The concept table: every number against a plain count, names against planted ones, and wrong labels."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from pydantic import ValidationError

from catalog.errors import RecipeError, UserError
from catalog.inputs import Inputs
from catalog.schema import CLUSTERS, DECISIONS, SOURCE, vector
from tasks.cluster import Assign, Centroids, Concepts
from tasks.cluster.centroids import centroids_table
from tasks.cluster.concepts import CONCEPTS, label_vectors
from tests.helpers import LocalRun
from tests.tasks.cluster.worlds import unit

NAMES = ("red apple", "blue whale", "green lizard")


def world(seed: int = 0, rows: int = 200, dim: int = 8) -> dict[str, pa.Table]:
    """Three clusters with distinct captions, one cluster without rows; a third of the rows are rejected."""
    rng = np.random.default_rng(seed)
    cluster = rng.integers(0, 3, rows).astype(np.int32)
    distance = (rng.integers(0, 30, rows) / 50).astype(np.float32)  # with ties
    out = rng.random(rows) < 0.33
    absent = rng.random(rows) < 0.05
    captions = [f"a photo of a {NAMES[c]} no. {i}" if i % 9 else None for i, c in enumerate(cluster)]
    ids = np.arange(rows) * 3
    return {
        "clusters": pa.table([ids, pa.array(cluster, mask=absent), pa.array(distance, mask=absent)], schema=CLUSTERS),
        "source": pa.table([ids, pa.nulls(rows, pa.string()), captions, pa.nulls(rows, pa.string())], schema=SOURCE),
        "decisions": pa.Table.from_pylist(
            [
                {"sample_id": int(i), "stage": s, "keep": not (o and s == "b")}
                for i, o in zip(ids, out, strict=True)
                for s in "ab"
            ],
            DECISIONS,
        ),
        "centroids": centroids_table(unit(rng.normal(size=(4, dim))).astype(np.float32), np.ones(4, int)),
    }


def described(tables: dict[str, pa.Table], folder: Path, **fields: object) -> list[dict[str, Any]]:
    run = LocalRun(folder)
    (table,) = Concepts.model_validate(fields).run(Inputs.of(**tables), run)
    assert table.schema.equals(CONCEPTS)
    assert run.notes["clusters"] == table.num_rows
    rows: list[dict[str, Any]] = table.to_pylist()
    return rows


@pytest.mark.parametrize("seed", range(3))
def test_every_number_is_that_of_a_plain_count(seed: int, tmp_path: Path) -> None:
    tables = world(seed)
    found = described(tables, tmp_path, neighbours=2)
    rows = [row for row in tables["clusters"].to_pylist() if row["cluster"] is not None]
    dead = {row["sample_id"] for row in tables["decisions"].to_pylist() if not row["keep"]}
    centroids = np.array(tables["centroids"]["centroid"].to_pylist(), np.float64)
    for number, one in enumerate(found[:3]):
        mine = [row for row in rows if row["cluster"] == number]
        assert (one["cluster"], one["size"]) == (number, len(mine))
        assert one["kept"] == sum(row["sample_id"] not in dead for row in mine)
        assert one["kept_share"] == pytest.approx(one["kept"] / one["size"])
        assert one["intra"] == pytest.approx(np.mean([row["distance"] for row in mine]), abs=1e-6)
        others = sorted(1 - centroids[number] @ np.delete(centroids, number, 0).T)
        assert one["inter"] == pytest.approx(np.mean(others[:2]), abs=1e-6)
        by_distance = sorted(mine, key=lambda row: (row["distance"], row["sample_id"]))
        assert one["nearest"] == [row["sample_id"] for row in by_distance[:8]]
        by_distance = sorted(mine, key=lambda row: (-row["distance"], row["sample_id"]))
        assert one["farthest"] == [row["sample_id"] for row in by_distance[:8]]
        assert set(NAMES[number].split()) <= set(one["name_caption"].replace(",", "").split())
        assert (one["name_label"], one["label_cosine"]) == (None, None)
    empty = found[3]
    assert (empty["size"], empty["kept"], empty["nearest"], empty["farthest"]) == (0, 0, [], [])
    assert [empty[name] for name in ("kept_share", "intra", "name_caption")] == [None] * 3
    assert empty["inter"] is not None


def test_rows_in_another_order_give_the_same_table(tmp_path: Path) -> None:
    tables = world()
    shuffled = {name: table.take(list(reversed(range(table.num_rows)))) for name, table in tables.items()}
    # what DuckDB aggregates may come in any order; batches come in order always
    assert described(tables, tmp_path) == described(tables | {"source": shuffled["source"]}, tmp_path)


def test_without_captions_rows_neighbours_and_clusters(tmp_path: Path) -> None:
    tables = {name: table for name, table in world().items() if name != "source"}
    assert {row["name_caption"] for row in described(tables, tmp_path)} == {None}
    bare = tables | {"clusters": CLUSTERS.empty_table()}
    assert [row["size"] for row in described(bare, tmp_path)] == [0] * 4
    one = {"clusters": tables["clusters"].filter(pa.compute.equal(tables["clusters"]["cluster"], 0))}
    (alone,) = described(one | {"centroids": tables["centroids"].slice(0, 1)}, tmp_path)
    assert alone["inter"] is None
    nothing = Inputs.of(clusters=CLUSTERS.empty_table(), centroids=tables["centroids"].slice(0, 0))
    (table,) = Concepts().run(nothing, LocalRun(tmp_path))
    assert table.num_rows == 0


def with_embeddings(tables: dict[str, pa.Table], tiny_clip: tuple[Path, Path], dim: int = 32) -> dict[str, pa.Table]:
    made_by = json.dumps({"name": "clip", "model": str(tiny_clip[0]), "pretrained": str(tiny_clip[1])})
    schema = pa.schema([pa.field("sample_id", pa.int64()), vector("clip", dim, "", encoder=made_by)])
    return tables | {"embeddings": schema.empty_table()}


def text_vectors(labels: list[str], templates: tuple[str, ...], tiny_clip: tuple[Path, Path]) -> np.ndarray:
    from tasks.encoders.encoder import Encoder
    from tasks.encoders.model import load

    model = load(Encoder(name="clip", model=str(tiny_clip[0]), pretrained=str(tiny_clip[1])), "cpu", {})
    means = [np.mean([model.unit_texts([t.replace("{}", label)])[0] for t in templates], axis=0) for label in labels]
    np.testing.assert_allclose(label_vectors(labels, templates, model), unit(np.array(means)), atol=1e-5)
    return unit(np.array(means))


def test_a_label_is_the_nearest_of_the_text_towers(tiny_clip: tuple[Path, Path], tmp_path: Path) -> None:
    labels, templates = ["apple", "whale", "lizard", "bridge"], ("a photo of a {}.", "one {} in the {} house")
    texts = text_vectors(labels, templates, tiny_clip)
    planted = [2, 0, 3, 1]
    noisy = unit(texts[planted] + 0.02 * np.random.default_rng(0).normal(size=(4, 32)))
    tables = with_embeddings(world(), tiny_clip)
    tables["centroids"] = centroids_table(noisy.astype(np.float32), np.ones(4, int))
    found = described(tables, tmp_path, labels=labels, templates=templates)
    cosine = noisy @ texts.T
    assert [row["name_label"] for row in found] == [labels[i] for i in cosine.argmax(1)]
    assert [row["label_cosine"] for row in found] == pytest.approx(cosine.max(1), abs=1e-5)
    listed = tmp_path / "labels.txt"
    listed.write_text("\n".join(["apple", "", " whale ", "lizard", "bridge", ""]))
    assert described(tables, tmp_path, labels=str(listed), templates=templates) == found
    moved = tmp_path / "moved.txt"
    moved.write_text("apple\nwhale\nlizard\nbridge")
    stages = [Concepts(labels=x) for x in (str(listed), str(moved), tuple(labels))]
    assert stages[0].parameters() == stages[1].parameters() == stages[2].parameters()


def test_an_encoder_that_the_recipe_trained_is_read_from_the_models() -> None:
    made_by = json.dumps({"name": "clip", "trained": "small"})
    available = {"clusters": CLUSTERS, "embeddings": pa.schema([vector("clip", 8, "", encoder=made_by)])}
    assert Concepts(labels=("cat",)).sides(available) == ("centroids", "models")
    assert Concepts().sides(available) == ("centroids",)
    assert "embeddings" not in Concepts().inputs(available)


def test_labels_use_the_encoder_of_the_clusters() -> None:
    """With two encoders of equal dimension, the first would silently give meaningless labels."""
    columns = [vector(name, 8, "", encoder=json.dumps({"name": name, "trained": name})) for name in ("one", "two")]
    available = {"clusters": CLUSTERS, "embeddings": pa.schema(columns)}
    available["centroids"] = Centroids(encoder="two").output(available)
    assert Concepts(labels=("cat",)).inputs(available)["embeddings"] == ("two",)
    assert Assign().inputs(available) == {"embeddings": ("two",)}
    for stage in (Concepts(labels=("cat",), encoder="one"), Assign(encoder="one")):
        with pytest.raises(RecipeError, match="encoder 'one': the clusters are of the embedding column 'two'"):
            stage.inputs(available)


def test_invalid_labels(tiny_clip: tuple[Path, Path], tmp_path: Path) -> None:
    (tmp_path / "labels.txt").write_text("\n \n")
    message = r"cannot read '.*label.txt': it does not exist; did you mean '.*labels.txt'\?"
    with pytest.raises(RecipeError, match=message):
        Concepts(labels=str(tmp_path / "label.txt")).parameters()
    with pytest.raises(RecipeError, match="has no label"):
        Concepts(labels=str(tmp_path / "labels.txt")).parameters()
    with pytest.raises(ValidationError, match=r"the template 'a photo' lacks \{\}"):
        Concepts(labels=("cat",), templates=("a photo",))
    tables = with_embeddings(world(), tiny_clip)
    with pytest.raises(UserError, match="of encoder 'clip' have 32 numbers, the centroids 8: specify the clustered"):
        described(tables, tmp_path, labels=["cat"])
    with pytest.raises(RecipeError, match="has no encoder: run `embed` again"):
        Concepts(labels=("cat",)).inputs({"clusters": CLUSTERS, "embeddings": pa.schema([vector("clip", 8, "")])})
    with pytest.raises(RecipeError, match="put a stage `use: cluster` before"):
        Concepts().inputs({})
