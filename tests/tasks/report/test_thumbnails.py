import io

import numpy as np
import pyarrow as pa
from PIL import Image

from catalog.inputs import Inputs
from tasks.report._thumbnails import SIDE_PX, thumbnail, thumbnails
from tests.tasks.report.gallery import jpeg


def test_a_thumbnail_is_the_picture_made_small() -> None:
    ramp = np.zeros((600, 900, 3), np.uint8)
    ramp[:, :450] = (250, 0, 0)
    ramp[:, 450:] = (0, 0, 250)
    with Image.open(io.BytesIO(thumbnail(jpeg(ramp)) or b"")) as small:
        assert small.format == "WEBP"
        assert (small.width, small.height) == (SIDE_PX, round(SIDE_PX * 600 / 900))
        pixels = np.asarray(small.convert("RGB")).astype(int)
    assert np.abs(pixels[50, 20] - (250, 0, 0)).max() < 20
    assert np.abs(pixels[50, -20] - (0, 0, 250)).max() < 20


def test_small_pictures_stay_small_and_broken_ones_are_none() -> None:
    with Image.open(io.BytesIO(thumbnail(jpeg(np.zeros((20, 30, 3), np.uint8))) or b"")) as small:
        assert small.size == (30, 20)
    assert thumbnail(b"") is None
    assert thumbnail(b"<html>") is None
    assert thumbnail(jpeg(np.zeros((64, 64, 3), np.uint8))[:200]) is None


def test_the_budget_bounds_a_card() -> None:
    rng = np.random.default_rng(0)
    data = [jpeg(rng.integers(0, 255, (200, 200, 3), dtype=np.uint8)) for _ in range(20)]
    images = pa.table({"sample_id": range(20), "image": pa.array(data, pa.large_binary())})
    inputs = Inputs.of(alive_only=False, images=images)
    everything = thumbnails(inputs, range(20))
    assert list(everything) == list(range(20))
    budget = sum(map(len, everything.values())) // 2
    some = thumbnails(inputs, [5, 5, 3, *range(20), 99], budget)
    assert list(some)[:2] == [5, 3]
    assert 0 < sum(map(len, some.values())) <= budget
