"""`use: nsfw`: LAION's detectors of unsafe images, on CLIP vectors, in three variants.

    l14   768 -> normalise -> 64 -> 512 -> 256 -> 1, ReLU between, sigmoid      unsafe above 0.5
    b32   512 -> normalise -> 32 -> 32 -> 1, ReLU between, sigmoid              unsafe above 0.5
    h14   1024 -> 1024 -> 2048 -> 1024 -> 256 -> 128, ReLU after each, -> 16 -> 1   raw: may leave 0..1

Source: LAION-AI/CLIP-based-NSFW-Detector (autokeras; its torch copies), `h14_nsfw_model.py` there.
"""

from collections.abc import Mapping
from typing import ClassVar, Final, Literal

import numpy as np
from pydantic import Field

from catalog.errors import UserError
from tasks.files.weights import State, Weights
from tasks.score._base import VectorScorer
from tasks.score._heads import Affine, Head, affine_maps, folded, sigmoid, single

WIDTHS: Final = {
    "l14": (768, 64, 512, 256, 1),
    "b32": (512, 32, 32, 1),
    "h14": (1024, 1024, 2048, 1024, 256, 128, 16, 1),
}
_MEANS: Final = ("norm.mean", "norm.running_mean", "mean")
_VARIANCES: Final = ("norm.variance", "norm.running_var", "variance")


class Nsfw(Weights, VectorScorer):
    """The probability that an image is unsafe for work.

    Weights, as a torch state dict or safetensors: the linear layers in the order of their names (`linear_1` ...,
    `dense`, `dense1` ..., or `layers.N`), and for l14 and b32 the normalisation before them: `norm.mean` and
    `norm.variance`; dataset2metadata's BatchNorm with eps 0, `norm.running_mean` and `norm.running_var`, with
    `norm.weight` and `norm.bias` where it has them; or `mean` and `std`.
    """

    about: ClassVar[str] = "LAION NSFW detector: 0 to 1 (h14 may leave it), more is more unsafe; usual cut 0.5"

    use: Literal["nsfw"] = "nsfw"
    variant: Literal["l14", "b32", "h14"] = Field("l14", description="the CLIP whose vectors it was trained on")

    @property
    def dim(self) -> int:
        return WIDTHS[self.variant][0]

    def head(self, vectors: Mapping[str, np.ndarray]) -> Head:
        state = self.read()
        maps = affine_maps(state, WIDTHS[self.variant], self.name)
        if self.variant == "h14":
            return Head((*maps[:-2], folded(maps[-2:])), single)  # no activation between the last two
        return Head((maps[0].after(self._normalisation(state)), *maps[1:]), sigmoid)

    def _normalisation(self, state: State) -> Affine:
        """Return (x - mean) / sqrt(variance), with the file's scale and shift if it has them, as an affine map."""
        mean, variance = self._first(state, _MEANS), self._first(state, _VARIANCES)
        if variance is None and (std := self._first(state, ("std",))) is not None:
            variance = std**2
        if mean is None or variance is None:
            raise UserError(
                f"weights of {self.name!r}: no normalisation; expected norm.mean and norm.variance, found "
                f"{', '.join(sorted(state)[:12])}"
            )
        if not (variance > 0).all():
            raise UserError(
                f"weights of {self.name!r}: the variance of {int((~(variance > 0)).sum())} inputs is not positive"
            )
        scale = np.ones_like(mean) if (s := self._first(state, ("norm.weight",))) is None else s
        shift = np.zeros_like(mean) if (s := self._first(state, ("norm.bias",))) is None else s
        factor = scale / np.sqrt(variance)
        return Affine(np.diag(factor), shift - factor * mean)

    def _first(self, state: State, keys: tuple[str, ...]) -> np.ndarray | None:
        """Return the first of `keys` that exists: float64 (d,). Raises UserError if it has another shape."""
        for key in keys:
            if key in state:
                values: np.ndarray = state[key].double().numpy().reshape(-1)
                if values.shape != (self.dim,):
                    raise UserError(
                        f"weights of {self.name!r}: {key}: found {len(values)} numbers, expected {self.dim}"
                    )
                return values
        return None
