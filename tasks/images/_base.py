"""The base of all formats' decoders: limits, headers, errors, orientation and transparency."""

import os
import struct
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final, NamedTuple

MAX_PIXELS: Final = 1 << 27
"""The largest limit on pixels. OpenCV enforces it too, in case it parses another size than we do."""
os.environ.setdefault("OPENCV_IO_MAX_IMAGE_PIXELS", str(MAX_PIXELS))

import cv2  # noqa: E402  (reads the variable above)
import numpy as np  # noqa: E402

cv2.setNumThreads(1)  # stages control the number of threads

Pixels = np.ndarray[Any, np.dtype[Any]]
"""uint8 (height, width, 3), RGB, C-contiguous."""

STRIP_ROWS: Final = 256
"""Rows that are converted at once, so that no second copy of a large picture is made."""
_STRIP_PIXELS: Final = 1 << 19
"""The same, for wide pictures."""
MAX_PIECES: Final = 1 << 16
"""Limit of segments, chunks or blocks of one file. A megabyte of metadata takes 16 JPEG segments; thousands of empty
ones are an attack on the reader's time."""
_EXIF_ORIENTATION: Final = 0x0112
_KINDS: Final = {1: "B", 3: "H", 4: "I"}
"""EXIF types of the orientation: byte, short (the standard) and long."""


class ImageError(Exception):
    """Bytes could not be decoded. `reason` is one of not_an_image, unsupported_format, truncated, undecodable,
    unencodable, too_many_pixels, too_long_side, too_complex, decode_timeout; `detail` is the evidence."""

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(reason, detail)
        self.reason = reason
        self.detail = detail


@dataclass(frozen=True, slots=True)
class Limits:
    """Limits of the pictures that are decoded. `Header.decode_bytes` is the memory that decoding takes."""

    max_pixels: int = 50_000_000
    max_side_px: int = 32_768


class Header(NamedTuple):
    """The header of an image. Width and height are those of the upright picture."""

    format: str
    """A member of `catalog.image_formats.DECODED`."""
    width: int
    height: int
    mode: str
    """Pillow's: L, RGB, CMYK, P, RGBA, ..."""
    orientation: int
    """EXIF's 1..8; 1 is upright."""
    pixel_bytes: int = 8
    """Memory per pixel during decoding, including the result: measured, see tests."""
    table_bytes: int = 0
    """Memory that decoding may take in addition."""
    bounded: bool = True
    """Whether pixels and bytes bound the CPU time of decoding. If not, `DecoderProcesses` limits it."""

    @property
    def decode_bytes(self) -> int:
        """Return the maximum memory of decoding, without the compressed bytes."""
        return self.width * self.height * self.pixel_bytes + self.table_bytes


def check(header: Header, limits: Limits) -> None:
    """Raise ImageError if a header exceeds the limits."""
    width, height = header.width, header.height
    if max(width, height) > limits.max_side_px:
        raise ImageError("too_long_side", f"{width} x {height}, limit {limits.max_side_px} a side")
    if width * height > limits.max_pixels:
        raise ImageError("too_many_pixels", f"{width} x {height}, limit {limits.max_pixels}")


def too_many_pieces(format_: str, what: str) -> ImageError:
    """Return the error for a file with too many structural elements."""
    return ImageError("too_complex", f"{format_}: more than {MAX_PIECES} {what}")


def broken(error: Exception | str | None, format_: str, early: bool = False) -> ImageError:
    """Return the error for a file that could not be decoded; `early`: because it is truncated."""
    text = " ".join(str(error or "no picture").split()) or type(error).__name__
    early = early or any(sign in text.lower() for sign in ("truncated", "unexpected end"))
    return ImageError("truncated" if early else "undecodable", f"{format_}: {text[:160]}")


def orientation_of(exif: bytes | None) -> int:
    """Return the orientation in an EXIF block, 1..8; 1 if it is missing or the block is damaged.

    Only the first directory's entries are read: a hostile block can make a general reader copy megabytes per entry.
    """
    block = exif or b""
    if block[:6] == b"Exif\0\0":
        block = block[6:]
    order = {b"II": "<", b"MM": ">"}.get(block[:2])
    if order is None or len(block) < 10:
        return 1
    (at,) = struct.unpack_from(order + "I", block, 4)
    if at + 2 > len(block):
        return 1
    (count,) = struct.unpack_from(order + "H", block, at)
    entries = block[at + 2 : at + 2 + 12 * count]
    for tag, kind, values, value in struct.iter_unpack(order + "HHI4s", entries[: len(entries) // 12 * 12]):
        if tag == _EXIF_ORIENTATION:
            found = struct.unpack_from(order + _KINDS[kind], value)[0] if kind in _KINDS and values == 1 else 1
            return found if 1 <= found <= 8 else 1
    return 1


def upright(pixels: Pixels, orientation: int) -> Pixels:
    """Apply an EXIF orientation."""
    if orientation == 1:
        return pixels
    if orientation >= 5:
        pixels = pixels.transpose(1, 0, 2)
    if orientation in (3, 4, 7, 8):
        pixels = pixels[::-1]
    if orientation in (2, 3, 6, 7):
        pixels = pixels[:, ::-1]
    return np.ascontiguousarray(pixels)


def imdecode(data: bytes, flags: int, format_: str, early: bool = False) -> Pixels:
    """Decode with OpenCV. Raises ImageError."""
    try:
        pixels = cv2.imdecode(np.frombuffer(data, np.uint8), flags)
    except cv2.error as error:
        raise broken(error, format_, early) from error
    if pixels is None:
        raise broken(None, format_, early)
    return np.asarray(pixels)


def grey_to_rgb(grey: Pixels) -> Pixels:
    """Repeat one channel three times, uint8."""
    return np.asarray(cv2.cvtColor(np.ascontiguousarray(grey), cv2.COLOR_GRAY2RGB))


def in_strips(height: int, width: int, strip: Callable[[int, int], Pixels]) -> Pixels:
    """Assemble a picture from `strip(top, bottom)`, uint8 (rows, width, 3)."""
    result = np.empty((height, width, 3), np.uint8)
    rows = max(1, min(STRIP_ROWS, _STRIP_PIXELS // width))
    for top in range(0, height, rows):
        bottom = min(height, top + rows)
        result[top:bottom] = strip(top, bottom)
    return result


def on_white(height: int, width: int, strip: Callable[[int, int], Pixels], alpha_may_be_junk: bool = False) -> Pixels:
    """Assemble a picture from `strip(top, bottom)`, uint8 (rows, width, 4), RGBA, composited on white.

    If alpha is 0 at every pixel and the colours differ, alpha counts as unused, and the colours are the picture; with a
    single colour, the picture is white. With `alpha_may_be_junk` (BMP, whose fourth byte has no meaning in most files)
    the colours are used in either case.
    """
    seen = False

    def blended(top: int, bottom: int) -> Pixels:
        nonlocal seen
        rgba = strip(top, bottom)
        alpha = rgba[..., 3:]
        seen = seen or bool(alpha.any())
        if alpha.min() == 255:
            return rgba[..., :3]
        alpha = alpha.astype(np.uint16)
        return np.asarray((rgba[..., :3] * alpha + 255 * (255 - alpha) + 127) // 255)

    result = in_strips(height, width, blended)
    if seen:
        return result
    colours = in_strips(height, width, lambda top, bottom: strip(top, bottom)[..., :3])
    return result if _flat(colours) and not alpha_may_be_junk else colours


def _flat(colours: Pixels) -> bool:
    return all((colours[top : top + STRIP_ROWS] == colours[0, 0]).all() for top in range(0, len(colours), STRIP_ROWS))
