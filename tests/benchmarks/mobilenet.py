"""MobileNet v1 (width 0.25, 224 pixels, ImageNet): the one encoder of photographs that needs no network to be had.

Its weights lie in the shared data; experiments use it where a pretrained CLIP would be downloaded.
Source: Howard et al., MobileNets, 2017, arXiv:1704.04861.
"""

from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file
from torch.nn import functional

STRIDES = (1, 2, 1, 2, 1, 2, 1, 1, 1, 1, 1, 2, 1)
DIM = 256
SIDE = 224


class MobileNet:
    """Pooled features of pictures."""

    def __init__(self, weights: Path) -> None:
        self._weights = load_file(weights)

    def __call__(self, pictures: np.ndarray) -> np.ndarray:
        """Return unit float32 (n, 256) of uint8 (n, 224, 224, 3)."""
        with torch.inference_mode():
            x = torch.from_numpy(pictures).permute(0, 3, 1, 2).float() / 127.5 - 1
            x = self._layer(x, "Conv2d_0", 2)
            for i, stride in enumerate(STRIDES, start=1):
                x = self._layer(x, f"Conv2d_{i}_depthwise", stride, groups=x.shape[1])
                x = self._layer(x, f"Conv2d_{i}_pointwise", 1)
            return functional.normalize(x.mean((2, 3)), dim=1).numpy()

    def _layer(self, x: torch.Tensor, name: str, stride: int, groups: int = 1) -> torch.Tensor:
        weight = self._weights[f"{name}.weight"]
        if weight.shape[-1] == 3:  # TensorFlow's SAME: even sizes at stride 2 are padded right and below only
            x = (
                functional.pad(x, (0, 1, 0, 1))
                if stride == 2 and x.shape[-1] % 2 == 0
                else functional.pad(x, (1, 1, 1, 1))
            )
        return functional.relu6(
            functional.conv2d(x, weight, self._weights[f"{name}.bias"], stride=stride, groups=groups)
        )


def prepare(picture: np.ndarray) -> np.ndarray:
    """Return uint8 (224, 224, 3) of a picture: shorter side to 256, then the centre."""
    from PIL import Image

    image = Image.fromarray(picture)
    scale = 256 / min(image.size)
    image = image.resize((round(image.width * scale), round(image.height * scale)), Image.Resampling.BILINEAR)
    left, top = (image.width - SIDE) // 2, (image.height - SIDE) // 2
    return np.asarray(image.crop((left, top, left + SIDE, top + SIDE)))
