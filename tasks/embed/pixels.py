"""An image as its own descriptor: an 8 x 8 thumbnail without its mean. Finds re-encoded copies; knows no content.

A copy that was re-encoded, resized or slightly cropped keeps its thumbnail, while two pictures of one thing differ in
it. A CLIP tells the opposite: it maps pictures of one thing together, the more the better it was trained.
"""

from typing import TYPE_CHECKING, Final

import numpy as np

if TYPE_CHECKING:
    from PIL.Image import Image

NAME: Final = "pixels"
SIDE: Final = 8
DIM: Final = 3 * SIDE * SIDE


def thumbnail(picture: "Image") -> np.ndarray:
    """Return uint8 (8, 8, 3): the whole picture, squeezed (Pillow's bicubic, which averages when it shrinks)."""
    from PIL.Image import Resampling

    return np.asarray(picture.resize((SIDE, SIDE), Resampling.BICUBIC))


def vectors(thumbnails: np.ndarray) -> np.ndarray:
    """Return float32 (n, 192) of uint8 (n, 8, 8, 3): less their mean, so brightness does not count.

    Of a picture of one colour it is the zero vector, which has no direction.
    """
    flat = thumbnails.reshape(len(thumbnails), DIM).astype(np.float32)
    centred: np.ndarray = flat - flat.mean(axis=1, keepdims=True)
    return centred
