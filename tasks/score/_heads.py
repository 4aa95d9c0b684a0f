"""Heads on embeddings: chains of affine maps with ReLU between, whose first maps are computed as one matrix product."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Final, NamedTuple

import numpy as np

from catalog.errors import UserError
from tasks.files.weights import State

if TYPE_CHECKING:
    import torch

COLUMNS: Final = 16
"""The product's columns are padded with zeros to a multiple of this: without it 103 cost as much as 128 (measured)."""

Finish = Callable[["torch.Tensor"], "list[torch.Tensor]"]
"""(n, k) of the last map to the columns, each (n,)."""


class Affine(NamedTuple):
    """x -> weight x + bias: float64 (k, d) and (k,)."""

    weight: np.ndarray
    bias: np.ndarray

    def after(self, first: "Affine") -> "Affine":
        """Return the composition: `first`, then this map."""
        return Affine(self.weight @ first.weight, self.weight @ first.bias + self.bias)


@dataclass(frozen=True)
class Head:
    """The function of a scorer on a row of length 1: `maps` with ReLU between, then `finish`."""

    maps: tuple[Affine, ...]
    finish: Finish
    labels: tuple[str, ...] = ()
    """The labels of the indices in a column of labels."""


def folded(maps: Sequence[Affine]) -> Affine:
    """Return the composition of affine maps, exact up to rounding in float64."""
    found, *rest = maps
    for map_ in rest:
        found = map_.after(found)
    return found


def affine_maps(state: State, widths: Sequence[int], name: str) -> list[Affine]:
    """Return the linear layers of a state dict, in the natural order of their names (`dense`, `dense1`, `dense2`;
    `layers.2` before `layers.12`). `widths`: of the input and of every layer's output.

    Raises UserError, with one line, if the file has other layers.
    """
    keys = [key for key in state if key.split(".")[-1] == "weight" and state[key].ndim == 2]
    keys.sort(key=_natural)
    maps = []
    for key in keys:
        bias = state.get(key.removesuffix("weight") + "bias")
        weight = state[key].double().numpy()
        maps.append(Affine(weight, np.zeros(len(weight)) if bias is None else bias.double().numpy()))
    found = [map_.weight.shape for map_ in maps]
    expected = [(after, before) for before, after in pairwise(widths)]
    if found != expected or any(map_.bias.shape != (len(map_.weight),) for map_ in maps):
        raise UserError(f"weights of {name!r}: found linear layers {_show(found)}, expected {_show(expected)}")
    return maps


def _natural(key: str) -> tuple[tuple[str, int], ...]:
    """Return the sort key of a layer's name: numbers by value, and a name without a number first."""
    words = key.split(".")[:-1]
    stems = [word.rstrip("0123456789") for word in words]
    return tuple((stem, int(word[len(stem) :] or -1)) for stem, word in zip(stems, words, strict=True))


def _show(shapes: Sequence[tuple[int, ...]]) -> str:
    return ", ".join(f"{before}->{after}" for after, before in shapes) or "none"


class Stacked:
    """All heads that read one embedding column: one product for their first maps, then the small rest of each.

    float32 throughout. Rows are scaled to length 1 after the product, which is linear: that scales k numbers per row
    instead of d.
    """

    def __init__(self, heads: Sequence[Head], device: str) -> None:
        import torch

        def tensor(values: np.ndarray) -> "torch.Tensor":
            return torch.from_numpy(values.astype(np.float32)).to(device)

        self._device = device
        self._heads = tuple(heads)
        firsts = [head.maps[0] for head in heads]
        sizes = [len(map_.bias) for map_ in firsts]
        self._sizes = [*sizes, -sum(sizes) % COLUMNS]
        padding = ((0, self._sizes[-1]), (0, 0))
        self._weight = tensor(np.pad(np.concatenate([map_.weight for map_ in firsts]), padding)).T.contiguous()
        self._bias = tensor(np.pad(np.concatenate([map_.bias for map_ in firsts]), padding[0]))
        self._rest = [[(tensor(m.weight).T.contiguous(), tensor(m.bias)) for m in head.maps[1:]] for head in heads]

    def __call__(self, vectors: np.ndarray) -> tuple[list[list[np.ndarray]], np.ndarray]:
        """Return (each head's columns, each (n,); bool (n,): which rows have a direction) of float16 (n, d)."""
        import torch

        with torch.inference_mode():
            # A copy, because Arrow's buffers are read-only; as float16 it has half the bytes of float32.
            rows = torch.from_numpy(vectors.copy()).to(self._device).float()
            length = torch.linalg.vector_norm(rows, dim=1)
            product = (rows @ self._weight).div_(length[:, None]).add_(self._bias)
            good = torch.isfinite(length) & (length > 0)
            *pieces, _padding = product.split(self._sizes, dim=1)
            columns = [self._finish(number, piece) for number, piece in enumerate(pieces)]
            return columns, good.cpu().numpy()

    def _finish(self, number: int, x: "torch.Tensor") -> list[np.ndarray]:
        import torch

        for weight, bias in self._rest[number]:
            x = torch.addmm(bias, x.relu(), weight)
        return [column.cpu().numpy() for column in self._heads[number].finish(x)]


def single(x: "torch.Tensor") -> "list[torch.Tensor]":
    """Return the single output."""
    return [x[:, 0]]


def sigmoid(x: "torch.Tensor") -> "list[torch.Tensor]":
    """Return the single output as a probability."""
    return [x[:, 0].sigmoid()]
