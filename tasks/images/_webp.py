"""WebP: parse its chunks, decode only the picture, or an animation's first frame, with OpenCV (libwebp)."""

import struct
from collections.abc import Iterator
from typing import Final, NamedTuple

import cv2
import numpy as np

from tasks.images._base import MAX_PIECES, Header, Pixels, broken, imdecode, on_white, orientation_of, too_many_pieces

_ALPHA: Final = 0x10
_LOSSLESS: Final = 0x2F
_GROUP_BYTES: Final = 5 * 256 * 4 + 600


class Webp(NamedTuple):
    """The parsed chunks."""

    header: Header
    still: bytes
    """A WebP of only the (first) frame, without metadata."""
    place: tuple[int, int]
    """The position of the frame on the canvas: left, top."""
    frame: tuple[int, int]
    """The frame's width and height."""
    early: bool
    """Whether the file is shorter than its header claims."""


def read(data: bytes) -> Webp:
    """Parse the chunks. Raises ImageError: truncated, undecodable, too_complex."""
    early = int.from_bytes(data[4:8], "little") + 8 > len(data)
    canvas: tuple[int, int] | None = None
    place, orientation = (0, 0), 1
    picture: dict[bytes, memoryview] = {}
    for kind, body in _chunks(memoryview(data)[12:]):
        if kind == b"VP8X" and len(body) >= 10 and canvas is None:
            canvas = _uint24(body, 4) + 1, _uint24(body, 7) + 1
        elif kind == b"ANMF" and len(body) >= 16 and not picture:
            place = 2 * _uint24(body, 0), 2 * _uint24(body, 3)
            picture = _image(_chunks(body[16:]))
        elif kind in (b"ALPH", b"VP8 ", b"VP8L"):
            if not {b"VP8 ", b"VP8L"} & picture.keys():
                picture.setdefault(kind, body)
        elif kind == b"EXIF" and orientation == 1:
            orientation = orientation_of(bytes(body[:MAX_PIECES]))
    frame, alpha = _size(picture, early)
    width, height = canvas or frame
    if place[0] + frame[0] > width or place[1] + frame[1] > height:
        raise broken(f"a frame of {frame[0]} x {frame[1]} on {width} x {height}", "webp", early)
    transparent = alpha or frame != (width, height)
    if orientation >= 5:
        width, height = height, width
    lossless = b"VP8L" in picture
    pixel_bytes = (7 if transparent else 6) + (3 if lossless else 2)
    tables = _table_bytes(frame[0] * frame[1], len(picture[b"VP8L"])) if lossless else 0
    header = Header(
        "webp", width, height, "RGBA" if transparent else "RGB", orientation, pixel_bytes, table_bytes=tables
    )
    return Webp(header, _still(picture, frame, alpha), place, frame, early)


def _chunks(data: memoryview) -> Iterator[tuple[bytes, memoryview]]:
    at = 0
    for _ in range(MAX_PIECES):
        if at + 8 > len(data):
            return
        size = int.from_bytes(data[at + 4 : at + 8], "little")
        yield bytes(data[at : at + 4]), data[at + 8 : at + 8 + size]
        at += 8 + size + (size & 1)
    raise too_many_pieces("webp", "chunks")


def _image(chunks: Iterator[tuple[bytes, memoryview]]) -> dict[bytes, memoryview]:
    found: dict[bytes, memoryview] = {}
    for kind, body in chunks:
        if kind in (b"ALPH", b"VP8 ", b"VP8L"):
            found.setdefault(kind, body)
    return found


def _size(picture: dict[bytes, memoryview], early: bool) -> tuple[tuple[int, int], bool]:
    """Return the size of the coded frame, and whether it has an alpha channel."""
    lossless, lossy = picture.get(b"VP8L"), picture.get(b"VP8 ")
    if lossless is not None and len(lossless) >= 5 and lossless[0] == _LOSSLESS:
        (bits,) = struct.unpack_from("<I", lossless, 1)
        return ((bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1), bool(bits >> 28 & 1)
    if lossy is not None and len(lossy) >= 10 and bytes(lossy[3:6]) == b"\x9d\x01\x2a":
        width, height = struct.unpack_from("<HH", lossy, 6)
        if width & 0x3FFF and height & 0x3FFF:
            return (width & 0x3FFF, height & 0x3FFF), b"ALPH" in picture
    raise broken("no frame", "webp", early)


def _still(picture: dict[bytes, memoryview], frame: tuple[int, int], alpha: bool) -> bytes:
    parts: list[bytes | memoryview] = []
    if b"VP8L" in picture:
        parts += _chunk(b"VP8L", picture[b"VP8L"])
    else:
        if alpha:
            sides = b"".join((side - 1).to_bytes(3, "little") for side in frame)
            parts += [*_chunk(b"VP8X", bytes([_ALPHA, 0, 0, 0]) + sides), *_chunk(b"ALPH", picture[b"ALPH"])]
        parts += _chunk(b"VP8 ", picture[b"VP8 "])
    size = sum(map(len, parts))
    return b"".join([b"RIFF", struct.pack("<I", size + 4), b"WEBP", *parts])


def _chunk(kind: bytes, body: bytes | memoryview) -> tuple[bytes | memoryview, ...]:
    return kind, struct.pack("<I", len(body)), body, bytes(len(body) & 1)


def _table_bytes(pixels: int, size: int) -> int:
    """Return the maximum memory of the code tables of a lossless picture: a group of five for every 4 x 4 pixels, at
    most 65,536, of at least 256 entries of 4 bytes; a group takes 20 bits of the file or more."""
    groups = min(1 << 16, pixels // 16 + 1, size * 8 // 20 + 1)
    return groups * _GROUP_BYTES


def _uint24(data: memoryview, at: int) -> int:
    return int.from_bytes(data[at : at + 3], "little")


def decode(webp: Webp) -> Pixels:
    """Return the picture before orientation. Raises ImageError."""
    pixels = imdecode(webp.still, cv2.IMREAD_UNCHANGED, "webp", webp.early)
    width, height = webp.frame
    if pixels.shape[:2] != (height, width):
        raise broken(f"{pixels.shape[1]} x {pixels.shape[0]} pixels, announced {width} x {height}", "webp")
    if webp.header.mode == "RGB":
        code = cv2.COLOR_BGR2RGB if pixels.shape[2] == 3 else cv2.COLOR_BGRA2RGB
        return np.asarray(cv2.cvtColor(pixels, code, dst=pixels if pixels.shape[2] == 3 else None))
    return _composited(webp, pixels)


def _composited(webp: Webp, pixels: Pixels) -> Pixels:
    size = webp.header.width, webp.header.height
    width, height = size if webp.header.orientation < 5 else size[::-1]
    (left, top_), (wide, high) = webp.place, webp.frame

    def strip(top: int, bottom: int) -> Pixels:
        rows = np.zeros((bottom - top, width, 4), np.uint8)
        first, last = max(top, top_), min(bottom, top_ + high)
        if first < last:
            part = pixels[first - top_ : last - top_]
            inside = rows[first - top : last - top, left : left + wide]
            inside[..., :3] = part[..., 2::-1]
            inside[..., 3] = part[..., 3] if part.shape[2] == 4 else 255
        return rows

    return on_white(height, width, strip)
