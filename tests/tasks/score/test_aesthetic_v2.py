"""Aesthetic V2, folded to one affine map, against the five published layers."""

import os
from pathlib import Path

import numpy as np
import pytest

from catalog.errors import UserError
from tasks.score.aesthetic_v2 import WIDTHS, AestheticV2
from tests.tasks.score.embeddings import linear_layers, rows, run, saved, unit, usable, vectors_stage

WEIGHTS = Path(os.environ.get("ESPALIER_SHARED_DATA", "../shared/data")) / "weights"
REAL = WEIGHTS / "laion_aesthetic_v2_l14_mlp.safetensors"
LAYERS = [f"layers.{n}." for n in (0, 2, 4, 6, 7)]


def layered(path: str, vectors: np.ndarray) -> np.ndarray:
    """Return float32 (n,) of the published network: `layers` is a Sequential, dropout at 1, 3 and 5."""
    import torch
    from torch.nn import Dropout, Linear, Sequential

    from tasks.files.weights import Weights

    a, b, c, d, e, f = WIDTHS
    net = Sequential(
        Linear(a, b), Dropout(0.2), Linear(b, c), Dropout(0.2), Linear(c, d), Dropout(0.1), Linear(d, e), Linear(e, f)
    ).eval()
    net.load_state_dict({k.removeprefix("layers."): v for k, v in Weights(weights=path).read().items()})
    with torch.no_grad():
        return net(torch.from_numpy(unit(vectors).astype(np.float32)))[:, 0].numpy()


def check(path: str) -> np.ndarray:
    table, matrices = rows(300, clip=768)
    found = run(vectors_stage({"use": "aesthetic_v2", "weights": path}), table)["aesthetic_v2"]
    good = usable(len(table))
    assert found.is_valid().to_numpy().tolist() == good.tolist()
    scores: np.ndarray = found.to_numpy()[good]
    np.testing.assert_allclose(scores, layered(path, matrices["clip"])[good], atol=1e-5, rtol=0)
    return scores


@pytest.mark.parametrize("suffix", [".safetensors", ".pt"])
@pytest.mark.parametrize("seed", range(3))
def test_folded_equals_the_layers(suffix: str, seed: int, tmp_path: Path) -> None:
    assert check(saved(linear_layers(WIDTHS, LAYERS, seed), tmp_path / f"head{suffix}")).std() > 0.01


@pytest.mark.needs_data
def test_folded_equals_the_layers_with_the_published_weights() -> None:
    if not REAL.exists():
        pytest.skip(f"no {REAL}")
    scores = check(str(REAL))
    assert 0 < scores.min() < scores.max() < 10


def test_it_is_one_map_of_768_numbers(tmp_path: Path) -> None:
    path = saved(linear_layers(WIDTHS, LAYERS), tmp_path / "head.pt")
    (map_,) = AestheticV2(weights=path).head({}).maps
    assert map_.weight.shape == (1, 768)


def test_a_missing_layer_is_a_one_line_error(tmp_path: Path) -> None:
    state = linear_layers(WIDTHS, LAYERS)
    del state["layers.6.weight"]
    path = saved(state, tmp_path / "head.pt")
    with pytest.raises(UserError, match="found linear layers 768->1024, 1024->128, 128->64, 16->1, expected 768->1024"):
        AestheticV2(weights=path).head({})
