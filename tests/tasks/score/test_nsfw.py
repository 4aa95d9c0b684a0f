"""The three NSFW heads against plain torch networks, in every published layout."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from catalog.errors import UserError
from tasks.score.nsfw import WIDTHS, Nsfw
from tests.tasks.score.embeddings import linear_layers, rows, run, saved, unit, usable, vectors_stage

H14 = [f"layers.{n}." for n in (0, 3, 6, 9, 12, 15, 16)]


def normalised_state(variant: str, layout: str) -> dict[str, Any]:
    """Return a state dict in the layout of the torch copies of the autokeras models."""
    import torch

    widths = WIDTHS[variant]
    count = len(widths) - 1
    names = {
        "linear": [f"linear_{i + 1}." for i in range(count)],
        "dense": [f"dense{i or ''}." for i in range(count)],
        "std": [f"linear_{i + 1}." for i in range(count)],
    }[layout]
    state = linear_layers(widths, names, seed=3)
    mean, variance = torch.randn(widths[0]) * 0.02, torch.rand(widths[0]) * 0.001 + 5e-4
    if layout == "linear":
        return state | {"norm.mean": mean, "norm.variance": variance}
    if layout == "std":
        return state | {"mean": mean, "std": variance.sqrt()}
    more = {"norm.weight": torch.rand(widths[0]) + 0.5, "norm.bias": torch.randn(widths[0]) * 0.1}
    counted = {"norm.num_batches_tracked": torch.tensor(3)}
    return state | {"norm.running_mean": mean, "norm.running_var": variance} | more | counted


def plain(state: dict[str, Any], variant: str, vectors: np.ndarray) -> np.ndarray:
    """Return float32 (n,) of torch.nn modules, layer by layer."""
    import torch
    from torch import nn

    widths = WIDTHS[variant]
    norm = nn.BatchNorm1d(widths[0], eps=0.0)
    mean = state.get("norm.mean", state.get("norm.running_mean", state.get("mean")))
    variance = state.get("norm.variance", state.get("norm.running_var"))
    norm.load_state_dict(
        {
            "running_mean": mean,
            "running_var": state["std"] ** 2 if variance is None else variance,
            "weight": state.get("norm.weight", torch.ones(widths[0])),
            "bias": state.get("norm.bias", torch.zeros(widths[0])),
            "num_batches_tracked": torch.tensor(0),
        }
    )
    weights = [key for key in state if key.endswith(".weight") and state[key].ndim == 2]
    modules: list[nn.Module] = [norm]
    for key in weights:
        after, before = state[key].shape
        layer = nn.Linear(before, after)
        layer.load_state_dict({"weight": state[key], "bias": state[key.replace("weight", "bias")]})
        modules += [layer, nn.ReLU()]
    net = nn.Sequential(*modules[:-1], nn.Sigmoid()).eval()
    with torch.no_grad():
        return net(torch.from_numpy(unit(vectors).astype(np.float32)))[:, 0].numpy()


def check(path: str, variant: str, expected: np.ndarray, table: Any) -> None:
    found = run(vectors_stage({"use": "nsfw", "variant": variant, "weights": path}), table)["nsfw"]
    good = usable(len(table))
    assert found.is_valid().to_numpy().tolist() == good.tolist()
    assert expected[good].std() > 0.01
    np.testing.assert_allclose(found.to_numpy()[good], expected[good], atol=1e-5, rtol=0)


@pytest.mark.parametrize("layout", ["linear", "dense", "std"])
@pytest.mark.parametrize("variant", ["l14", "b32"])
def test_normalised_heads(variant: str, layout: str, tmp_path: Path) -> None:
    state = normalised_state(variant, layout)
    table, matrices = rows(200, clip=WIDTHS[variant][0])
    path = saved(state, tmp_path / "head.pt")
    check(path, variant, plain(state, variant, matrices["clip"]), table)


def test_h14(tmp_path: Path) -> None:
    import torch
    from torch.nn import Dropout, Linear, ReLU, Sequential

    state = linear_layers(WIDTHS["h14"], H14, seed=1, gain=2**0.5)
    blocks = [m for a, b in ((1024, 1024), (1024, 2048), (2048, 1024), (1024, 256), (256, 128)) for m in (a, b)]
    modules: list[Any] = []
    for before, after in zip(blocks[::2], blocks[1::2], strict=True):
        modules += [Linear(before, after), ReLU(), Dropout(0.2)]
    net = Sequential(*modules, Linear(128, 16), Linear(16, 1)).eval()
    net.load_state_dict({key.removeprefix("layers."): value for key, value in state.items()})
    table, matrices = rows(60, clip=1024)
    with torch.no_grad():
        expected = net(torch.from_numpy(unit(matrices["clip"]).astype(np.float32)))[:, 0].numpy()
    check(saved(state, tmp_path / "h14.safetensors"), "h14", expected, table)


def test_layers_are_sorted_by_their_numbers(tmp_path: Path) -> None:
    state = linear_layers(WIDTHS["h14"], H14, seed=1)
    shuffled = {key: state[key] for key in sorted(state)}  # layers.12 before layers.3
    paths = [saved(s, tmp_path / f"{i}.pt") for i, s in enumerate((state, shuffled))]
    one, two = (Nsfw(variant="h14", weights=path).head({}).maps for path in paths)
    assert len(one) == len(H14) - 1  # the last two, with nothing between them, are one
    assert all(np.array_equal(a.weight, b.weight) for a, b in zip(one, two, strict=True))


def test_weights_without_the_normalisation_are_refused(tmp_path: Path) -> None:
    state = linear_layers(WIDTHS["b32"], [f"linear_{i}." for i in (1, 2, 3)])
    with pytest.raises(UserError, match=r"'nsfw': no normalisation; expected norm\.mean and norm\.variance, found lin"):
        Nsfw(variant="b32", weights=saved(state, tmp_path / "head.pt")).head({})


def test_a_normalisation_of_another_width_is_refused(tmp_path: Path) -> None:
    state = normalised_state("b32", "linear")
    state["norm.mean"] = state["norm.mean"][:100]
    with pytest.raises(UserError, match=r"norm\.mean: found 100 numbers, expected 512"):
        Nsfw(variant="b32", weights=saved(state, tmp_path / "head.pt")).head({})


def test_another_variants_weights_are_refused(tmp_path: Path) -> None:
    path = saved(normalised_state("b32", "linear"), tmp_path / "head.pt")
    with pytest.raises(UserError, match="found linear layers 512->32, 32->32, 32->1, expected 768->64, 64->512"):
        Nsfw(weights=path).head({})


def test_inputs_without_variance_are_refused(tmp_path: Path) -> None:
    """They would make every score null."""
    state = normalised_state("b32", "linear")
    state["norm.variance"][3:5] = 0
    with pytest.raises(UserError, match="the variance of 2 inputs is not positive"):
        Nsfw(variant="b32", weights=saved(state, tmp_path / "head.pt")).head({})
