"""JPEG: other data cannot make a picture fail, and the cost of its scans is limited before decoding."""

import io
import re
import struct

import cv2
import numpy as np
import pytest
from PIL import Image

from tasks import images
from tasks.images._base import ImageError
from tests.pictures import encoded, jpeg, jpeg_bomb, orientation_exif, picture

PLAIN = jpeg(160, 120)
SHOWN = images.decode(PLAIN)
END = b"\xff\xd9"


def segment(kind: int, body: bytes = b"", length: int | None = None) -> bytes:
    return bytes([0xFF, kind]) + struct.pack(">H", len(body) + 2 if length is None else length) + body


def with_segments(*segments: bytes, data: bytes = PLAIN) -> bytes:
    return data[:2] + b"".join(segments) + data[2:]


def refusal(data: bytes) -> ImageError:
    with pytest.raises(images.ImageError) as caught:
        images.decode(data)
    return caught.value


def reason(data: bytes) -> str:
    return refusal(data).reason


def same(data: bytes, shown: np.ndarray = SHOWN) -> bool:
    return np.array_equal(images.decode(data), shown)


@pytest.mark.parametrize("kind", [*range(0xE0, 0xF0), 0xFE])
@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"\0",
        b"JFIF\0",
        b"Exif\0\0",
        b"Exif\0\0MM\0*\xff\xff\xff\xff",
        b"Exif\0\0II*\0\x08\0\0\0\xff\xff" + b"\x12\x01\x03\0" * 40,
        b"ICC_PROFILE\0\x09\x01cut",
        b"ICC_PROFILE\0",
        b"Photoshop 3.0\0" + b"8BIM\x04\x04\xff\xff" + b"\xff" * 99,
        b"http://ns.adobe.com/xap/1.0/\0<x:xmpmeta",
        b"MPF\0II*\0\xff\xff\xff\xff",
        b"\xff\xd8\xff\xda\xff\xd9" * 99,
        b"\xff" * 65_533,
    ],
    ids=lambda body: f"{body[:8]!r}x{len(body)}",
)
def test_metadata_never_makes_a_picture_fail(kind: int, body: bytes) -> None:
    assert same(with_segments(segment(kind, body)))
    assert same(with_segments(*[segment(kind, body)] * 3))


def test_ten_megabytes_of_metadata_are_skipped() -> None:
    assert same(with_segments(*[segment(0xE2, b"ICC_PROFILE\0" + bytes(65_000))] * 160))
    assert same(with_segments(*[segment(0xE1, b"Exif\0\0" + bytes(65_000))] * 160))


@pytest.mark.parametrize("short", [1, 2, 7, 40, 300])
def test_a_segment_length_that_is_too_short_is_handled_as_by_libjpeg(short: int) -> None:
    body = bytes(range(1, 128)) * 3
    data = with_segments(segment(0xE5, body, length=len(body) + 2 - short))
    assert same(data)
    assert images.inspect(data).width == 160


@pytest.mark.parametrize("length", [0, 1])
def test_metadata_of_an_impossible_length(length: int) -> None:
    assert same(with_segments(segment(0xE5, length=length)))


def test_fill_bytes_and_garbage_between_segments() -> None:
    for between in (b"\xff" * 9, b"\0" * 40, b"garbage", b"\xff\0\xff\0", b"\xff" * 1_000_000):
        assert same(PLAIN[:20] + between + PLAIN[20:])  # behind JFIF's segment


@pytest.mark.parametrize("after", [b"<script>alert(1)</script>", bytes(5000), PLAIN, b"\xff" * 99, b"PK\3\4"])
def test_trailing_bytes_are_ignored(after: bytes) -> None:
    assert same(PLAIN + after)


@pytest.mark.parametrize("progressive", [False, True])
@pytest.mark.parametrize("restarts", [0, 3])
def test_a_file_that_lacks_only_its_end_marker_is_complete(progressive: bool, restarts: int) -> None:
    whole = jpeg(160, 120, progressive=progressive, restart_marker_blocks=restarts)
    shown = images.decode(whole)
    assert same(whole[:-2], shown)
    assert same(whole[:-1], shown)
    assert same(whole[:-2], images.decode(whole))
    assert np.array_equal(images.decode(whole[:-2], scale=0.25), images.decode(whole, scale=0.25))


@pytest.mark.parametrize("progressive", [False, True])
def test_a_file_that_lacks_more_is_truncated(progressive: bool) -> None:
    whole = jpeg(160, 120, progressive=progressive)
    start = whole.index(b"\xff\xda") + 14
    cuts = [*range(start, len(whole) - 10, 37), *(len(whole) - missing for missing in range(5, 40))]
    assert {reason(whole[:cut]) for cut in cuts} == {"truncated"}


def test_a_progressive_file_cut_between_scans_is_truncated() -> None:
    whole = jpeg(160, 120, progressive=True)
    at = whole.index(b"\xff\xda")
    while (at := whole.find(b"\xff\xda", at + 1)) > 0:
        before = whole.rfind(b"\xff\xc4", 0, at)  # the tables of a scan lie before it
        assert reason(whole[:before]) == "truncated"


def test_damaged_segments_that_the_picture_requires() -> None:
    for kind in (0xDB, 0xC4, 0xC0):
        at = PLAIN.index(bytes([0xFF, kind]))
        assert reason(PLAIN[: at + 2] + b"\0\1" + PLAIN[at + 4 :]) in ("undecodable", "truncated")
    assert reason(PLAIN[:2] + END) == "undecodable"
    assert reason(PLAIN[:2] + segment(0xE1, b"x", length=60_000) + END) == "truncated"
    frame = PLAIN.index(b"\xff\xc0")
    for changed in (b"\x0c", b"\x08\0\0", b"\x08\0\x78\0\0", b"\x08\0\x78\0\xa0\2", b"\x08\0\x78\0\xa0\xff"):
        assert reason(PLAIN[: frame + 4] + changed + PLAIN[frame + 4 + len(changed) :]) == "undecodable"


# ---- colours


@pytest.mark.parametrize("progressive", [False, True])
@pytest.mark.parametrize("mode", ["L", "RGB", "CMYK"])
def test_colours_are_those_of_pillow(mode: str, progressive: bool) -> None:
    data = encoded(Image.fromarray(picture(90, 70)).convert(mode), quality=95, progressive=progressive)
    expected = np.asarray(Image.open(io.BytesIO(data)).convert("RGB")).astype(int)
    assert np.abs(images.decode(data) - expected).max() <= 2
    dressed = with_segments(segment(0xE1, b"Exif\0\0garbage"), segment(0xED, b"Photoshop 3.0\0x"), data=data)
    assert np.array_equal(images.decode(dressed), images.decode(data))


def test_adobes_marker_determines_the_colour_transform() -> None:
    """Without a transform, the components are the colours themselves: RGB, or CMYK; with one, YCCK."""
    red = encoded(np.full((16, 16, 3), (200, 30, 40), np.uint8), quality=100, subsampling=0, keep_rgb=True)
    assert np.abs(images.decode(red)[8, 8].astype(int) - [200, 30, 40]).max() <= 3
    inks = Image.fromarray(picture(90, 70)).convert("CMYK")
    data = encoded(inks, quality=100)
    at = data.index(b"Adobe") + 11
    ycck = data[:at] + b"\2" + data[at + 1 :]
    expected = np.asarray(Image.open(io.BytesIO(ycck)).convert("RGB")).astype(int)
    assert np.abs(images.decode(ycck) - expected).max() <= 2
    peer = np.asarray(cv2.imdecode(np.frombuffer(ycck, np.uint8), cv2.IMREAD_COLOR_RGB)).astype(int)
    assert np.abs(images.decode(ycck) - peer).max() <= 6


@pytest.mark.parametrize("orientation", range(1, 9))
def test_the_orientation_of_the_first_exif_is_applied(orientation: int) -> None:
    exif = orientation_exif(orientation)
    data = with_segments(segment(0xE1, b"Exif\0\0" + exif.removeprefix(b"Exif\0\0")), segment(0xE1, b"Exif\0\0MM"))
    assert images.inspect(data).orientation == orientation
    assert images.inspect(with_segments(segment(0xE1, b"http://ns.adobe.com\0"), data=data)).orientation == orientation


@pytest.mark.parametrize(("order", "mark"), [("<", b"II*\0"), (">", b"MM\0*")])
@pytest.mark.parametrize("kind", ["B", "H", "I"])
def test_exif_is_read_in_both_orders_and_from_any_integer(order: str, mark: bytes, kind: str) -> None:
    value = struct.pack(order + kind, 6).ljust(4, b"\0")
    entry = struct.pack(order + "HHI", 0x0112, {"B": 1, "H": 3, "I": 4}[kind], 1) + value
    other = struct.pack(order + "HHII", 0x010F, 2, 9, 0)
    block = mark + struct.pack(order + "IH", 8, 2) + other + entry
    assert images.inspect(with_segments(segment(0xE1, b"Exif\0\0" + block))).orientation == 6
    for cut in range(len(block)):
        assert images.inspect(with_segments(segment(0xE1, b"Exif\0\0" + block[:cut]))).orientation == 1


# ---- the budget


def samples_of_scan(which: int, width: int, height: int) -> int:
    """Return the samples of one scan of a `jpeg_bomb`: all components for the first and the seventh, else luminance."""
    return max(1 << 14, width * height * (3 if which in (0, 6) else 2) // 2)


@pytest.mark.parametrize("empty", [False, True])
@pytest.mark.parametrize("which", [0, 5, 9])
@pytest.mark.parametrize(("width", "height"), [(16, 16), (900, 700), (2400, 1800)])
def test_thousands_of_scans_are_refused_before_they_are_decoded(
    no_decoder: None, width: int, height: int, which: int, empty: bool
) -> None:
    """No decoder is called, and the scans' headers are read only up to the budget."""
    scans = 70_000 if width == 16 else 9_000 if width == 900 else 1_000
    error = refusal(jpeg_bomb(width, height, scans, which, empty))
    assert error.reason == "too_complex"
    counted = re.search(r"(\d+) scans or more", error.detail)
    assert counted
    read = int(counted[1])
    of_the_plain_file = 10
    assert read <= of_the_plain_file + 1 + images.SCAN_SAMPLES // samples_of_scan(which, width, height) < scans


@pytest.mark.parametrize("empty", [False, True])
@pytest.mark.parametrize("which", [0, 1, 4, 5, 6, 9])
def test_scans_are_accepted_up_to_the_budget(which: int, empty: bool) -> None:
    """The most expensive files that are accepted, and those slightly above."""
    width, height = 1600, 1200
    most = images.SCAN_SAMPLES // samples_of_scan(which, width, height)
    assert images.decode(jpeg_bomb(width, height, most - 12, which, empty)).shape == (height, width, 3)
    assert reason(jpeg_bomb(width, height, most + 1, which, empty)) == "too_complex"


def test_the_largest_ordinary_pictures_are_within_the_budget() -> None:
    flat = Image.new("RGB", (7071, 7071), (90, 120, 60))
    data = encoded(flat, progressive=True, subsampling=0)
    assert images.inspect(data).width == 7071


def test_too_many_segments_are_too_complex(no_decoder: None) -> None:
    for filler in (segment(0xE5), segment(0xFE, b"x"), b"\xff\x01" * 2):
        error = refusal(with_segments(filler * (images.MAX_PIECES + 1)))
        assert (error.reason, error.detail) == ("too_complex", f"jpg: more than {images.MAX_PIECES} segments")
