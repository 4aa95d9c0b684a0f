"""Which column of embeddings a stage reads: the one it names, else the first, else a clear error."""

import pyarrow as pa
import pytest

from catalog.errors import RecipeError
from catalog.schema import field, score, vector
from tasks.vectors.columns import CLUSTERED, clustered_column, vector_column, width


def test_vector_column() -> None:
    id_ = field("sample_id", pa.int64(), "")
    schema = pa.schema([id_, score("clip_score", "clip", 1, ""), vector("clip", 4, ""), vector("dino", 8, "")])
    assert vector_column({"embeddings": schema}, "") == "clip"
    assert vector_column({"embeddings": schema}, "dino") == "dino"
    assert width(schema, "dino") == 8
    with pytest.raises(RecipeError, match=r"no embedding column 'dinov2'; did you mean 'dino'\?"):
        vector_column({"embeddings": schema}, "dinov2")
    with pytest.raises(RecipeError, match="put a stage `use: embed` before"):
        vector_column({}, "")
    with pytest.raises(RecipeError, match="no vector column"):
        vector_column({"embeddings": pa.schema([id_])}, "")


def test_clustered_column_is_the_one_that_the_centroids_were_fitted_on() -> None:
    embeddings = pa.schema([vector("clip", 4, ""), vector("dino", 8, "")])
    fitted = pa.schema([pa.field("centroid", pa.list_(pa.float32(), 8), metadata={CLUSTERED: "dino"})])
    tables = {"embeddings": embeddings, "centroids": fitted}
    assert clustered_column(tables, "") == clustered_column(tables, "dino") == "dino"
    assert clustered_column({"embeddings": embeddings}, "") == "clip"
    with pytest.raises(RecipeError, match="encoder 'clip': the clusters are of the embedding column 'dino'"):
        clustered_column(tables, "clip")
