"""Images for tests: smooth random pictures, their encoded forms, and files that lie."""

import io
import struct
import zlib
from typing import Any

import numpy as np
from PIL import Image


def picture(width: int = 320, height: int = 240, seed: int = 0) -> Any:
    """Return a smooth colourful picture, uint8 (height, width, 3)."""
    cells = np.random.default_rng(seed).integers(0, 255, (6, 8, 3), dtype=np.uint8)
    return np.asarray(Image.fromarray(cells).resize((width, height), Image.Resampling.BICUBIC))


def encoded(pixels: Any, format_: str = "JPEG", **options: Any) -> bytes:
    """Return the picture as Pillow encodes it."""
    image = pixels if isinstance(pixels, Image.Image) else Image.fromarray(pixels)
    out = io.BytesIO()
    image.save(out, format_, **options)
    return out.getvalue()


def jpeg(width: int = 320, height: int = 240, seed: int = 0, quality: int = 90, **options: Any) -> bytes:
    """Return a JPEG of a smooth picture."""
    return encoded(picture(width, height, seed), quality=quality, **options)


def png_bomb(width: int = 30_000, height: int = 30_000, rows: int = 20) -> bytes:
    """Return a small PNG whose header announces width x height."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    pixels = zlib.compress(bytes((3 * width + 1) * rows), 9)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")


def jpeg_bomb(width: int, height: int, scans: int, which: int = 5, empty: bool = False) -> bytes:
    """Return a progressive JPEG whose scan number `which` comes `scans` times more, with its data or without."""
    data = jpeg(width, height, progressive=True)
    starts = [at for at in range(len(data)) if data[at : at + 2] == b"\xff\xda"]
    start = starts[which]
    following = [data.find(b"\xff\xc4", start), *starts[which + 1 : which + 2], len(data) - 2]
    end = min(at for at in following if at > 0)
    if empty:
        end = start + 2 + int.from_bytes(data[start + 2 : start + 4], "big")
    return data[:-2] + data[start:end] * scans + b"\xff\xd9"


def orientation_exif(orientation: int) -> bytes:
    """Return an EXIF block that says only this."""
    exif = Image.Exif()
    exif[0x0112] = orientation
    return exif.tobytes()


def slow_bmp(width: int = 4000, height: int = 2200) -> bytes:
    """Return a run-length encoded BMP of 17 MB: every pixel is a run, and for Pillow's decoder a step in Python."""
    row = b"\1\x42" * width + b"\0\0"
    palette = b"".join(bytes([i, i ^ 1, i, 0]) for i in range(256))
    pixels = row * height + b"\0\1"
    info = struct.pack("<IiiHHIIiiII", 40, width, height, 1, 8, 1, len(pixels), 0, 0, 256, 0)
    at = 14 + len(info) + len(palette)
    return b"BM" + struct.pack("<IHHI", at + len(pixels), 0, 0, at) + info + palette + pixels
