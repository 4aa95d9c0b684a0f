"""The memory of decoding is within `Header.decode_bytes`, by which callers reserve it."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.pictures import encoded, picture

WIDTH, HEIGHT = 4000, 2500
SPARE = 40 << 20
"""Strips, tables and rounding of the allocator."""
CHILD = """
import sys
from tasks import images
def peak():
    return next(int(line.split()[1]) << 10 for line in open("/proc/self/status") if line.startswith("VmHWM"))
data = open(sys.argv[1], "rb").read()
header = images.inspect(data)
before = peak()
images.decode(data)
print(peak() - before, header.decode_bytes, len(data))
"""
QUICK = {
    "png": lambda: encoded(clear(), "PNG", compress_level=1),
    "webp": lambda: encoded(clear(), "WEBP", method=0),
    "progressive": lambda: encoded(picture(WIDTH, HEIGHT), progressive=True, subsampling=0),
}
SLOW = {
    "baseline": lambda: encoded(picture(WIDTH, HEIGHT)),
    "cmyk": lambda: encoded(Image.fromarray(picture(WIDTH, HEIGHT)).convert("CMYK"), progressive=True),
    "rgb png": lambda: encoded(picture(WIDTH, HEIGHT), "PNG", compress_level=1),
    "16 bits": lambda: encoded(Image.fromarray(picture(WIDTH, HEIGHT)[..., 0].astype(np.uint16)), "PNG"),
    "palette": lambda: encoded(Image.fromarray(picture(WIDTH, HEIGHT)).quantize(16, dither=Image.Dither.NONE), "PNG"),
    "lossless": lambda: encoded(clear(), "WEBP", method=0, lossless=True, exact=True, quality=0),
    "opaque webp": lambda: encoded(picture(WIDTH, HEIGHT), "WEBP", method=0),
    "gif": lambda: encoded(Image.fromarray(picture(WIDTH, HEIGHT)).quantize(16, dither=Image.Dither.NONE), "GIF"),
    "bmp": lambda: encoded(picture(WIDTH, HEIGHT), "BMP"),
    "tiff": lambda: encoded(clear(), "TIFF", compression="tiff_deflate"),
    "avif": lambda: encoded(clear(), "AVIF", speed=10, subsampling="4:4:4"),
    "wide": lambda: encoded(np.dstack([picture(30_000, 330), picture(30_000, 330)[..., 0]]), "PNG", compress_level=1),
}


def clear() -> np.ndarray:
    return np.dstack([picture(WIDTH, HEIGHT), picture(WIDTH, HEIGHT, 2)[..., 0]])


def measured(path: Path, data: bytes) -> None:
    path.write_bytes(data)
    out = subprocess.run([sys.executable, "-c", CHILD, str(path)], capture_output=True, text=True, check=True)
    taken, announced, size = map(int, out.stdout.split())
    assert taken < announced + 3 * size + SPARE
    assert taken > announced / 4 - SPARE  # no room is asked for without need


@pytest.mark.skipif(sys.platform != "linux", reason="reads its peak memory from /proc")
@pytest.mark.parametrize("kind", QUICK)
def test_memory_is_as_estimated(tmp_path: Path, kind: str) -> None:
    measured(tmp_path / "picture", QUICK[kind]())


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads its peak memory from /proc")
@pytest.mark.parametrize("kind", SLOW)
def test_memory_of_every_other_kind_is_as_estimated(tmp_path: Path, kind: str) -> None:
    measured(tmp_path / "picture", SLOW[kind]())
