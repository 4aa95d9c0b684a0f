"""The stage as a whole: kinds one after the other, recipes, and inputs that have nothing."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from pydantic import ValidationError

from catalog.errors import RecipeError
from catalog.inputs import Inputs
from catalog.schema import CLUSTERS, DECISIONS, IMAGES, vector
from tasks.deduplicate import Deduplicate
from tests.helpers import LocalRun

EMBEDDINGS = pa.schema([pa.field("sample_id", pa.int64()), vector("clip", 2, ""), pa.field("clip_score", pa.float32())])


def world() -> Inputs:
    """Rows 0 and 1 are one file; 2 means the same as 0 and scores higher; 3 is alone; 4 failed."""
    images = pa.table({"sample_id": [0, 1, 2, 3, 4], "status": ["success"] * 4 + ["failed"],
                       "sha256": ["a" * 64, "a" * 64, "b" * 64, "c" * 64, None]})  # fmt: skip
    vectors = pa.array([[1, 0], [1, 0], [1, 0.01], [0, 1], None], pa.list_(pa.float16(), 2))
    scores = pa.array([0.1, 0.2, 0.3, 0.1, None], pa.float32())
    return Inputs.of(images=images, embeddings=pa.table([[0, 1, 2, 3, 4], vectors, scores], schema=EMBEDDINGS))


@pytest.mark.parametrize("rule", ["order", "greedy", "components"])
def test_kinds_one_after_the_other(tmp_path: Path, rule: str) -> None:
    stage = Deduplicate.model_validate({"keep": "clip_score", "semantic": {"rule": rule}})
    run = LocalRun(tmp_path)
    table = pa.concat_tables(stage.run(world(), run))
    assert table.schema == DECISIONS
    assert table["sample_id"].to_pylist() == [0, 1, 2, 3]
    assert table["reason"].to_pylist() == ["duplicate_exact", "duplicate_semantic", None, None]
    # row 1 stood for row 0 until row 2 stood for row 1: a representative is a row that stays
    assert table["representative"].to_pylist() == [2, 2, None, None]
    assert table["similarity"][0].as_py() == table["similarity"][1].as_py() == pytest.approx(0.99995, abs=1e-4)
    assert table["evidence"].to_pylist()[2:] == ["stands for 2 copies", "no copy found"]
    assert {name: run.notes[name] for name in ("rows", "kept", "duplicate_exact", "duplicate_semantic")} == {
        "rows": 4, "kept": 2, "duplicate_exact": 1, "duplicate_semantic": 1,
    }  # fmt: skip


def test_no_rows(tmp_path: Path) -> None:
    inputs = Inputs.of(images=IMAGES.empty_table(), embeddings=EMBEDDINGS.empty_table())
    stage = Deduplicate.model_validate({"semantic": {}, "perceptual": {}})
    assert sum(table.num_rows for table in stage.run(inputs, LocalRun(tmp_path))) == 0


def test_what_it_reads() -> None:
    available = {"images": IMAGES, "embeddings": EMBEDDINGS, "clusters": CLUSTERS}
    assert Deduplicate().inputs(available) == {"images": ("sha256",)}
    stage = Deduplicate.model_validate({"keep": "largest", "perceptual": {}, "semantic": {"clusters": 9}})
    assert stage.inputs(available) == {"images": ("sha256", "phash", "width", "height"), "embeddings": ("clip",)}
    stage = Deduplicate.model_validate({"semantic": {"order": "clip_score"}})
    assert stage.inputs(available)["embeddings"] == ("clip", "clip_score")
    assert stage.inputs(available)["clusters"] == ("cluster", "distance")


@pytest.mark.parametrize(
    ("recipe", "message"),
    [
        ({"exact": False}, "nothing to do"),
        ({"keep": "widht"}, "did you mean 'width'?"),
        ({"semantic": {"encoder": "clop"}}, "did you mean 'clip'?"),
    ],
)
def test_wrong_recipes(recipe: dict[str, object], message: str) -> None:
    with pytest.raises(RecipeError, match=message.replace("?", r"\?")):
        Deduplicate.model_validate(recipe).inputs({"images": IMAGES, "embeddings": EMBEDDINGS})


@pytest.mark.parametrize("semantic", [{"epsilon": 0}, {"rule": "best"}, {"clusters": 0}, {"epsilonn": 0.1}])
def test_refused_fields(semantic: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        Deduplicate.model_validate({"semantic": semantic})


def test_same_bytes_twice(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    vectors = pa.array(list(rng.normal(size=(500, 2)).astype(np.float16)), pa.list_(pa.float16(), 2))
    inputs = Inputs.of(embeddings=pa.table([np.arange(500), vectors, np.ones(500, np.float32)], schema=EMBEDDINGS))
    stage = Deduplicate.model_validate(
        {"exact": False, "semantic": {"clusters": 7, "order": "random", "epsilon": 1e-4}}
    )
    one, two, other = (
        pa.concat_tables(stage.run(inputs, LocalRun(tmp_path / str(i), seed=seed))) for i, seed in enumerate((1, 1, 2))
    )
    assert one.equals(two)
    assert not one.equals(other)
