"""Zero-shot tags, from the recipe's texts to columns, against plain softmax over open_clip's text vectors."""

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from pydantic import ValidationError

from catalog.errors import RecipeError
from catalog.inputs import Inputs
from catalog.schema import SAMPLE_ID, role, vector
from tasks.encoders.encoder import Encoder
from tasks.encoders.model import load
from tasks.score import Prompts, Score, ScoreVectors
from tasks.score.zero_shot import ZeroShot
from tests.helpers import LocalRun
from tests.tasks.score.embeddings import rows, run, unit, usable

LABELS = ["a cat", "a dog", "猫", "a red {car}"]
TEMPLATES = ["a photo of {}.", "{}"]


@pytest.fixture
def world(tiny_clip: tuple[Path, Path]) -> tuple[pa.Table, np.ndarray, np.ndarray]:
    """Return (embeddings, their matrix, the texts' vectors (templates, labels, d))."""
    config, weights = map(str, tiny_clip)
    encoder = Encoder(name="clip", model=config, pretrained=weights, dtype="float32")
    table, matrices = rows(200, clip=32)
    schema = pa.schema([SAMPLE_ID, vector("clip", 32, "", encoder=encoder.model_dump_json(exclude_defaults=True))])
    model = load(encoder, "cpu", {})
    texts = np.stack([model.unit_texts([t.replace("{}", label) for label in LABELS]) for t in TEMPLATES])
    return table.cast(schema), matrices["clip"], texts


def score(table: pa.Table, folder: Path, **fields: Any) -> pa.Table:
    scorer = {"use": "zero_shot", "name": "tag", "labels": LABELS, "templates": TEMPLATES} | fields
    prompts, vectors = Score.model_validate({"scorers": [scorer]}).expand()
    assert isinstance(prompts, Prompts)
    assert isinstance(vectors, ScoreVectors)
    assert vectors.sides({}) == ("prompts",)
    side = pa.concat_tables(prompts.run(Inputs.of(embeddings=table), LocalRun(folder)))
    return run(vectors, table, prompts=side)


def test_labels_and_probabilities_are_the_plain_ensembles(
    world: tuple[pa.Table, np.ndarray, np.ndarray], tmp_path: Path
) -> None:
    import torch

    table, matrix, texts = world
    found = score(table, tmp_path, each=True, logit_scale=20)
    good = usable(len(table))
    logits = 20 * np.einsum("nd,pcd->npc", unit(matrix)[good], texts).mean(1)
    probabilities = torch.from_numpy(logits).softmax(1).numpy()
    names = ["tag_a_cat", "tag_a_dog", "tag_2", "tag_a_red_car"]
    assert found.schema.names == ["sample_id", "tag", "tag_probability", *names]
    assert [role(f) for f in found.schema] == ["", "", *["score"] * 5]
    for name in found.schema.names[1:]:
        assert found[name].is_valid().to_numpy().tolist() == good.tolist()
    kept = found.filter(pa.array(good))
    assert kept["tag"].to_pylist() == [LABELS[i] for i in probabilities.argmax(1)]
    assert len(set(kept["tag"].to_pylist())) > 1
    np.testing.assert_allclose(kept["tag_probability"].to_numpy(), probabilities.max(1), atol=1e-5)
    for number, name in enumerate(names):
        np.testing.assert_allclose(kept[name].to_numpy(), probabilities[:, number], atol=1e-5)


def test_zpe_weights_the_templates(world: tuple[pa.Table, np.ndarray, np.ndarray], tmp_path: Path) -> None:
    table, *_ = world
    plain, weighted = (score(table, tmp_path / e, ensemble=e) for e in ("mean", "zpe"))
    assert plain["tag_probability"].null_count == weighted["tag_probability"].null_count == 4
    assert plain["tag_probability"] != weighted["tag_probability"]


def test_texts_from_files_are_the_same_and_workers_need_no_file(
    world: tuple[pa.Table, np.ndarray, np.ndarray], tmp_path: Path
) -> None:
    (tmp_path / "labels.txt").write_text("\n".join(LABELS) + "\n\n", encoding="utf-8")
    (tmp_path / "templates.txt").write_text("\n".join(TEMPLATES), encoding="utf-8")
    files = {"labels": str(tmp_path / "labels.txt"), "templates": str(tmp_path / "templates.txt")}
    table, *_ = world
    assert score(table, tmp_path, **files).equals(score(table, tmp_path))
    inline = ZeroShot(labels=tuple(LABELS), templates=tuple(TEMPLATES))
    from_files = ZeroShot(**files)
    assert from_files.parameters() == inline.parameters()
    assert from_files.resolved() == inline
    (tmp_path / "labels.txt").write_text("a\nb\n", encoding="utf-8")
    assert ZeroShot(**files).parameters() != inline.parameters()


def test_texts_for_violence_are_the_second_of_two(
    world: tuple[pa.Table, np.ndarray, np.ndarray], tmp_path: Path
) -> None:
    table, matrix, texts = world
    pair = {"use": "violence", "texts": LABELS[:2], "logit_scale": 5}
    prompts, vectors = Score.model_validate({"scorers": [pair]}).expand()
    assert isinstance(prompts, Prompts)
    assert isinstance(vectors, ScoreVectors)
    side = pa.concat_tables(prompts.run(Inputs.of(embeddings=table), LocalRun(tmp_path)))
    found = run(vectors, table, prompts=side)["violence"]
    good = usable(len(table))
    products = 5 * unit(matrix)[good] @ texts[1, :2].T
    np.testing.assert_allclose(found.to_numpy()[good], 1 / (1 + np.exp(products[:, 0] - products[:, 1])), atol=1e-5)


def test_mistakes_of_a_recipe(tmp_path: Path) -> None:
    def refused(message: str, **fields: Any) -> None:
        scorer = {"use": "zero_shot", "name": "tag", "labels": ["x", "y"]} | fields
        with pytest.raises((ValidationError, RecipeError), match=message):
            Score.model_validate({"scorers": [scorer]}).expand()

    refused("scorer 'tag': cannot read .*none.txt', expected a text file", labels=str(tmp_path / "none.txt"))
    refused("two columns would be named 'tag_x'", labels=["x", "X!"], each=True)
    refused("two columns would be named 'tag_probability'", labels=["probability", "y"], each=True)
    refused("at least 2 items", labels=["x"])
    refused("the template 'of' has no", templates=["of"])
