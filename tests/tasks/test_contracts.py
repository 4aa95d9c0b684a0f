"""What holds for every stage that a recipe may name, whoever wrote it. A new member gets these tests for nothing."""

import inspect
import json
import pickle
from typing import Any

import pyarrow as pa
import pytest
from pydantic import ValidationError

from catalog.schema import CLUSTERS, DECISIONS, IMAGES, SAMPLE_ID, SOURCE, role, score, vector
from flows.recipe import stage_models
from tasks.sources import Source
from tasks.stage import MapStage, Stage, TableStage

EMBEDDINGS = pa.schema([SAMPLE_ID, vector("clip", 8, ""), score("clip_score", "clip", 1, "")])
CENTROIDS = pa.schema([("cluster", pa.int32()), ("centroid", pa.list_(pa.float32(), 8)), ("size", pa.int64())])
AVAILABLE = {
    "source": SOURCE,
    "images": IMAGES,
    "embeddings": EMBEDDINGS,
    "centroids": CENTROIDS,
    "clusters": CLUSTERS,
    "decisions": DECISIONS,
}
MINIMAL: dict[str, dict[str, Any]] = {
    "embed": {"encoders": [{"name": "clip", "model": "ViT-B-32", "pretrained": "random"}]},
    "filter": {"where": "width >= 2"},
    "prune": {"keep": 0.5},
}
"""The fields that a stage cannot do without."""


def minimal(model: type[Stage]) -> Stage:
    """Return a stage with as little said as possible."""
    fields = {"path": "somewhere"} if issubclass(model, Source) else {}
    return model.model_validate(fields | MINIMAL.get(str(model.model_fields["use"].default), {}))


@pytest.fixture(params=stage_models(), ids=lambda model: model.__name__)
def model(request: pytest.FixtureRequest) -> type[Stage]:
    chosen: type[Stage] = request.param
    return chosen


def test_it_is_one_of_the_two_shapes_and_says_what_it_is(model: type[Stage]) -> None:
    stages = minimal(model).expand()
    assert all(isinstance(stage, MapStage | TableStage) for stage in stages)
    assert inspect.getdoc(model)
    assert all(stage.version >= 1 for stage in stages)


def test_it_is_frozen_picklable_and_refuses_what_it_does_not_know(model: type[Stage]) -> None:
    stage = minimal(model)
    assert pickle.loads(pickle.dumps(stage)) == stage
    with pytest.raises(ValidationError, match="frozen"):
        stage.use = "other"
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
        about_samples = stage.table in {"images", "embeddings", "clusters", "decisions"}
        assert (output.names[0] == "sample_id") == about_samples
        if stage.table == "decisions":
            assert output.names == DECISIONS.names
        assert {role(f) for f in output} <= {"", "image", "sidecar", "vector", "score"}
