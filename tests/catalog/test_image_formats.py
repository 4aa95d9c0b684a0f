import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from catalog.image_formats import DECODED, HEAD_BYTES, sniff
from tests.pictures import encoded, picture

PILLOW = {"jpg": "JPEG", "png": "PNG", "webp": "WEBP", "gif": "GIF", "bmp": "BMP", "tiff": "TIFF", "avif": "AVIF"}


def ftyp(major: bytes, *compatible: bytes) -> bytes:
    body = major + bytes(4) + b"".join(compatible)
    return (8 + len(body)).to_bytes(4, "big") + b"ftyp" + body + b"\0\0\0\x08meta"


@pytest.mark.parametrize(("name", "pil"), PILLOW.items())
def test_every_decoded_format_is_known_by_its_bytes(name: str, pil: str) -> None:
    data = encoded(picture(40, 30), pil)
    assert sniff(data) == sniff(data[:HEAD_BYTES]) == sniff(data + bytes(9)) == name
    assert set(PILLOW) == DECODED


@pytest.mark.parametrize("pil", ["JPEG2000", "ICO", "PPM", "QOI", "DDS", "PDF", "EPS", "ICNS"])
def test_what_is_an_image_but_not_decoded_is_named(pil: str) -> None:
    name = {"JPEG2000": "jp2", "PPM": "pnm"}.get(pil, pil.lower())
    assert sniff(encoded(picture(32, 32), pil)) == name
    assert name not in DECODED


@pytest.mark.parametrize("major", [b"avif", b"avis", b"mif1", b"miaf", b"msf1", b"MA1B", b"heic"])
def test_avif_is_known_by_any_of_its_brands(major: bytes) -> None:
    assert sniff(ftyp(major, b"mif1", b"miaf", b"avif")) == "avif"
    assert sniff(ftyp(major, b"miaf", b"avis")) == "avif"


@pytest.mark.parametrize("major", [b"heic", b"heix", b"hevc", b"mif1", b"msf1", b"miaf"])
def test_heif_without_av1_is_heic(major: bytes) -> None:
    assert sniff(ftyp(major, b"mif1", b"heic")) == "heic"


@pytest.mark.parametrize("size", [0, 1, 8, 11, 16, 2**32 - 1])
def test_the_size_of_the_brands_box_may_lie(size: int) -> None:
    data = size.to_bytes(4, "big") + ftyp(b"avif", b"mif1")[4:]
    assert sniff(data) == "avif"


@pytest.mark.parametrize(
    "head",
    [
        b"<svg xmlns='http://www.w3.org/2000/svg'/>",
        b"\xef\xbb\xbf<?xml version='1.0'?>\n<!-- a drawing -->\n<svg>",
        b'<?xml version="1.0"?><!DOCTYPE svg PUBLIC "-//W3C//DTD SVG 1.1//EN" "x.dtd">\n<svg width="1">',
        b"<svg:svg xmlns:svg='http://www.w3.org/2000/svg'>",
    ],
)
def test_drawings_are_svg(head: bytes) -> None:
    assert sniff(head) == "svg"


@pytest.mark.parametrize(
    "head",
    [
        b"",
        b"\0" * 64,
        b"<!doctype html><svg></svg>",
        b"<html><body><svg></svg></body></html>",
        b"BMW is a maker of cars and motorcycles",
        b"GIF is a format",
        b"RIFF\0\0\0\0WAVEfmt ",
        b'{"error": "gone"}',
        ftyp(b"isom", b"iso2", b"mp41"),
        ftyp(b"qt  "),
        b"\0\0\1\0",
    ],
)
def test_what_is_no_image_is_none(head: bytes) -> None:
    assert sniff(head) is None


def test_any_bytes_have_an_answer() -> None:
    generator = np.random.default_rng(0)
    answers = set()
    heads = [encoded(Image.new("RGB", (9, 9)), pil)[:64] for pil in PILLOW.values()] + [ftyp(b"mif1", b"avif")]
    for _ in range(3000):
        head = bytearray(heads[generator.integers(len(heads))][: generator.integers(0, 65)])
        for place in generator.integers(0, len(head) or 1, 3):
            head[place : place + 1] = bytes(generator.integers(0, 256, 1, dtype=np.uint8))
        answers.add(sniff(bytes(head)))
    assert {None, *DECODED} <= answers <= {None, *DECODED, "heic"}


def test_hostile_text_takes_no_time() -> None:
    for head in (b"<!--" * 2000, b"<?xml " * 1000, b"<!DOCTYPE svg [" * 500, b"<!---->" * 700, b" " * 5000):
        assert sniff(head) is None


def test_the_module_is_cheap_to_import() -> None:
    code = (
        "import sys, catalog.image_formats; print([m for m in ('cv2', 'PIL', 'numpy', 'pyarrow') if m in sys.modules])"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert out.strip() == "[]"
