"""`use: aesthetic_v1`: LAION's first aesthetic predictor, one linear layer on a CLIP image vector.

Source: LAION-AI/aesthetic-predictor (`sa_0_4_vit_*_linear.pth`), trained on the ratings of simulacra.
"""

from collections.abc import Mapping
from typing import ClassVar, Final, Literal

import numpy as np
from pydantic import Field

from tasks.files.weights import Weights
from tasks.score._base import VectorScorer
from tasks.score._heads import Head, affine_maps, single

DIMS: Final = {"l14": 768, "b32": 512, "b16": 512}


class AestheticV1(Weights, VectorScorer):
    """The aesthetic score of an image, about 0 to 10, by one linear layer.

    Weights: `weight` (1, d) and `bias` (1,), as published, as a torch state dict or safetensors.
    """

    about: ClassVar[str] = "LAION aesthetic V1: about 0 to 10, more is more pleasing"

    use: Literal["aesthetic_v1"] = "aesthetic_v1"
    variant: Literal["l14", "b32", "b16"] = Field("l14", description="the CLIP whose vectors it was trained on")

    @property
    def dim(self) -> int:
        return DIMS[self.variant]

    def head(self, vectors: Mapping[str, np.ndarray]) -> Head:
        return Head(tuple(affine_maps(self.read(), (self.dim, 1), self.name)), single)
