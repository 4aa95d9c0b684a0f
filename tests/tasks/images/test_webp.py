"""WebP, and animations: only the data of the (first) picture is read."""

import io
import struct
from typing import Any

import cv2
import numpy as np
import pytest
from PIL import Image

from tasks import images
from tests.pictures import encoded, orientation_exif, picture

RGBA = np.dstack([picture(90, 70), picture(90, 70, 2)[..., 0]])
LOSSY = encoded(picture(90, 70), "WEBP", exif=orientation_exif(1))
CLEAR = encoded(RGBA, "WEBP", exif=orientation_exif(1))
LOSSLESS = encoded(RGBA, "WEBP", lossless=True, exact=True, exif=orientation_exif(1))


def chunk(kind: bytes, body: bytes, size: int | None = None) -> bytes:
    return kind + struct.pack("<I", len(body) if size is None else size) + body + bytes(len(body) & 1)


def riff(body: bytes) -> bytes:
    return b"RIFF" + struct.pack("<I", len(body) + 4) + b"WEBP" + body


def by_pillow(data: bytes) -> np.ndarray:
    image = Image.open(io.BytesIO(data)).convert("RGBA")
    return np.asarray(Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB"))


@pytest.mark.parametrize("data", [LOSSY, CLEAR, LOSSLESS], ids=["lossy", "alpha", "lossless"])
@pytest.mark.parametrize("kind", [b"ICCP", b"EXIF", b"XMP ", b"ANIM", b"JUNK", b"\xff\xff\xff\xff"])
@pytest.mark.parametrize("body", [b"", b"\0", b"Exif\0\0II*\0\xff\xff\xff\xff", b"garbage" * 999, bytes(3 << 20)])
def test_metadata_never_makes_a_picture_fail(data: bytes, kind: bytes, body: bytes) -> None:
    shown = images.decode(data)
    assert np.abs(shown.astype(int) - by_pillow(data)).max() <= 1
    assert data[12:16] == b"VP8X"
    before = riff(data[12:30] + chunk(kind, body) + data[30:])
    behind = riff(data[12:] + chunk(kind, body))
    cut = riff(data[12:] + chunk(kind, body, size=1 << 30))
    assert all(np.array_equal(images.decode(changed), shown) for changed in (before, behind, cut))


def test_the_orientation_of_the_first_exif_is_applied() -> None:
    for exif in (orientation_exif(6), orientation_exif(6).removeprefix(b"Exif\0\0")):
        data = riff(LOSSY[12:30] + chunk(b"EXIF", exif) + LOSSY[30:])
        assert images.inspect(data)[:5] == ("webp", 70, 90, "RGB", 6)


@pytest.mark.parametrize("data", [LOSSY, CLEAR, LOSSLESS], ids=["lossy", "alpha", "lossless"])
def test_opencv_decodes_the_same_picture(data: bytes) -> None:
    peer = np.asarray(cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)).astype(int)
    alpha = peer[..., 3:] / 255 if peer.shape[2] == 4 else 1
    expected = peer[..., 2::-1] * alpha + 255 * (1 - alpha)
    assert np.abs(images.decode(data) - expected).max() <= 1


def test_cut_files_are_truncated() -> None:
    for data in (LOSSLESS, encoded(picture(90, 70), "WEBP")):
        for cut in range(20, len(data) - 200, 97):
            with pytest.raises(images.ImageError) as caught:
                images.decode(data[:cut])
            assert caught.value.reason == "truncated"


def test_the_size_is_that_of_the_canvas() -> None:
    frame = encoded(picture(20, 10), "WEBP", lossless=True)[12:]
    place = (
        (3).to_bytes(3, "little") + (2).to_bytes(3, "little") + (19).to_bytes(3, "little") + (9).to_bytes(3, "little")
    )
    anim = chunk(b"ANIM", bytes(6)) + chunk(b"ANMF", place + bytes(4) + frame)
    canvas = chunk(b"VP8X", b"\x12\0\0\0" + (39).to_bytes(3, "little") + (29).to_bytes(3, "little"))
    data = riff(canvas + anim)
    assert np.array_equal(images.decode(data), by_pillow(data))
    assert (images.decode(data)[:4] == 255).all()
    assert np.array_equal(images.decode(data)[4:14, 6:26], picture(20, 10))
    outside = riff(chunk(b"VP8X", b"\2\0\0\0" + bytes(6)) + anim)
    with pytest.raises(images.ImageError, match="undecodable"):
        images.decode(outside)


@pytest.mark.parametrize("lossless", [False, True])
def test_only_the_first_of_thousands_of_frames_is_decoded(decoder_bytes: list[Any], lossless: bool) -> None:
    frames = [Image.fromarray(picture(80, 60, seed)) for seed in range(2)]
    data = encoded(frames[0], "WEBP", save_all=True, append_images=frames[1:], lossless=lossless)
    at = data.index(b"ANMF", data.index(b"ANMF") + 4)
    many = riff(data[12:] + data[at:] * 3000)
    assert np.array_equal(images.decode(many), by_pillow(data))
    assert decoder_bytes == [pytest.approx(at, abs=100)]  # the first frame, which lies before the second one


def test_too_many_chunks_are_too_complex() -> None:
    with pytest.raises(images.ImageError, match="too_complex"):
        images.inspect(riff(LOSSY[12:] + chunk(b"JUNK", b"") * (images.MAX_PIECES + 1)))


def test_code_tables_are_part_of_the_memory() -> None:
    small = images.inspect(encoded(picture(90, 70), "WEBP", lossless=True))
    assert small.table_bytes < 6000 * (90 * 70 // 16 + 1)
    assert images.inspect(encoded(picture(90, 70), "WEBP")).table_bytes == 0
