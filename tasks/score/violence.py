"""`use: violence`: whether an image is nearer to a violent prompt than to a peaceful one.

Source: clip-retrieval's backend, which takes the argmax over two stored prompt vectors and drops a row if it is the
second (LAION-AI/CLIP-based-NSFW-Detector, `violence_detection_vit_l_14.npy`). Above 0.5 is that argmax.
"""

from collections.abc import Mapping
from typing import Any, ClassVar, Final, Literal

import numpy as np
from pydantic import Field, model_validator

from catalog.errors import UserError
from tasks.files.weights import Weights
from tasks.score._base import VectorScorer
from tasks.score._heads import Affine, Head, sigmoid
from tasks.score.prompts import PromptSet
from tasks.stage import Tables

DIMS: Final = {"l14": 768, "b32": 512}


class Violence(VectorScorer):
    """The probability of the second of two prompts: softmax of logit_scale * (peaceful, violent) inner products.

    Either `weights`: a NumPy, torch or safetensors file with one array (2, d), peaceful first, used unchanged; or
    `texts`, the two prompts, which are embedded by the encoder of the embedding column.
    """

    about: ClassVar[str] = "probability of the violent one of two prompts: 0 to 1; usual cut 0.5"

    use: Literal["violence"] = "violence"
    weights: str | None = Field(None, description="a file or URL with the two prompts' vectors: peaceful, violent")
    sha256: str | None = Field(None, description="hex digest of `weights`; a URL needs it")
    variant: Literal["l14", "b32"] = Field("l14", description="with `weights`: the CLIP that made them")
    texts: tuple[str, str] | None = Field(None, description="instead of weights: the peaceful and the violent prompt")
    logit_scale: float = Field(100.0, gt=0, description="factor of the cosines; CLIP learnt 100")

    @model_validator(mode="after")
    def _one_source(self) -> "Violence":
        if (self.weights is None) == (self.texts is None):
            raise ValueError("specify either `weights` or `texts` (two prompts)")
        if self.weights is not None:
            self._file()
        return self

    @property
    def dim(self) -> int | None:
        return None if self.weights is None else DIMS[self.variant]

    @property
    def prompts(self) -> PromptSet | None:
        if self.texts is None:
            return None
        return PromptSet(name=self.name, encoder=self.encoder, labels=self.texts, templates=("{}",))

    def check(self, available: Tables) -> None:
        super().check(available)
        if self.weights is not None:
            self._file().check_weights()

    def parameters(self) -> dict[str, Any]:
        mine = {} if self.weights is None else {"weights": self._file().digest(), "sha256": None}
        return super().parameters() | mine

    def head(self, vectors: Mapping[str, np.ndarray]) -> Head:
        peaceful, violent = np.stack(list(vectors.values())) if self.weights is None else self._stored()
        weight = self.logit_scale * (violent.astype(np.float64) - peaceful)  # softmax of two is a sigmoid
        return Head((Affine(weight[None], np.zeros(1)),), sigmoid)

    def _file(self) -> Weights:
        return Weights(weights=str(self.weights), sha256=self.sha256)

    def _stored(self) -> np.ndarray:
        arrays = list(self._file().read().values())
        shapes = [tuple(array.shape) for array in arrays]
        if shapes != [(2, self.dim)]:
            raise UserError(f"weights of {self.name!r}: found arrays {shapes}, expected one of {(2, self.dim)}")
        return np.asarray(arrays[0].double().numpy())
