"""Aesthetic V1 against torch's linear layer, with random and with LAION's weights."""

import os
from pathlib import Path

import numpy as np
import pytest

from catalog.errors import RecipeError, UserError
from tests.tasks.score.embeddings import linear_layers, rows, run, saved, unit, usable, vectors_stage

WEIGHTS = Path(os.environ.get("ESPALIER_SHARED_DATA", "../shared/data")) / "weights"
DIMS = {"l14": 768, "b32": 512, "b16": 512}


def expected(path: str, vectors: np.ndarray) -> np.ndarray:
    import torch
    from safetensors.torch import load_file

    state = load_file(path)
    layer = torch.nn.Linear(vectors.shape[1], 1)
    layer.load_state_dict(state)
    with torch.no_grad():
        return layer(torch.from_numpy(unit(vectors).astype(np.float32)))[:, 0].numpy()


def check(path: str, variant: str) -> None:
    table, matrices = rows(clip=DIMS[variant])
    found = run(vectors_stage({"use": "aesthetic_v1", "variant": variant, "weights": path}), table)
    good = usable(len(table))
    assert found["aesthetic_v1"].is_valid().to_numpy().tolist() == good.tolist()
    np.testing.assert_allclose(
        found["aesthetic_v1"].to_numpy()[good], expected(path, matrices["clip"])[good], atol=1e-5, rtol=0
    )


@pytest.mark.parametrize("variant", DIMS)
def test_against_a_linear_layer(variant: str, tmp_path: Path) -> None:
    check(saved(linear_layers((DIMS[variant], 1), [""]), tmp_path / "head.safetensors"), variant)


@pytest.mark.needs_data
@pytest.mark.parametrize("variant", DIMS)
def test_against_a_linear_layer_with_laions_weights(variant: str) -> None:
    path = WEIGHTS / f"laion_aesthetic_v1_vit_{variant[0]}_{variant[1:]}.safetensors"
    if not path.exists():
        pytest.skip(f"no {path}")
    check(str(path), variant)


def test_another_width_is_refused_before_anything_runs(tmp_path: Path) -> None:
    path = saved(linear_layers((768, 1), [""]), tmp_path / "head.safetensors")
    table, _ = rows(clip=512)
    stage = vectors_stage({"use": "aesthetic_v1", "weights": path, "name": "beauty"})
    with pytest.raises(RecipeError, match="scorer 'beauty': embedding column 'clip': found 512, expected 768"):
        stage.inputs({"embeddings": table.schema})


def test_wrong_weights_are_a_one_line_error(tmp_path: Path) -> None:
    path = saved(linear_layers((512, 1), [""]), tmp_path / "head.safetensors")
    stage = vectors_stage({"use": "aesthetic_v1", "weights": path})
    with pytest.raises(UserError, match=r"'aesthetic_v1': found linear layers 512->1, expected 768->1$"):
        stage.open("cpu", {})
