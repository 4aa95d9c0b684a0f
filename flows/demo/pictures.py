"""Render and encode one image of the planted web: from a crop of a photograph to the bytes of a file."""

import gzip
import io
import struct
import zlib
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Final, Literal

import numpy as np

from flows.demo.photographs import Box, Pixels, pixels

Look = Literal["plain", "mono", "warm", "cool", "dark", "bright", "faded"]
LOOKS: Final[tuple[Look, ...]] = ("plain", "mono", "warm", "cool", "dark", "bright", "faded")
LOOK_SHARES: Final = (0.76, 0.04, 0.04, 0.04, 0.04, 0.04, 0.04)
_TONES: Final[dict[Look, tuple[tuple[float, float, float], float]]] = {
    "plain": ((1.0, 1.0, 1.0), 0),
    "mono": ((1.0, 1.0, 1.0), 0),
    "warm": ((1.08, 1.0, 0.86), 0),
    "cool": ((0.88, 0.99, 1.10), 0),
    "dark": ((0.70, 0.70, 0.70), 0),
    "bright": ((0.90, 0.90, 0.90), 35),
    "faded": ((0.78, 0.76, 0.72), 35),
}
"""The factor and the offset of red, green and blue for each look."""

GZIP_BOMB_BYTES: Final = 128 * 2**20
ODD_ENCODINGS: Final = ("grey", "cmyk", "progressive", "exif", "png16", "palette", "alpha", "polyglot")
EXTENSION: Final = {"png16": "png", "palette": "png", "alpha": "png", "png": "png", "webp": "webp"}
"""File extensions of encodings; any other encoding is a JPEG."""


@dataclass(frozen=True, slots=True)
class Picture:
    """A complete description of one file: the same description gives the same bytes in any process."""

    file: str
    photograph: str
    box: Box
    flipped: bool
    look: Look
    tone: float
    """Factor on brightness: 0.9 to 1.1."""
    short_px: int
    encoding: str
    quality: int


@dataclass(frozen=True, slots=True)
class Copy:
    """An image that was decoded, cropped slightly, scaled and saved again under another name."""

    file: str
    crop: tuple[float, float, float, float]
    """The margins cut off left, top, right and bottom, as fractions of width and height."""
    scale: float
    encoding: str
    quality: int


def render(picture: Picture) -> Pixels:
    """Return the pixels of an image before encoding: uint8 (height, width, 3), RGB."""
    import cv2

    left, top, right, bottom = picture.box
    crop = pixels(picture.photograph)[top:bottom, left:right]
    scale = picture.short_px / min(crop.shape[:2])
    size = (max(1, round(crop.shape[1] * scale)), max(1, round(crop.shape[0] * scale)))
    image: Any = cv2.resize(crop, size, interpolation=cv2.INTER_AREA if scale < 1 else cv2.INTER_CUBIC)
    if picture.flipped:
        image = cv2.flip(image, 1)
    if picture.look == "mono":
        image = cv2.cvtColor(cv2.cvtColor(image, cv2.COLOR_RGB2GRAY), cv2.COLOR_GRAY2RGB)
    factors, offset = _TONES[picture.look]
    levels = np.arange(256)[:, None] * np.asarray(factors) * picture.tone + offset
    return np.asarray(cv2.LUT(image, np.clip(levels, 0, 255).astype(np.uint8)[None]), dtype=np.uint8)


def encode(image: Pixels, encoding: str, quality: int) -> bytes:
    """Encode an RGB image, uint8 (height, width, 3). `encoding`: jpg, png, webp or one of ODD_ENCODINGS."""
    import cv2

    if encoding in ODD_ENCODINGS:
        return _odd(image, encoding, quality)
    options = {
        "jpg": [cv2.IMWRITE_JPEG_QUALITY, quality],
        "png": [cv2.IMWRITE_PNG_COMPRESSION, 3],
        "webp": [cv2.IMWRITE_WEBP_QUALITY, quality],
    }[encoding]
    done, data = cv2.imencode(f".{encoding}", cv2.cvtColor(image, cv2.COLOR_RGB2BGR), options)
    assert done, encoding
    return bytes(data)


def encode_again(data: bytes, copy: Copy) -> bytes:
    """Return the encoded copy of the image file `data`."""
    import cv2

    decoded: Any = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)
    image = cv2.cvtColor(decoded, cv2.COLOR_BGR2RGB)
    high, wide = image.shape[:2]
    left, top, right, bottom = copy.crop
    image = image[round(top * high) : high - round(bottom * high), round(left * wide) : wide - round(right * wide)]
    size = (max(1, round(image.shape[1] * copy.scale)), max(1, round(image.shape[0] * copy.scale)))
    scaled = cv2.resize(image, size, interpolation=cv2.INTER_AREA if copy.scale < 1 else cv2.INTER_CUBIC)
    return encode(np.asarray(scaled, dtype=np.uint8), copy.encoding, copy.quality)


@lru_cache(maxsize=1)
def assets() -> dict[str, bytes]:
    """Return name -> content of the files that are not images or are malicious; deterministic."""
    noise = np.random.default_rng(0).integers(1, 256, 20_000, dtype=np.uint8).tobytes()
    flat = np.full((240, 320, 3), 255, np.uint8)
    return {
        "bomb-header.png": _png(30_000, 30_000, b""),
        "bomb-flat.png": _png(12_000, 12_000, b"\0" * (12_000 * (1 + 12_000 // 8))),
        "bomb.gz": gzip.compress(bytes(GZIP_BOMB_BYTES), 6, mtime=0),
        "pixel.png": encode(flat[:1, :1], "png", 0),
        "icon.png": encode(pixels("cat")[:24, :24], "png", 0),
        "hairline.png": encode(np.tile(pixels("brick wall")[:1], (1, 8, 1)), "png", 0),
        "blank-white.jpg": encode(flat, "jpg", 90),
        "blank-black.png": encode(flat * 0, "png", 0),
        "blank-sand.webp": encode(flat // 255 * np.asarray([210, 190, 150], np.uint8), "webp", 80),
        "svg.svg": b'<svg xmlns="http://www.w3.org/2000/svg" width="400" height="300"><circle r="90"/></svg>',
        "garbled.png": _png(400, 300, noise, packed=True),
    }


def _odd(image: Pixels, encoding: str, quality: int) -> bytes:
    from PIL import Image

    picture = Image.fromarray(image)
    buffer = io.BytesIO()
    match encoding:
        case "grey":
            picture.convert("L").save(buffer, "JPEG", quality=quality)
        case "cmyk":
            picture.convert("CMYK").save(buffer, "JPEG", quality=quality)
        case "progressive":
            picture.save(buffer, "JPEG", quality=quality, progressive=True)
        case "exif":
            exif = Image.Exif()
            exif[0x0112] = 6  # orientation: the stored image is rotated by 90 degrees
            picture.save(buffer, "JPEG", quality=quality, exif=exif)
        case "png16":
            return _png16(image)
        case "palette":
            picture.quantize(128).save(buffer, "PNG")
        case "alpha":
            picture.putalpha(Image.linear_gradient("L").resize(picture.size).point(lambda level: 160 + level // 3))
            picture.save(buffer, "PNG")
        case _:
            picture.save(buffer, "JPEG", quality=quality)
            buffer.write(b"PK\5\6" + bytes(18))  # an empty zip archive, which is legal after the end of a JPEG
    return buffer.getvalue()


def _png16(image: Pixels) -> bytes:
    import cv2

    done, data = cv2.imencode(".png", cv2.cvtColor(image, cv2.COLOR_RGB2BGR).astype(np.uint16) * 257)
    assert done
    return bytes(data)


def _png(width: int, height: int, rows: bytes, packed: bool = False) -> bytes:
    """Return a PNG with one bit a pixel, in which 144 megapixels take 18 kB. `packed`: the packed rows."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"IDAT", rows if packed else zlib.compress(rows, 9))
        + chunk(b"IEND", b"")
    )
