"""`use: aesthetic_v2`: LAION's second aesthetic predictor, for CLIP ViT-L/14 vectors.

Published as five linear layers, 768-1024-128-64-16-1, with dropout between them and every activation commented out.
Without an activation they are one affine map: 926,736 multiplications a row become 768.

Source: christophschuhmann/improved-aesthetic-predictor (`sac+logos+ava1-l14-linearMSE.pth`).
"""

from collections.abc import Mapping
from typing import ClassVar, Final, Literal

import numpy as np

from tasks.files.weights import Weights
from tasks.score._base import VectorScorer
from tasks.score._heads import Head, affine_maps, folded, single

WIDTHS: Final = (768, 1024, 128, 64, 16, 1)


class AestheticV2(Weights, VectorScorer):
    """The aesthetic score of an image, about 1 to 10, by LAION's second predictor, folded to one affine map at load.

    Weights: `layers.0`, `.2`, `.4`, `.6`, `.7`, each `.weight` and `.bias`, as a torch state dict or safetensors.
    """

    about: ClassVar[str] = "LAION aesthetic V2: about 1 to 10, more is more pleasing"

    use: Literal["aesthetic_v2"] = "aesthetic_v2"

    @property
    def dim(self) -> int:
        return WIDTHS[0]

    def head(self, vectors: Mapping[str, np.ndarray]) -> Head:
        return Head((folded(affine_maps(self.read(), WIDTHS, self.name)),), single)
