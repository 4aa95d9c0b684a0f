"""Any mutation of a valid file of any format results in a picture or a reason."""

import random
import time
import zlib
from collections.abc import Callable, Iterator
from itertools import count

import numpy as np
import pytest
from PIL import Image

from tasks import images
from tasks.images.decoder_processes import DecoderProcesses
from tests.pictures import encoded, jpeg, orientation_exif, picture

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:PIL")  # Pillow warns about some broken files

LIMITS = images.Limits(4_000_000, 10_000)
REASONS = {
    *("not_an_image", "unsupported_format", "truncated", "undecodable"),
    *("too_many_pixels", "too_long_side", "too_complex"),
}
SLOW_S = 60
COLOURS = picture(70, 50)
RGBA = np.dstack([COLOURS, picture(70, 50, 2)[..., 0]])
FRAMES = [Image.fromarray(picture(70, 50, seed)) for seed in range(3)]
MOVING = {"save_all": True, "append_images": FRAMES[1:]}
WHOLE = {
    "jpg": [
        jpeg(70, 50, exif=orientation_exif(6), comment=b"hello", icc_profile=b"x" * 300),
        jpeg(70, 50, progressive=True, restart_marker_blocks=2),
        encoded(Image.fromarray(COLOURS).convert("CMYK")),
        encoded(Image.fromarray(COLOURS).convert("L"), progressive=True),
    ],
    "png": [
        encoded(COLOURS, "PNG", exif=orientation_exif(3)),
        encoded(RGBA, "PNG", icc_profile=b"x" * 300),
        encoded(Image.fromarray(COLOURS).quantize(16), "PNG", transparency=3),
        encoded(Image.fromarray(COLOURS[..., 0].astype(np.uint16) * 257), "PNG", transparency=77),
        encoded(FRAMES[0], "PNG", **MOVING),
    ],
    "webp": [
        encoded(COLOURS, "WEBP", exif=orientation_exif(8)),
        encoded(RGBA, "WEBP"),
        encoded(RGBA, "WEBP", lossless=True, exact=True),
        encoded(FRAMES[0], "WEBP", **MOVING),
    ],
    "gif": [encoded(FRAMES[0], "GIF", comment=b"hello", **MOVING), encoded(RGBA, "GIF")],
    "bmp": [encoded(COLOURS, "BMP"), encoded(Image.fromarray(COLOURS).quantize(16), "BMP"), encoded(RGBA, "BMP")],
    "tiff": [
        encoded(COLOURS, "TIFF", compression="tiff_lzw"),
        encoded(RGBA, "TIFF", compression="tiff_adobe_deflate"),
        encoded(COLOURS, "TIFF", compression="jpeg"),
        encoded(Image.fromarray(COLOURS).convert("1"), "TIFF", compression="group4"),
    ],
    "avif": [encoded(COLOURS, "AVIF"), encoded(RGBA, "AVIF"), encoded(FRAMES[0], "AVIF", **MOVING)],
}


def mutated(rng: random.Random, whole: bytes, others: list[bytes]) -> bytes:
    """Return a file after one to four random operations."""
    data = bytearray(whole)
    for _ in range(rng.randint(1, 4)):
        at = rng.randrange(len(data) + 1) if rng.random() < 0.5 else rng.randrange(min(len(data), 400) + 1)
        length = rng.choice([1, 2, 4, 16, 200])
        match rng.randrange(8):
            case 0 | 1:  # some bytes again
                data[at : at + length] = rng.randbytes(len(data[at : at + length]))
            case 2:  # a number at its extremes
                data[at : at + 4] = rng.choice(
                    [b"\xff\xff\xff\xff", bytes(4), b"\x7f\xff\xff\xff", b"\0\0\0\1", b"\x80"]
                )
            case 3:
                del data[at : at + length]
            case 4:
                data[at:at] = rng.randbytes(length)
            case 5:  # a piece again, or many times
                data[at:at] = data[at : at + length] * rng.choice([1, 1, 2, 1000])
            case 6:
                del data[at if at > 12 else len(data) :]
            case 7:  # a piece of another file
                other = rng.choice(others)
                start = rng.randrange(len(other))
                data[at : at + rng.choice([0, length])] = other[start : start + length * 8]
        if not data:
            return b""
    return bytes(data)


def checksummed(data: bytes) -> bytes:
    """Return a PNG with right checksums in its chunks, as far as they can be determined."""
    out, at = bytearray(data), 8
    while at + 12 <= len(out):
        end = at + 8 + int.from_bytes(out[at : at + 4], "big")
        out[end : end + 4] = zlib.crc32(out[at + 4 : end]).to_bytes(4, "big") if end + 4 <= len(out) else b""
        at = end + 4
    return bytes(out)


def outcomes(name: str, seed: int | str, stop: Callable[[], bool]) -> Iterator[str]:
    """Yield the reason, or "", of one mutated file after the other."""
    rng, others = random.Random(seed), [data for datas in WHOLE.values() for data in datas]
    with DecoderProcesses(30) as processes:
        decode = processes.decode if name in ("tiff", "avif") else images.decode
        while not stop():
            data = mutated(rng, rng.choice(WHOLE[name]), others)
            if data[:4] == b"\x89PNG" and rng.random() < 0.7:
                data = checksummed(data)
            try:
                pixels = decode(data, LIMITS)
                assert pixels.dtype == np.uint8
                assert pixels.ndim == 3
                assert pixels.shape[0] * pixels.shape[1] <= LIMITS.max_pixels
                yield ""
            except images.ImageError as error:
                yield error.reason


@pytest.mark.timeout(300)
@pytest.mark.parametrize("name", WHOLE)
def test_a_mutated_file_is_a_picture_or_a_reason(name: str) -> None:
    steps = count()
    most = 300 if name in ("tiff", "avif") else 1200
    found = list(outcomes(name, f"{name} 0", lambda: next(steps) == most))
    assert set(found) <= {"", *REASONS}
    assert found.count("") > 20  # else this tests little
    assert len(set(found)) > 2


@pytest.mark.slow
@pytest.mark.parametrize("name", WHOLE)
def test_mutated_files_for_a_minute(name: str) -> None:
    until, seed = time.monotonic() + SLOW_S, time.time_ns()
    print(f"{name}: seed {seed}")
    assert set(outcomes(name, seed, lambda: time.monotonic() > until)) <= {"", *REASONS}
