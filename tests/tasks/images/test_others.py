"""GIF, BMP, TIFF and AVIF: comments, unusual tags and animations."""

import io
import itertools
import struct
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageFile

from tasks import images
from tests.pictures import encoded, picture

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:PIL")  # Pillow warns about odd tags

PALETTED = Image.fromarray(picture(60, 40)).quantize(32)
GIF = encoded(PALETTED, "GIF")
SHOWN = np.asarray(PALETTED.convert("RGB"))


def reason(data: bytes) -> str:
    with pytest.raises(images.ImageError) as caught:
        images.decode(data)
    return caught.value.reason


def screen_end(data: bytes) -> int:
    return 13 + (3 << (data[10] & 7) + 1)


def extension(label: int, body: bytes, last: bytes = b"\0") -> bytes:
    blocks = (body[at : at + 255] for at in range(0, len(body), 255))
    return bytes([0x21, label]) + b"".join(bytes([len(block)]) + block for block in blocks) + last


def with_extension(*parts: bytes, data: bytes = GIF) -> bytes:
    at = screen_end(data)
    return data[:at] + b"".join(parts) + data[at:]


@pytest.mark.parametrize("label", [0x01, 0xF9, 0xFE, 0xFF, 0x00, 0x42])
@pytest.mark.parametrize("body", [b"", b"\0", b"NETSCAPE2.0", b"XMP DataXMP<xml>" * 50, b"\xff" * (3 << 20)])
def test_extensions_never_make_a_gif_fail(label: int, body: bytes) -> None:
    assert np.array_equal(images.decode(with_extension(extension(label, body))), SHOWN)
    assert np.array_equal(images.decode(with_extension(*[extension(label, body)] * 4)), SHOWN)


def test_small_blocks_never_reach_a_decoder_and_too_many_are_too_complex(gif_files: list[Any]) -> None:
    comment = b"\x21\xfe" + b"\1x" * 900_000 + b"\0"
    assert np.array_equal(images.decode(with_extension(comment)), SHOWN)
    (file,) = gif_files
    assert file.getvalue() == GIF
    with pytest.raises(images.ImageError, match=r"too_complex.*more than 65536 x 16 blocks"):
        images.decode(with_extension(comment, comment, comment))
    assert len(gif_files) == 1


def test_bytes_between_and_after_the_blocks_of_a_gif_are_ignored() -> None:
    assert np.array_equal(images.decode(with_extension(b"\0\0\x55")), SHOWN)
    assert np.array_equal(images.decode(GIF + b"<script>" * 99), SHOWN)
    assert np.array_equal(images.decode(GIF[:-1]), SHOWN)  # without its trailer
    assert reason(GIF[: len(GIF) // 2]) == "truncated"
    assert reason(GIF[: screen_end(GIF)]) == "truncated"
    assert reason(GIF[: screen_end(GIF)] + b";") == "undecodable"
    assert reason(GIF[:9]) == "truncated"


def test_the_transparent_colour_of_a_gif_is_white_in_its_frame_only() -> None:
    clear = encoded(PALETTED, "GIF", transparency=PALETTED.getpixel((5, 5)))
    assert images.decode(clear)[5, 5].tolist() == [255] * 3
    control = clear[clear.index(b"\x21\xf9") :][:8]
    behind = GIF[:-1] + control + b";"
    assert np.array_equal(images.decode(behind), SHOWN)


def test_only_the_first_of_thousands_of_gif_frames_is_decoded(gif_files: list[Any]) -> None:
    frame = GIF[GIF.index(b",", screen_end(GIF)) : -1]
    data = GIF[:-1] + frame * 5000 + b";"
    assert np.array_equal(images.decode(data), SHOWN)
    assert gif_files[0].bytes_read <= len(GIF) + ImageFile.MAXBLOCK < len(data) / 20


@pytest.mark.parametrize("pil", ["GIF", "PNG", "AVIF", "TIFF"])
def test_the_first_frame_of_an_animation_is_decoded(pil: str) -> None:
    frames = [Image.fromarray(picture(48, 32, seed)) for seed in range(9)]
    data = encoded(frames[0], pil, save_all=True, append_images=frames[1:])
    first = np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))
    assert np.array_equal(images.decode(data), first)


# ---- BMP


def bmp(rgba: np.ndarray, masks: tuple[int, ...], header_bytes: int = 124) -> bytes:
    """Return a 32-bit BMP with a mask for each channel."""
    height, width = rgba.shape[:2]
    pixels = rgba[::-1, :, [2, 1, 0, 3]].tobytes()
    info = struct.pack("<IiiHHIIiiII", header_bytes, width, height, 1, 32, 3, len(pixels), 0, 0, 0, 0)
    info = (info + struct.pack("<4I", *masks)).ljust(header_bytes, b"\0")
    return b"BM" + struct.pack("<IHHI", 14 + len(info) + len(pixels), 0, 0, 14 + len(info)) + info + pixels


@pytest.mark.parametrize("flat", [False, True])
def test_the_fourth_byte_of_a_bmp_is_alpha_only_if_it_varies(flat: bool) -> None:
    colours = np.full((8, 9, 3), 40, np.uint8) if flat else picture(9, 8)
    masks = (0xFF0000, 0xFF00, 0xFF, 0xFF000000)
    unused = np.dstack([colours, np.zeros((8, 9), np.uint8)])
    assert np.array_equal(images.decode(bmp(unused, masks)), colours)
    used = unused.copy()
    used[0, 0, 3] = 255
    assert images.decode(bmp(used, masks))[7, 8].tolist() == [255] * 3


@pytest.mark.parametrize("compression", [1, 2])
def test_run_length_bmps_require_a_separate_process(compression: int) -> None:
    data = bytearray(encoded(PALETTED, "BMP"))
    data[30] = compression
    assert not images.inspect(bytes(data)).bounded


# ---- TIFF


@pytest.mark.parametrize("tag", [34675, 700, 33723, 34377, 37724, 65_000, 270, 34665, 34853, 330])
def test_unusual_tags_never_make_a_tiff_fail(tag: int) -> None:
    """Profiles, XMP, Photoshop's blocks, EXIF, GPS and invalid sub-directories."""
    data = encoded(picture(60, 40), "TIFF")
    (at,) = struct.unpack_from("<I", data, 4)
    (count,) = struct.unpack_from("<H", data, at)
    entries = [data[at + 2 + 12 * i : at + 14 + 12 * i] for i in range(count)]
    places = ((1, 8), (1000, 1 << 31), (0xFFFFFFFF, 8), (0, 0))
    for kind, (values, place) in itertools.product((1, 2, 3, 4, 5, 7, 12, 13, 99), places):
        odd = struct.pack("<HHII", tag, kind, values, place)
        directory = struct.pack("<H", count + 1) + b"".join(sorted([*entries, odd])) + bytes(4)
        changed = data[:4] + struct.pack("<I", len(data)) + data[8:] + directory
        assert np.array_equal(images.decode(changed), picture(60, 40))


@pytest.mark.parametrize("compression", ["raw", "tiff_lzw", "packbits", "tiff_adobe_deflate", "jpeg", "zstd"])
def test_every_compression_of_tiff(compression: str) -> None:
    data = encoded(picture(60, 40), "TIFF", compression=compression)
    assert np.abs(images.decode(data).astype(int) - picture(60, 40)).max() <= (12 if compression == "jpeg" else 0)


def test_a_cut_tiff_is_truncated() -> None:
    data = encoded(picture(60, 40), "TIFF")
    at = struct.unpack_from("<I", data, 4)[0]
    assert at < 100  # the directory lies before the pixels
    assert reason(data[: len(data) // 2]) == "truncated"
    assert reason(data[:4] + struct.pack("<I", len(data) + 9) + data[8:]) == "truncated"


# ---- AVIF


@pytest.mark.parametrize("angle", [0, 1, 2, 3])
def test_avif_is_rotated_as_in_its_container(angle: int) -> None:
    exif = {0: 1, 1: 8, 2: 3, 3: 6}[angle]
    block = Image.Exif()
    block[0x0112] = exif
    data = encoded(picture(60, 40), "AVIF", exif=block.tobytes(), quality=100)
    flat = images.decode(encoded(picture(60, 40), "AVIF", quality=100))
    assert np.array_equal(images.decode(data), np.rot90(flat, angle))
    assert (images.inspect(data).height, images.inspect(data).width) == images.decode(data).shape[:2]


def test_a_huge_exif_block_of_an_avif_is_not_read(no_exif_reader: Callable[..., Any]) -> None:
    entry = struct.pack("<HHII", 0x9286, 7, 1 << 20, 8)
    block = b"Exif\0\0II*\0\x08\0\0\0" + struct.pack("<H", 65_535) + entry * 65_535 + bytes(1 << 20)
    data = encoded(picture(60, 40), "AVIF", exif=block)
    no_exif_reader()
    assert images.decode(data).shape == (40, 60, 3)
