"""The vectors of labels: by the encoder of the embedding, with equal or ZPE's weights, and bad references."""

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from pydantic import ValidationError

from catalog.errors import RecipeError, UserError
from catalog.inputs import Inputs
from catalog.schema import SAMPLE_ID, vector
from tasks.encoders.encoder import Encoder
from tasks.encoders.model import load
from tasks.score import Prompts
from tasks.score._zpe import template_weights
from tasks.score.prompts import SCHEMA, PromptSet, Reference, vectors_of
from tests.helpers import LocalRun
from tests.tasks.score.embeddings import unit

LABELS, TEMPLATES = ("cat", "dog {x}", "猫"), ("a photo of a {}.", "{}", "a bad {} in the rain")


@pytest.fixture
def encoder(tiny_clip: tuple[Path, Path]) -> Encoder:
    config, weights = map(str, tiny_clip)
    return Encoder(name="clip", model=config, pretrained=weights, dtype="float32")


def embeddings(encoder: Encoder, n: int = 500, seed: int = 0) -> pa.Table:
    rng = np.random.default_rng(seed)
    matrix = unit(rng.normal(size=(n, 32)) + 0.5).astype(np.float16)
    column = pa.FixedSizeListArray.from_arrays(pa.array(matrix.ravel()), 32)
    made_by = encoder.model_dump_json(exclude_defaults=True)
    schema = pa.schema([SAMPLE_ID, vector("clip", 32, "", encoder=made_by)])
    return pa.table([pa.array(np.arange(n), pa.int64()), column], schema=schema)


def make(folder: Path, table: pa.Table, seed: int = 0, **fields: Any) -> tuple[dict[str, np.ndarray], LocalRun]:
    set_ = PromptSet(**({"name": "animal", "labels": LABELS, "templates": TEMPLATES} | fields))
    stage, run = Prompts(sets=(set_,)), LocalRun(folder, seed)
    found = pa.concat_tables(stage.run(Inputs.of(embeddings=table), run))
    assert found.schema == SCHEMA == stage.output({})
    return dict(vectors_of(found, "animal")), run


def text_vectors(encoder: Encoder) -> np.ndarray:
    """Return float32 (templates, labels, d) of the plain loop."""
    model = load(encoder, "cpu", {})
    return np.stack([model.unit_texts([t.replace("{}", label) for label in LABELS]) for t in TEMPLATES])


def test_a_plain_mean_over_the_templates(encoder: Encoder, tmp_path: Path) -> None:
    found, _ = make(tmp_path, embeddings(encoder))
    assert tuple(found) == LABELS
    np.testing.assert_allclose(np.stack(list(found.values())), text_vectors(encoder).mean(0), atol=1e-6)


@pytest.mark.parametrize("kind", ["none", "mean", "rows"])
def test_zpe_equals_the_formula_on_the_corpus_and_the_reference(encoder: Encoder, kind: str, tmp_path: Path) -> None:
    table, texts = embeddings(encoder), text_vectors(encoder).astype(np.float64)
    images = unit(np.stack(table["clip"].to_pylist()))
    others = np.random.default_rng(3).normal(size=(60, 32)) - 0.3
    others[4] = 0
    mean = unit(others)[np.arange(60) != 4].mean(0)
    fields: dict[str, Any] = {}
    if kind != "none":
        np.save(tmp_path / "reference.npy", mean if kind == "mean" else others)
        fields = {"reference": {"weights": str(tmp_path / "reference.npy")}}
    found, run = make(tmp_path, table, ensemble="zpe", logit_scale=20, **fields)
    logits = 20 * np.einsum("nd,pcd->npc", images, texts)
    reference = logits.mean(0) if kind == "none" else 20 * np.einsum("d,pcd->pc", mean, texts)
    scores = (logits - (reference + logits.mean(0)) / 2).max(2).mean(0)
    weights = template_weights(scores)
    noted = run.notes["animal_template_weights"]
    assert run.notes["animal_zpe_rows"] == 500
    assert tuple(noted) == TEMPLATES
    np.testing.assert_allclose(list(noted.values()), weights, atol=1e-4)
    expected = np.einsum("p,pcd->cd", weights, texts)
    np.testing.assert_allclose(np.stack(list(found.values())), expected, atol=1e-4)


def test_the_sample_is_bounded_and_follows_the_seed(encoder: Encoder, tmp_path: Path) -> None:
    table = embeddings(encoder)
    runs = [make(tmp_path / str(i), table, seed, ensemble="zpe", sample_rows=50)[1] for i, seed in enumerate((1, 1, 2))]
    one, again, other = (run.notes["animal_template_weights"] for run in runs)
    assert runs[0].notes["animal_zpe_rows"] == 50
    assert one == again != other


def test_no_usable_image_gives_equal_weights(encoder: Encoder, tmp_path: Path) -> None:
    table = embeddings(encoder).slice(0, 0)
    found, run = make(tmp_path, table, ensemble="zpe")
    assert run.notes["animal_zpe_rows"] == 0
    assert len(set(run.notes["animal_template_weights"].values())) == 1
    np.testing.assert_allclose(np.stack(list(found.values())), text_vectors(encoder).mean(0), atol=1e-6)


def test_weights_that_are_not_finite_are_a_one_line_error(
    encoder: Encoder, tiny_clip: tuple[Path, Path], tmp_path: Path
) -> None:
    from safetensors.torch import load_file, save_file

    state = load_file(tiny_clip[1])
    state["token_embedding.weight"].fill_(float("nan"))
    save_file(state, tmp_path / "nan.safetensors")
    sick = encoder.model_copy(update={"pretrained": str(tmp_path / "nan.safetensors")})
    with pytest.raises(UserError, match=r"scorer 'animal': no usable vector of the text 'a photo of a cat\.'"):
        make(tmp_path, embeddings(sick))


def test_it_reads_embeddings_only_for_zpe_and_models_only_if_trained(encoder: Encoder) -> None:
    available = {"embeddings": embeddings(encoder, 1).schema}
    plain = PromptSet(name="a", labels=("x", "y"), templates=("{}",))
    fitted = plain.model_copy(update={"name": "b", "ensemble": "zpe"})
    assert Prompts(sets=(plain,)).inputs(available) == {"embeddings": ()}
    assert Prompts(sets=(plain, fitted, fitted)).inputs(available) == {"embeddings": ("clip",)}
    trained = embeddings(Encoder(name="clip", trained="mine"), 1).schema
    weights = pa.field("weights", pa.large_binary(), metadata={"model": "mine", "embed_dim": "32"})
    models = pa.schema([("name", pa.string()), ("config", pa.string()), weights])
    both = {"embeddings": trained, "models": models}
    assert Prompts(sets=(plain,)).inputs(both) == {"embeddings": ()}
    assert (Prompts(sets=(plain,)).sides(both), Prompts(sets=(plain,)).sides(available)) == (("models",), ())
    with pytest.raises(RecipeError, match="no earlier stage trains 'mine'"):
        Prompts(sets=(plain,)).inputs({"embeddings": trained})


def test_mistakes_are_refused_before_anything_runs(encoder: Encoder, tmp_path: Path) -> None:
    available = {"embeddings": embeddings(encoder, 1).schema}
    texts = {"name": "a", "labels": ("x", "y"), "templates": ("{}",)}
    with pytest.raises(RecipeError, match="no embedding column 'clop'; did you mean 'clip'"):
        Prompts(sets=(PromptSet(**texts, encoder="clop"),)).inputs(available)
    silent = {"embeddings": pa.schema([SAMPLE_ID, vector("clip", 32, "")])}
    with pytest.raises(RecipeError, match="column 'clip' has no encoder"):
        Prompts(sets=(PromptSet(**texts),)).inputs(silent)
    lost = Prompts(sets=(PromptSet(**texts, reference={"weights": str(tmp_path / "gone.npy")}),))
    with pytest.raises(RecipeError, match=r"gone\.npy': no such file"):
        lost.inputs(available)
    with pytest.raises(ValidationError, match=r"the template 'a photo' has no \{\} for the label"):
        PromptSet(**(texts | {"templates": ("a photo",)}))
    with pytest.raises(ValidationError, match="the label 'x' is a duplicate"):
        PromptSet(**(texts | {"labels": ("x", "y", "x")}))


@pytest.mark.parametrize("shape", [(3, 31), (31,), (0, 32), (2, 2, 32)])
def test_references_of_another_shape_are_refused(shape: tuple[int, ...], tmp_path: Path) -> None:
    np.save(tmp_path / "reference.npy", np.ones(shape))
    with pytest.raises(UserError, match=r"expected one of \(n, 32\) or \(32,\)"):
        Reference(weights=str(tmp_path / "reference.npy")).mean(32)


def test_the_fingerprint_has_the_reference_by_content(tmp_path: Path) -> None:
    found = []
    for name, value in (("a", 0.0), ("b", 0.0), ("c", 1.0)):
        np.save(tmp_path / f"{name}.npy", np.full(32, value))
        reference = Reference(weights=str(tmp_path / f"{name}.npy"))
        set_ = PromptSet(name="x", labels=("x", "y"), templates=("{}",), reference=reference)
        found.append(Prompts(sets=(set_,)).parameters())
    assert found[0] == found[1] != found[2]
