"""DataComp's image-based filter: rows of clusters with targets."""

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from catalog.errors import RecipeError
from catalog.inputs import Inputs
from catalog.schema import CLUSTERS, DECISIONS, SAMPLE_ID, vector
from tasks.encoders.encoder import Encoder
from tasks.encoders.model import load
from tasks.filter import NearTargets
from tests.helpers import LocalRun
from tests.pictures import jpeg

DIM = 16


def unit(rows: np.ndarray) -> np.ndarray:
    return np.asarray(rows / np.linalg.norm(rows, axis=1, keepdims=True), np.float32)


def lists(rows: np.ndarray, type_: pa.DataType) -> pa.Array:
    return pa.array([None if np.isnan(r).all() else r.tolist() for r in rows], pa.list_(type_, rows.shape[1]))


def inputs_of(centroids: np.ndarray, clusters: list[int | None], **metadata: str) -> Inputs:
    schema = pa.schema([SAMPLE_ID, vector("clip", centroids.shape[1], "", **metadata)])
    side = {"cluster": pa.array(range(len(centroids)), pa.int32()), "centroid": lists(centroids, pa.float32())}
    rows = {"sample_id": pa.array(range(len(clusters)), pa.int64()), "cluster": pa.array(clusters, pa.int32())}
    return Inputs.of(
        clusters=pa.table(
            [*rows.values(), pa.nulls(len(clusters), pa.float32())],
            schema=CLUSTERS,
        ),
        centroids=pa.table(side),
        embeddings=schema.empty_table(),
    )


def decided(
    stage: NearTargets, inputs: Inputs, folder: Path, **how: int
) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    stage.inputs({name: inputs.schema(name) for name in inputs.tables()})
    run = LocalRun(folder, inputs=inputs)
    found = pa.concat_tables([DECISIONS.empty_table(), *stage.run(inputs, run, **how)])
    assert found.schema.equals(DECISIONS, check_metadata=True)
    return found.to_pylist(), run.notes


def targets(folder: Path, rows: np.ndarray, type_: pa.DataType | None = None) -> str:
    path = folder / "targets.parquet"
    pq.write_table(pa.table({"id": range(len(rows)), "clip": lists(rows, type_ or pa.float32())}), path)
    return str(path)


@pytest.mark.parametrize("seed", range(3))
def test_clusters_with_targets_are_kept(tmp_path: Path, seed: int) -> None:
    rng = np.random.default_rng(seed)
    centroids = unit(rng.normal(size=(40, DIM)))
    wanted = rng.choice(40, 11, replace=False)
    near = unit(centroids[rng.choice(wanted, 500)] + rng.normal(0, 0.02, (500, DIM)))
    clusters = rng.integers(0, 40, 2000).tolist()
    stage = NearTargets(targets=targets(tmp_path, near * rng.uniform(0.1, 9, (500, 1))))  # lengths do not matter
    rows, notes = decided(stage, inputs_of(centroids, clusters), tmp_path)
    nearest = np.bincount((near @ centroids.T).argmax(1), minlength=40)
    for row, cluster in zip(rows, clusters, strict=True):
        assert row["keep"] == (nearest[cluster] > 0)
        assert row["reason"] == (None if row["keep"] else "far_from_targets")
        assert row["evidence"] == f"cluster {cluster}: {nearest[cluster]} targets"
        assert dict(row["numbers"]) == {"cluster": cluster, "targets": nearest[cluster]}
    assert {r["keep"] for r in rows} == {True, False}
    assert notes == {"targets": 500, "unusable": 0, "clusters_near": int((nearest > 0).sum())}


def test_a_cluster_requires_a_minimum_of_targets(tmp_path: Path) -> None:
    centroids = np.eye(4, dtype=np.float32)
    stage = NearTargets(targets=targets(tmp_path, np.repeat(centroids[:3], [1, 2, 3], axis=0)), least=2)
    rows, _ = decided(stage, inputs_of(centroids, [0, 1, 2, 3]), tmp_path)
    assert [row["keep"] for row in rows] == [False, True, True, False]


def test_rows_without_a_cluster_and_targets_without_a_direction(tmp_path: Path) -> None:
    centroids = np.eye(4, dtype=np.float32)
    rows = np.array([[0, 1, 0, 0], [np.nan] * 4, [0, 0, 0, 0], [0, np.inf, 0, 0]], np.float32)
    stage = NearTargets(targets=targets(tmp_path, rows))
    found, notes = decided(stage, inputs_of(centroids, [None, 1, 0]), tmp_path)
    assert [row["keep"] for row in found] == [False, True, False]
    assert [row["reason"] for row in found] == ["no_embedding", None, "far_from_targets"]
    assert [row["evidence"] for row in found] == ["no cluster", "cluster 1: 1 targets", "cluster 0: 0 targets"]
    assert found[0]["numbers"] is None
    assert (notes["targets"], notes["unusable"]) == (1, 3)


@pytest.mark.parametrize("type_", [pa.float16(), pa.float64()])
def test_targets_of_any_float_and_in_many_batches(tmp_path: Path, type_: pa.DataType) -> None:
    rows = np.repeat(np.eye(4, dtype=np.float32), 5, axis=0)
    stage = NearTargets(targets=targets(tmp_path, rows[:17], type_))
    found, _ = decided(stage, inputs_of(np.eye(4, dtype=np.float32), [0, 3]), tmp_path, read_rows=3)
    assert [row["evidence"] for row in found] == ["cluster 0: 5 targets", "cluster 3: 2 targets"]


def test_no_rows_and_no_targets(tmp_path: Path) -> None:
    stage = NearTargets(targets=targets(tmp_path, np.zeros((0, 4), np.float32)))
    assert decided(stage, inputs_of(np.eye(4, dtype=np.float32), []), tmp_path)[0] == []
    rows, _ = decided(stage, inputs_of(np.eye(4, dtype=np.float32), [2]), tmp_path)
    assert [row["reason"] for row in rows] == ["far_from_targets"]


def test_target_images_go_through_the_encoder_of_the_column(tmp_path: Path, tiny_clip: tuple[Path, Path]) -> None:
    config, weights = tiny_clip
    encoder = Encoder(name="clip", model=str(config), pretrained=str(weights))
    bodies = [jpeg(64, 48, seed) for seed in range(6)]
    vectors, _ = load(encoder, "cpu", {}).unit_images(bodies)
    path = tmp_path / "targets.parquet"
    pq.write_table(pa.table({"image": pa.array([*bodies[:3], b"no picture", None], pa.binary())}), path)
    inputs = inputs_of(vectors, [0, 1, 2, 3, 4, 5], encoder=encoder.model_dump_json(exclude_defaults=True))
    rows, notes = decided(NearTargets(targets=str(path)), inputs, tmp_path)
    assert [row["keep"] for row in rows] == [True, True, True, False, False, False]
    assert (notes["targets"], notes["unusable"]) == (3, 2)


# ---- mistakes


@pytest.fixture
def available() -> dict[str, pa.Schema]:
    inputs = inputs_of(np.eye(DIM, dtype=np.float32), [0])
    return {name: inputs.schema(name) for name in inputs.tables()}


def test_missing_inputs_are_reported(tmp_path: Path, available: dict[str, pa.Schema]) -> None:
    good = targets(tmp_path, np.eye(DIM, dtype=np.float32))
    with pytest.raises(RecipeError, match="put a stage `use: cluster` before it"):
        NearTargets(targets=good).inputs({"embeddings": available["embeddings"]})
    with pytest.raises(RecipeError, match=r"no file '.*tarets\.parquet'; did you mean '.*targets\.parquet'\?"):
        NearTargets(targets=good.replace("targets", "tarets")).inputs(available)
    with pytest.raises(RecipeError, match="no embedding column 'clp'; did you mean 'clip'"):
        NearTargets(targets=good, encoder="clp").inputs(available)
    with pytest.raises(RecipeError, match="vectors or images: clip; did you mean 'clip'"):
        NearTargets(targets=good, column="clop").inputs(available)
    (tmp_path / "other.parquet").write_text("nothing of the kind")
    with pytest.raises(RecipeError, match="is not a Parquet file"):
        NearTargets(targets=str(tmp_path / "other.parquet")).inputs(available)


def test_vectors_of_another_width_are_refused(tmp_path: Path, available: dict[str, pa.Schema]) -> None:
    stage = NearTargets(targets=targets(tmp_path, np.eye(8, dtype=np.float32)))
    with pytest.raises(RecipeError, match="has 8 numbers a row, expected 16"):
        stage.inputs(available)
    path = tmp_path / "loose.parquet"
    pq.write_table(pa.table({"v": pa.array([[1.0] * 16, [1.0] * 7], pa.list_(pa.float32()))}), path)
    loose, inputs = NearTargets(targets=str(path)), inputs_of(np.eye(DIM, dtype=np.float32), [0])
    loose.inputs(available)
    with pytest.raises(RecipeError, match="a vector of 7 numbers, expected 16"):
        decided(loose, inputs, tmp_path)


def test_several_columns_need_a_name(tmp_path: Path, available: dict[str, pa.Schema]) -> None:
    path, rows = tmp_path / "two.parquet", lists(np.eye(DIM, dtype=np.float32), pa.float32())
    pq.write_table(pa.table({"a": rows, "b": rows}), path)
    with pytest.raises(RecipeError, match="a, b; specify one as `column`"):
        NearTargets(targets=str(path)).inputs(available)
    assert NearTargets(targets=str(path), column="b").inputs(available) == {"clusters": ("cluster",)}


def test_the_fingerprint_depends_on_content_and_not_on_path(tmp_path: Path) -> None:
    one = NearTargets(targets=targets(tmp_path, np.eye(DIM, dtype=np.float32)))
    moved = tmp_path / "moved.parquet"
    moved.write_bytes(Path(one.targets).read_bytes())
    assert NearTargets(targets=str(moved)).parameters() == one.parameters()
    before = one.parameters()
    targets(tmp_path, np.eye(DIM, dtype=np.float32)[:3])
    assert one.parameters() != before
