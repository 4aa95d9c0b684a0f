"""Pictures of the planted web: what is drawn, how it is encoded, and the files that are no pictures."""

import zlib
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from flows.demo.hazards import HAZARDS
from flows.demo.pictures import (
    EXTENSION,
    GZIP_BOMB_BYTES,
    LOOK_SHARES,
    LOOKS,
    ODD_ENCODINGS,
    Copy,
    Picture,
    assets,
    encode,
    encode_again,
    render,
)
from tasks import images

PICTURE = Picture("files/a.jpg", "motorcycle", (200, 100, 600, 400), False, "plain", 1.0, 200, "jpg", 90)


def test_a_picture_is_its_description() -> None:
    plain = render(PICTURE)
    assert plain.shape == (200, 267, 3)
    assert plain.dtype == np.uint8
    assert np.array_equal(render(PICTURE), plain)
    assert render(replace(PICTURE, short_px=420)).shape == (420, 560, 3)
    assert np.array_equal(render(replace(PICTURE, flipped=True)), plain[:, ::-1])
    assert render(replace(PICTURE, tone=0.9)).mean() < plain.mean() < render(replace(PICTURE, tone=1.1)).mean()
    assert not np.array_equal(render(replace(PICTURE, box=(0, 0, 400, 300))), plain)


def test_every_look_is_seen() -> None:
    assert sum(LOOK_SHARES) == pytest.approx(1)
    assert len(LOOK_SHARES) == len(LOOKS)
    seen = {look: render(replace(PICTURE, look=look)).astype(float) for look in LOOKS}
    red_minus_blue = {look: (pixels[..., 0] - pixels[..., 2]).mean() for look, pixels in seen.items()}
    assert np.ptp(seen["mono"], axis=2).max() == 0
    assert red_minus_blue["cool"] < red_minus_blue["plain"] < red_minus_blue["warm"]
    assert seen["dark"].mean() < seen["plain"].mean() < seen["bright"].mean()
    assert seen["faded"].std() < 0.85 * seen["plain"].std()


@pytest.mark.parametrize("encoding", ["jpg", "png", "webp"])
def test_plain_encodings(encoding: str) -> None:
    plain = render(PICTURE)
    data = encode(plain, encoding, 90)
    assert images.inspect(data).format == encoding == EXTENSION.get(encoding, "jpg")
    error = np.abs(images.decode(data).astype(int) - plain).mean()
    assert error == 0 if encoding == "png" else error < 6
    assert encode(plain, encoding, 90) == data


def test_odd_encodings_are_files_of_their_extension() -> None:
    plain = render(PICTURE)
    for encoding in ODD_ENCODINGS:
        assert images.inspect(encode(plain, encoding, 90)).format == EXTENSION.get(encoding, "jpg"), encoding


def test_odd_encodings_decode_to_the_right_picture() -> None:
    """A decoder sees in each the picture that an ordinary file would show: no channel swapped, none inverted."""
    plain = render(PICTURE)
    for encoding in ODD_ENCODINGS:
        seen = images.decode(encode(plain, encoding, 90))
        if encoding == "exif":
            seen = np.rot90(seen, 1)
        assert seen.shape == plain.shape, encoding
        if encoding == "grey":
            assert (seen == seen[..., :1]).all()
            assert np.abs(seen[..., 0] - plain @ (0.299, 0.587, 0.114)).mean() < 12
        elif encoding == "alpha":  # over white
            level = np.asarray(Image.linear_gradient("L").resize((plain.shape[1], plain.shape[0])), float)
            opaque = ((160 + level // 3) / 255)[..., None]
            assert np.abs(seen - (plain * opaque + 255 * (1 - opaque))).max() <= 1
        else:
            error = np.abs(seen.astype(int) - plain).mean()
            assert error < 12, (encoding, error)


def test_a_copy_is_cropped_scaled_and_saved_again() -> None:
    plain = render(PICTURE)
    data = encode(plain, "png", 0)
    whole = encode_again(data, Copy("b.png", (0, 0, 0, 0), 1.0, "png", 0))
    assert np.array_equal(images.decode(whole), plain)
    margins = encode_again(data, Copy("b.png", (0.1, 0.05, 0.2, 0.1), 1.0, "png", 0))
    assert np.array_equal(images.decode(margins), plain[10:180, 27:214])
    small = images.inspect(encode_again(data, Copy("b.webp", (0, 0, 0, 0), 0.5, "webp", 80)))
    assert (small.format, small.height, small.width) == ("webp", 100, 134)


@pytest.mark.parametrize("file", ["bomb-header", "bomb-flat", "pixel", "icon", "hairline", "svg", "garbled"])
def test_assets_fail_for_the_reason_that_is_expected(file: str) -> None:
    """The code that decodes agrees with the hazard. (Minimal sizes are the downloader's.)"""
    hazard = next(h for h in HAZARDS if h.file == file)
    (data,) = (data for name, data in assets().items() if name.startswith(f"{file}."))
    if hazard.reason == "too_small":
        assert min(images.decode(data).shape[:2]) < 64
        return
    with pytest.raises(images.ImageError) as error:
        images.decode(data)
    assert error.value.reason == hazard.reason


def test_blank_assets_decode_to_one_colour() -> None:
    blank = [images.decode(data) for name, data in assets().items() if name.startswith("blank-")]
    assert len(blank) == 3
    assert all(np.ptp(picture.reshape(-1, 3), axis=0).max() <= 2 for picture in blank)


def test_the_bomb_is_small_until_it_is_unpacked() -> None:
    bomb = assets()["bomb.gz"]
    assert len(bomb) < GZIP_BOMB_BYTES / 500
    unpack, size = zlib.decompressobj(wbits=31), 0
    while chunk := unpack.decompress(bomb if not size else unpack.unconsumed_tail, 1 << 24):
        size += len(chunk)
    assert size == GZIP_BOMB_BYTES
