"""The photographs, their crops, which deduplication must keep apart, and their captions."""

import numpy as np
import pytest

from flows.demo.photographs import (
    BY_NAME,
    MAX_IOU,
    MIN_CONTRAST,
    MIN_CROP_AREA,
    MIN_CROP_PX,
    PHOTOGRAPHS,
    describe,
    distinct_crops,
    pixels,
)
from tasks import images


def test_crops_of_a_photograph_do_not_overlap_by_half() -> None:
    boxes = distinct_crops("cat", 60, np.random.default_rng(0))
    assert len(set(boxes)) == 60

    def area(box: tuple[int, ...]) -> int:
        return max(0, box[2] - box[0]) * max(0, box[3] - box[1])

    for at, one in enumerate(boxes):
        assert 0 <= one[0] < one[2] <= 451
        assert 0 <= one[1] < one[3] <= 300
        for other in boxes[:at]:
            shared = area((max(one[0], other[0]), max(one[1], other[1]), min(one[2], other[2]), min(one[3], other[3])))
            assert shared / (area(one) + area(other) - shared) <= MAX_IOU


def test_captions_say_what_is_seen() -> None:
    rng = np.random.default_rng(0)
    height, width = pixels("coffee").shape[:2]
    spoon = (int(0.5 * width), int(0.54 * height), int(0.72 * width), int(0.86 * height))
    assert "spoon" in describe("coffee", spoon, False, "plain", rng)
    corner = (0, 0, width // 4, height // 4)
    grass = [describe("grass", corner, flipped, "plain", rng) for flipped in (False, True)]
    assert "upper left" in grass[0]
    assert "upper right" in grass[1]


def test_photographs_come_with_the_installed_packages() -> None:
    for photo in PHOTOGRAPHS:
        shape = pixels(photo.name).shape
        assert shape[2] == 3
        for _, left, top, right, bottom in photo.parts:
            assert 0 <= left < right <= 1
            assert 0 <= top < bottom <= 1


def test_pixels_are_read_once_and_cannot_be_changed() -> None:
    for photo in PHOTOGRAPHS:
        found = pixels(photo.name)
        assert found.dtype == np.uint8
        assert pixels(photo.name) is found
        with pytest.raises(ValueError, match="read-only"):
            found[0, 0, 0] = 0
    assert len(BY_NAME) == len(PHOTOGRAPHS)
    with pytest.raises(KeyError):
        pixels("dog")


def test_crops_have_the_size_shape_and_contrast_that_are_promised() -> None:
    photograph = pixels("cat")
    height, width = photograph.shape[:2]
    boxes = distinct_crops("cat", 40, np.random.default_rng(1))
    for left, top, right, bottom in boxes:
        wide, high = right - left, bottom - top
        assert min(wide, high) >= MIN_CROP_PX
        assert wide * high >= 0.98 * MIN_CROP_AREA * width * height  # sides are whole pixels
        assert photograph[top:bottom, left:right].mean(axis=2).std() > MIN_CONTRAST
    assert sum(2 / 3 < (right - left) / (bottom - top) < 3 / 2 for left, top, right, bottom in boxes) > 30
    hashes = np.array([images.phash(photograph[t:b, le:r]) for le, t, r, b in boxes], np.int64).view(np.uint64)
    distance = np.bitwise_count(hashes[:, None] ^ hashes[None])
    assert (distance[np.triu_indices(len(boxes), 1)] <= 6).sum() == 0, "another hash tells the crops apart, too"


def test_crops_are_those_of_the_seed_and_fewer_where_there_are_no_more() -> None:
    one, again, other = (distinct_crops("cat", 9, np.random.default_rng(seed)) for seed in (1, 1, 2))
    assert one == again
    assert one != other
    assert distinct_crops("cat", 0, np.random.default_rng(1)) == []
    assert 40 < len(distinct_crops("cat", 2000, np.random.default_rng(1))) < 2000


def test_captions_differ_and_name_the_look() -> None:
    rng = np.random.default_rng(0)
    captions = [describe("cat", (0, 0, 400, 280), False, "mono", rng) for _ in range(200)]
    assert len(set(captions)) > 20
    assert 0.5 < sum("in black and white" in caption for caption in captions) / 200 < 0.9
    assert any(caption.startswith("IMG_") for caption in captions)
    assert any(caption.endswith("| stock photo") for caption in captions)
    assert not any("black and white" in describe("cat", (0, 0, 400, 280), False, "plain", rng) for _ in range(50))
