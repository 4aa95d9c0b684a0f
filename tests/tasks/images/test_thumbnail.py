import io

import numpy as np
from PIL import Image

from tasks.images.thumbnail import thumbnail
from tests.tasks.report.gallery import jpeg

SIDE_PX = 160


def test_a_thumbnail_is_the_picture_made_small() -> None:
    ramp = np.zeros((600, 900, 3), np.uint8)
    ramp[:, :450] = (250, 0, 0)
    ramp[:, 450:] = (0, 0, 250)
    with Image.open(io.BytesIO(thumbnail(jpeg(ramp), SIDE_PX) or b"")) as small:
        assert small.format == "WEBP"
        assert (small.width, small.height) == (SIDE_PX, round(SIDE_PX * 600 / 900))
        pixels = np.asarray(small.convert("RGB")).astype(int)
    assert np.abs(pixels[50, 20] - (250, 0, 0)).max() < 20
    assert np.abs(pixels[50, -20] - (0, 0, 250)).max() < 20


def test_small_pictures_stay_small_and_broken_ones_are_none() -> None:
    with Image.open(io.BytesIO(thumbnail(jpeg(np.zeros((20, 30, 3), np.uint8)), SIDE_PX) or b"")) as small:
        assert small.size == (30, 20)
    assert thumbnail(b"", SIDE_PX) is None
    assert thumbnail(b"<html>", SIDE_PX) is None
    assert thumbnail(jpeg(np.zeros((64, 64, 3), np.uint8))[:200], SIDE_PX) is None
