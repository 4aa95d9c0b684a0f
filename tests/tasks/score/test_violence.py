"""Violence: a probability above 0.5 is clip-retrieval's argmax over the two prompt vectors."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydantic import ValidationError

from catalog.errors import RecipeError, UserError
from tasks.score.violence import Violence
from tests.tasks.score.embeddings import rows, run, saved, unit, usable, vectors_stage


@pytest.mark.parametrize("dtype", [np.float16, np.float32])
def test_against_softmax_and_argmax_of_the_inner_products(dtype: type[np.floating[Any]], tmp_path: Path) -> None:
    import torch

    prompts = np.random.default_rng(1).normal(size=(2, 768)).astype(dtype)
    np.save(tmp_path / "prompts.npy", prompts)
    table, matrices = rows(300, clip=768)
    stage = vectors_stage({"use": "violence", "weights": str(tmp_path / "prompts.npy"), "logit_scale": 3})
    found = run(stage, table)["violence"]
    good = usable(len(table))
    products = torch.from_numpy(unit(matrices["clip"])[good].astype(np.float32) @ prompts.T.astype(np.float32))
    probability = found.to_numpy()[good]
    assert found.is_valid().to_numpy().tolist() == good.tolist()
    np.testing.assert_allclose(probability, (3 * products).softmax(1)[:, 1].numpy(), atol=1e-5)
    np.testing.assert_array_equal(probability > 0.5, products.argmax(1).numpy() == 1)


def test_the_file_says_how_wide_embeddings_must_be(tmp_path: Path) -> None:
    import torch

    path = saved({"prompts": torch.ones(2, 512)}, tmp_path / "prompts.safetensors")
    table, _ = rows(clip=512)
    stage = vectors_stage({"use": "violence", "weights": path})
    with pytest.raises(RecipeError, match="scorer 'violence': embedding column 'clip': found 512, expected 768"):
        stage.inputs({"embeddings": table.schema})
    with pytest.raises(UserError, match=r"found arrays \[\(2, 512\)\], expected one of \(2, 768\)"):
        stage.open("cpu", {})
    assert vectors_stage({"use": "violence", "weights": path, "variant": "b32"}).inputs({"embeddings": table.schema})


def test_mistakes_of_a_recipe(tmp_path: Path) -> None:
    with pytest.raises(ValidationError, match="specify either `weights` or `texts`"):
        Violence()
    with pytest.raises(ValidationError, match="specify either `weights` or `texts`"):
        Violence(weights="a.npy", texts=("a park", "a fight"))
    with pytest.raises(ValidationError, match="weights from a URL need `sha256`"):
        Violence(weights="https://example.org/a.npy")
    table, _ = rows(clip=768)
    with pytest.raises(RecipeError, match="no such file"):
        Violence(weights=str(tmp_path / "a.npy")).check({"embeddings": table.schema})


def test_the_fingerprint_has_the_content_of_the_file(tmp_path: Path) -> None:
    for name, value in (("a", 0.0), ("b", 0.0), ("c", 1.0)):
        np.save(tmp_path / f"{name}.npy", np.full((2, 768), value))
    a, b, c = (Violence(weights=str(tmp_path / f"{name}.npy")).parameters() for name in "abc")
    assert a == b != c
