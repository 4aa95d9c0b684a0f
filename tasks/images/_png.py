"""PNG: parse its chunks, decode only the picture with Pillow.

Text, profiles and other ancillary data never reach a decoder, so they cannot make a picture fail.
Checksums are handled as in libpng: an ancillary chunk with a wrong one is dropped, a critical one is an error.
"""

import io
import struct
import zlib
from collections.abc import Callable
from typing import Any, Final, NamedTuple

import cv2
import numpy as np
from PIL import PngImagePlugin

from tasks.images._base import (
    MAX_PIECES,
    STRIP_ROWS,
    Header,
    Pixels,
    broken,
    grey_to_rgb,
    imdecode,
    in_strips,
    on_white,
    orientation_of,
    too_many_pieces,
)

_SIGNATURE: Final = b"\x89PNG\r\n\x1a\n"
_MODES: Final = {
    **{(1, 0): "1", (2, 0): "L", (4, 0): "L", (8, 0): "L", (16, 0): "I;16"},
    **{(8, 2): "RGB", (16, 2): "RGB"},
    **{(depth, 3): "P" for depth in (1, 2, 4, 8)},
    **{(8, 4): "LA", (16, 4): "RGBA", (8, 6): "RGBA", (16, 6): "RGBA"},
}
"""(bit depth, colour type) -> Pillow's mode."""
_PIXEL_BYTES: Final = {"1": 5, "L": 5, "P": 5, "I;16": 6, "LA": 8, "RGB": 8, "RGBA": 8}
_KEYED_16_BIT_BYTES: Final = 10
_PIECE_BYTES: Final = 1 << 20


class Png(NamedTuple):
    """The parsed chunks."""

    header: Header
    depth: int
    ihdr: bytes
    palette: bytes | None
    transparency: bytes | None
    """The content of tRNS."""
    data: list[memoryview]
    """The IDAT chunks, each with its length, type and checksum. The last one may be truncated."""


def read(data: bytes) -> Png:
    """Parse the chunks. Raises ImageError: truncated, undecodable, too_complex."""
    found: dict[bytes, bytes] = {}
    pixels: list[memoryview] = []
    view, at = memoryview(data), len(_SIGNATURE)
    for _ in range(MAX_PIECES):
        kind, end = data[at + 4 : at + 8], at + 12 + int.from_bytes(data[at : at + 4], "big")
        if len(kind) < 4 or kind == b"IEND" or not kind.isalpha():
            break  # the rest is not a chunk
        if kind == b"IDAT":
            pixels.append(view[at:end])
        elif kind in (b"IHDR", b"PLTE", b"tRNS", b"eXIf") and kind not in found and not pixels:
            if _sound(view[at:end]):
                found[kind] = data[at + 8 : end - 4]
            elif kind.isupper():
                raise broken(f"wrong checksum of {kind.decode()}", "png", end > len(data))
        at = end
    else:
        raise too_many_pieces("png", "chunks")
    early = at >= len(data)
    if len(found.get(b"IHDR", b"")) != 13:
        raise broken("no header", "png", early)
    header, depth = _header(found[b"IHDR"], found.get(b"tRNS"), orientation_of(found.get(b"eXIf")))
    if not pixels:
        raise broken("no pixels", "png", early)
    return Png(header, depth, found[b"IHDR"], found.get(b"PLTE"), found.get(b"tRNS"), pixels)


def _sound(chunk: memoryview) -> bool:
    """Return whether a chunk is complete and its checksum correct."""
    whole = len(chunk) == int.from_bytes(chunk[:4], "big") + 12
    return whole and zlib.crc32(chunk[4:-4]) == int.from_bytes(chunk[-4:], "big")


def _cut(chunk: memoryview) -> bool:
    return len(chunk) < int.from_bytes(chunk[:4], "big") + 12


def _header(ihdr: bytes, transparency: bytes | None, orientation: int) -> tuple[Header, int]:
    width, height, depth, colour = struct.unpack_from(">IIBB", ihdr)
    mode = _MODES.get((depth, colour))
    if mode is None:
        raise broken(f"{depth} bits of colour type {colour}", "png")
    if not 0 < width < 1 << 31 or not 0 < height < 1 << 31:
        raise broken(f"{width} x {height} pixels", "png")
    if orientation >= 5:
        width, height = height, width
    keyed = mode == "RGB" and depth == 16 and transparency is not None
    return Header("png", width, height, mode, orientation, _KEYED_16_BIT_BYTES if keyed else _PIXEL_BYTES[mode]), depth


def decode(png: Png) -> Pixels:
    """Return the picture before orientation. Raises ImageError."""
    alone = _picture(png)
    key = _key(png)
    if key is not None and png.header.mode == "RGB" and png.depth == 16:
        return _keyed_16_bit(alone, key)
    image = _load(alone)
    width, height = image.size

    def strip(top: int, bottom: int) -> Any:
        return np.asarray(image.crop((0, top, width, min(height, bottom))))

    if png.header.mode in ("LA", "RGBA"):
        return on_white(
            height, width, lambda top, bottom: np.asarray(image.crop((0, top, width, bottom)).convert("RGBA"))
        )
    if png.header.mode == "P":
        return _paletted(png, height, width, strip)
    if png.header.mode == "RGB":
        return in_strips(height, width, lambda top, bottom: _keyed(strip(top, bottom), key))
    return in_strips(height, width, lambda top, bottom: grey_to_rgb(_grey(strip(top, bottom), png, key)))


def _check_stream(png: Png) -> None:
    """Raise ImageError if compressed data in a chunk with a wrong checksum also fails its own (Adler-32) checksum."""
    width, height = struct.unpack_from(">II", png.ihdr)
    left = height * (width * 8 + 16) + _PIECE_BYTES
    stream = zlib.decompressobj()
    try:
        for chunk in png.data:
            rest: bytes | memoryview = _content(chunk)
            while len(rest) and not stream.eof and left > 0:
                left -= len(stream.decompress(rest, _PIECE_BYTES))
                rest = stream.unconsumed_tail
    except zlib.error as error:
        raise broken(f"wrong checksum of IDAT, and {error}", "png") from error
    if not stream.eof:
        raise broken("wrong checksum of IDAT, and no end of its data", "png")


def _load(data: bytes) -> Any:
    """Return Pillow's image, loaded."""
    try:
        image = PngImagePlugin.PngImageFile(io.BytesIO(data))
        image.load()
    except Exception as error:  # Pillow raises a dozen kinds on hostile bytes
        raise broken(error, "png") from error
    return image


def _picture(png: Png) -> bytes:
    """Return a PNG of only header, palette and pixels, with correct checksums. Raises ImageError: undecodable."""
    sound = [_sound(chunk) for chunk in png.data]
    if not all(good or _cut(chunk) for good, chunk in zip(sound, png.data, strict=True)):
        _check_stream(png)
    parts: list[bytes | memoryview] = [_SIGNATURE, *_chunk(b"IHDR", png.ihdr)]
    if png.palette is not None and png.header.mode == "P":
        parts += _chunk(b"PLTE", png.palette)
    for good, chunk in zip(sound, png.data, strict=True):
        parts += [chunk] if good else _chunk(b"IDAT", _content(chunk))
    return b"".join([*parts, *_chunk(b"IEND", b"")])


def _content(chunk: memoryview) -> memoryview:
    return chunk[8 : 8 + int.from_bytes(chunk[:4], "big")]


def _chunk(kind: bytes, body: bytes | memoryview) -> tuple[bytes | memoryview, ...]:
    return struct.pack(">I", len(body)), kind, body, struct.pack(">I", zlib.crc32(body, zlib.crc32(kind)))


# ---- transparency


def _key(png: Png) -> tuple[int, ...] | None:
    """Return the value of the transparent colour, as stored: its lowest `depth` bits, as in libpng."""
    count = {"1": 1, "L": 1, "I;16": 1, "RGB": 3}.get(png.header.mode)
    if count is None or png.transparency is None or len(png.transparency) < 2 * count:
        return None
    return tuple(value & ((1 << png.depth) - 1) for value in struct.unpack_from(f">{count}H", png.transparency))


def _grey(strip: Any, png: Png, key: tuple[int, ...] | None) -> Pixels:
    """Convert a strip of 1 to 16 bits of grey to 8 (the upper 8 of 16), with the transparent value white."""
    if png.header.mode == "I;16":
        grey = (strip >> 8).astype(np.uint8)
        return grey if key is None else np.where(strip == key[0], np.uint8(255), grey)
    grey = strip.astype(np.uint8) * np.uint8(255) if strip.dtype == bool else strip
    if key is None:
        return np.asarray(grey)
    return np.where(grey == key[0] * 255 // ((1 << png.depth) - 1), np.uint8(255), grey)


def _keyed(strip: Pixels, key: tuple[int, ...] | None) -> Pixels:
    if key is None:
        return strip
    return np.where((strip == np.array(key, np.uint8)).all(axis=2, keepdims=True), np.uint8(255), strip)


def _keyed_16_bit(data: bytes, key: tuple[int, ...]) -> Pixels:
    """Decode with OpenCV: Pillow returns only the upper 8 bits, and the key has 16."""
    pixels = imdecode(data, cv2.IMREAD_UNCHANGED, "png")[..., ::-1]
    wanted = np.array(key, np.uint16)

    def strip(top: int, bottom: int) -> Pixels:
        rows = pixels[top:bottom]
        return np.where((rows == wanted).all(axis=2, keepdims=True), np.uint8(255), (rows >> 8).astype(np.uint8))

    return in_strips(len(pixels), pixels.shape[1], strip)


def _paletted(png: Png, height: int, width: int, strip: Callable[[int, int], Pixels]) -> Pixels:
    """Apply the palette; missing entries are black, transparent ones are composited on white."""
    if not png.palette or len(png.palette) < 3:
        raise broken("no palette", "png")
    table = np.zeros((1, 256, 4), np.uint8)
    table[..., 3] = 255
    colours = np.frombuffer(png.palette[: len(png.palette) // 3 * 3][:768], np.uint8).reshape(-1, 3)
    table[0, : len(colours), :3] = colours
    alpha = np.frombuffer((png.transparency or b"")[:256], np.uint8)
    table[0, : len(alpha), 3] = alpha
    shown = _blended(table[0])
    result = in_strips(height, width, lambda top, bottom: _looked_up(strip(top, bottom), shown))
    if not len(alpha) or alpha.all() or _any_visible(height, strip, table[0, :, 3]):
        return result
    return on_white(height, width, lambda top, bottom: table[0, strip(top, bottom)])


def _blended(rgba: Pixels) -> Pixels:
    alpha = rgba[:, 3:].astype(np.uint16)
    return np.asarray((rgba[:, :3] * alpha + 255 * (255 - alpha) + 127) // 255).astype(np.uint8)


def _any_visible(height: int, strip: Callable[[int, int], Pixels], alpha: Pixels) -> bool:
    return any(cv2.LUT(strip(top, top + STRIP_ROWS), alpha).any() for top in range(0, height, STRIP_ROWS))


def _looked_up(indices: Pixels, colours: Pixels) -> Pixels:
    return np.asarray(cv2.merge([cv2.LUT(indices, np.ascontiguousarray(colours[:, c])) for c in range(3)]))
