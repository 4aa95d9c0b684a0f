"""`use: watermark`: LAION's watermark detector, an EfficientNet-B3 on the pixels.

256 x 256 by a plain resize (which changes the aspect ratio), ImageNet's mean and deviation, timm's `efficientnet_b3`
(formerly `efficientnet_b3a`), classifier 1536 -> 625 ReLU -> 256 ReLU -> 2. Class 0 is the watermark.

Source: LAION-AI/LAION-5B-WatermarkDetection (`watermark_model_v1.pt`, `example_use.py`).
"""

from typing import TYPE_CHECKING, Any, ClassVar, Final, Literal

import numpy as np

from catalog.errors import UserError
from tasks.encoders.torchvision_on_cpu import ensure_torchvision
from tasks.files.weights import Weights
from tasks.score._base import Forward, ImageScorer

if TYPE_CHECKING:
    from PIL.Image import Image

MEAN: Final = (0.485, 0.456, 0.406)
STD: Final = (0.229, 0.224, 0.225)


class Watermark(Weights, ImageScorer):
    """The probability that an image has a watermark. float32 on every device.

    Weights: the state dict of that network with timm's keys, and `classifier.0`, `.3`, `.5`; torch or
    safetensors.
    """

    about: ClassVar[str] = "LAION watermark detector: probability, 0 to 1; usual cut 0.8"
    shape: ClassVar[tuple[int, int, int]] = (256, 256, 3)

    use: Literal["watermark"] = "watermark"

    def prepare(self, picture: "Image") -> np.ndarray:
        from PIL.Image import Resampling

        height, width, _ = self.shape
        return np.asarray(picture.resize((width, height), Resampling.BILINEAR))

    def open(self, device: str) -> Forward:
        import torch

        model = network()
        try:
            model.load_state_dict(self.read())
        except RuntimeError as error:
            line = " ".join(str(error).split())[:300]
            raise UserError(
                f"weights of {self.name!r}: not those of an efficientnet_b3 with its head: {line}"
            ) from None
        model.eval().requires_grad_(False).to(device).to(memory_format=torch.channels_last)
        mean, std = (torch.tensor(values, device=device).view(1, 3, 1, 1) for values in (MEAN, STD))

        def forward(pictures: np.ndarray) -> np.ndarray:
            with torch.inference_mode():
                x = torch.from_numpy(pictures).to(device).permute(0, 3, 1, 2).float().div_(255)
                found: np.ndarray = model(x.sub_(mean).div_(std)).softmax(1)[:, 0].cpu().numpy()
                return found

        return forward


def network() -> Any:
    """Return the network with random weights."""
    ensure_torchvision()
    import timm
    from torch import nn

    model = timm.create_model("efficientnet_b3", pretrained=False, num_classes=2)
    model.classifier = nn.Sequential(
        nn.Linear(1536, 625), nn.ReLU(), nn.Dropout(0.3), nn.Linear(625, 256), nn.ReLU(), nn.Linear(256, 2)
    )
    return model
