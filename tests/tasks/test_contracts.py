"""What holds for every stage that a recipe may name, and so for every new one without a change here."""

import json
import pickle
from collections.abc import Mapping
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pydantic import ValidationError

from catalog.schema import CLUSTERS, DECISIONS, IMAGES, SAMPLE_ID, SOURCE, role, score, vector
from flows.recipe.recipe import stage_models
from tasks.sources import Source
from tasks.stage import MapStage, Stage, TableStage
from tests.tasks.members import name_of

ENCODER = '{"name": "clip", "model": "ViT-B-32", "pretrained": "random"}'
EMBEDDINGS = pa.schema([SAMPLE_ID, vector("clip", 8, "", encoder=ENCODER), score("clip_score", "clip", 1, "")])
CENTROIDS = pa.schema([("cluster", pa.int32()), ("centroid", pa.list_(pa.float32(), 8)), ("size", pa.int64())])
AVAILABLE = {
    "source": SOURCE,
    "images": IMAGES,
    "embeddings": EMBEDDINGS,
    "centroids": CENTROIDS,
    "clusters": CLUSTERS,
    "decisions": DECISIONS,
}
WATERMARK = {"use": "watermark", "weights": "https://example.org/watermark.pt", "sha256": "0" * 64}
SELECTORS = [{"method": "score", "keep": 0.5}, {"method": "random", "keep": 0.5}]
MINIMAL: dict[str, dict[str, Any]] = {
    "embed": {"encoders": [{"name": "clip", "model": "ViT-B-32", "pretrained": "random"}]},
    "filter": {"where": "width >= 2"},
    "hierarchy": {"levels": [4, 2]},
    "prompts": {"sets": [{"name": "animal", "labels": ["cat", "dog"], "templates": ["a photo of a {}"]}]},
    "prune": {"keep": 0.5},
    **{f"prune/{method}": {"of": SELECTORS} for method in ("union", "intersection", "then")},
    "score": {"scorers": [{"use": "violence", "texts": ["a park", "a fight"]}, WATERMARK]},
    "score_images": {"scorers": [WATERMARK]},
    "score_vectors": {"scorers": [{"use": "violence", "texts": ["a park", "a fight"]}]},
}
"""The fields that a stage cannot do without, by its use, or by use/method where the method has other ones."""
ABOUT_SAMPLES = {"images", "embeddings", "clusters", "decisions", "scores", "image_scores", "languages", "image_issues"}


def minimal(model: type[Stage]) -> Stage:
    """Return a stage with only the fields that it requires."""
    fields = {"path": "somewhere"} if issubclass(model, Source) else {}
    return model.model_validate(fields | fields_of(name_of(model), MINIMAL))


def fields_of(name: str, table: Mapping[str, dict[str, Any]]) -> dict[str, Any]:
    """Return the fields of a stage by its name; those of its use where its method has none of its own."""
    return table.get(name, table.get(name.partition("/")[0], {}))


@pytest.fixture(scope="module", autouse=True)
def targets(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Give stages the file that they cannot do without."""
    path = tmp_path_factory.mktemp("targets") / "targets.parquet"
    pq.write_table(pa.table({"clip": pa.array([[1.0] * 8], pa.list_(pa.float32(), 8))}), path)
    MINIMAL["near_targets"] = {"targets": str(path)}
    MINIMAL["decontaminate"] = {"sets": [{"name": "exam", "path": str(path), "vector": "clip"}], "epsilon": 0.1}


@pytest.fixture(params=stage_models(), ids=lambda model: model.__name__)
def model(request: pytest.FixtureRequest) -> type[Stage]:
    chosen: type[Stage] = request.param
    return chosen


def test_it_is_one_of_the_two_shapes_and_has_a_docstring(model: type[Stage]) -> None:
    stages = minimal(model).expand()
    assert all(isinstance(stage, MapStage | TableStage) for stage in stages)
    assert vars(model).get("__doc__"), "its own docstring, not that of a base"
    assert all(stage.version >= 1 for stage in stages)


def test_it_is_frozen_picklable_and_refuses_what_it_does_not_know(model: type[Stage]) -> None:
    stage = minimal(model)
    assert pickle.loads(pickle.dumps(stage)) == stage
    with pytest.raises(ValidationError, match="frozen"):
        stage.use = "other"  # type: ignore[misc]
    with pytest.raises(ValidationError, match="Extra inputs"):
        model.model_validate({**stage.model_dump(), "no_such_field": 1})


def test_resources_change_no_fingerprint(model: type[Stage]) -> None:
    for stage in minimal(model).expand():
        hungry = stage.model_copy(update={"resources": stage.resources.model_copy(update={"cpus": 7})})
        assert stage.parameters() == hungry.parameters()
        json.dumps(stage.parameters())


def test_its_columns_are_there_and_its_table_begins_with_the_key(model: type[Stage]) -> None:
    if issubclass(model, Source):
        pytest.skip("a source reads files, not tables: tests/tasks/sources")
    for stage in minimal(model).expand():
        for table, columns in stage.inputs(AVAILABLE).items():
            known = {*AVAILABLE[table].names, "image"}
            assert set(columns) <= known, (table, columns)
        output = stage.output(AVAILABLE)
        assert isinstance(output, pa.Schema)
        about_samples = stage.table in ABOUT_SAMPLES
        assert (output.names[0] == "sample_id") == about_samples
        if stage.table == "decisions":
            assert output.names == DECISIONS.names
        assert {role(f) for f in output} <= {"", "annotation", "image", "sidecar", "vector", "score"}
