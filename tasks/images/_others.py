"""GIF, BMP, TIFF and AVIF: parse and decode with Pillow."""

import io
from collections.abc import Callable
from typing import Any, Final, Literal, NamedTuple

import numpy as np
from PIL import BmpImagePlugin, GifImagePlugin, TiffImagePlugin, _avif

from tasks.images._base import (
    MAX_PIECES,
    Header,
    ImageError,
    Pixels,
    broken,
    grey_to_rgb,
    in_strips,
    on_white,
    too_many_pieces,
)

UNBOUNDED: Final = frozenset(["avif", "tiff"])
"""Formats whose parsing and decoding is not bounded by pixels and bytes: an AVIF may hold hidden frames, a TIFF any of
a dozen compressions and nested directories."""
_PIXEL_BYTES: Final = {"gif": 5, "bmp": 8, "tiff": 20, "avif": 20}
_RLE_PIXEL_BYTES: Final = 10
_UNCOMPRESSED: Final = (0, 3)
_GRAPHIC_CONTROL: Final = 0xF9
_GIF_BLOCKS: Final = 16 * MAX_PIECES
"""Limit of blocks of at most 255 bytes: 267 MB of comments and extensions before the first frame."""


class Other(NamedTuple):
    """An opened file."""

    header: Header
    image: Any
    """Pillow's, or libavif's decoder."""


def read(format_: str, data: bytes) -> Other:
    """Open a file. Raises ImageError: truncated, undecodable, too_complex."""
    try:
        if format_ == "avif":
            return _open_avif(data)
        if format_ == "gif":
            data = _first_frame(data)
        if format_ == "tiff":
            data = _first_page(data)
        image: Any = _OPENERS[format_](io.BytesIO(data))
        width, height = image.size
    except ImageError:
        raise
    except Exception as error:  # Pillow raises a dozen types of errors on hostile headers
        raise broken(error, format_) from error
    if width < 1 or height < 1:
        raise ImageError("undecodable", f"{width} x {height} pixels")
    rle = format_ == "bmp" and image.info.get("compression") not in _UNCOMPRESSED
    pixel_bytes = _RLE_PIXEL_BYTES if rle else _PIXEL_BYTES[format_]
    # Orientation: Pillow applies that of a TIFF, and the other formats have none.
    header = Header(format_, width, height, image.mode, 1, pixel_bytes, bounded=not rle and format_ not in UNBOUNDED)
    return Other(header, image)


_OPENERS: Final[dict[str, Callable[[io.BytesIO], Any]]] = {
    "gif": GifImagePlugin.GifImageFile,
    "bmp": BmpImagePlugin.BmpImageFile,
    "tiff": TiffImagePlugin.TiffImageFile,
}
"""Opened by class and not by `Image.open`, which tries some forty formats and has a global limit on pixels."""


def decode(other: Other) -> Pixels:
    """Return the picture before orientation (TIFF: upright). Raises ImageError."""
    format_ = other.header.format
    try:
        if format_ == "avif":
            return _decode_avif(other)
        other.image.load()
        width, height = other.image.size
        if format_ != "tiff" and (width, height) != (other.header.width, other.header.height):
            raise broken(f"{width} x {height} pixels, announced {other.header.width} x {other.header.height}", format_)
        convert = _converter(other.image)
        if convert is not None:
            return in_strips(height, width, lambda top, bottom: convert(other.image.crop((0, top, width, bottom))))
        return on_white(
            height,
            width,
            lambda top, bottom: np.asarray(other.image.crop((0, top, width, bottom)).convert("RGBA")),
            alpha_may_be_junk=format_ == "bmp",
        )
    except ImageError:
        raise
    except MemoryError as error:
        raise ImageError("too_complex", f"{format_}: more memory than its pixels take") from error
    except Exception as error:  # Pillow raises a dozen types of errors on hostile bytes
        raise broken(error, format_) from error


def _converter(image: Any) -> Callable[[Any], Pixels] | None:
    """Return the function from a strip of an opaque `image` to uint8 (rows, width, 3); None if it is not opaque."""
    if image.has_transparency_data:
        return None
    if image.mode.startswith("I"):  # 16-bit grey, which Pillow may call 32-bit
        return lambda strip: grey_to_rgb((np.asarray(strip) >> 8).clip(0, 255).astype(np.uint8))
    if image.mode == "F":
        raise ImageError("undecodable", "floating-point pixels")
    return lambda strip: np.asarray(strip.convert("RGB"))


# ---- GIF


def _first_frame(data: bytes) -> bytes:
    """Return the file up to the first frame's pixels, without comments, extensions and trailing bytes.

    Pillow would read such blocks one at a time.
    """
    if len(data) < 13:
        raise broken("no screen descriptor", "gif", early=True)
    at = screen = 13 + (3 << (data[10] & 7) + 1 if data[10] & 0x80 else 0)
    control, blocks, junk = b"", 0, False
    while at < len(data) and blocks < _GIF_BLOCKS:
        blocks += 1
        kind = data[at]
        if kind == 0x2C:
            return data[:screen] + control + data[at:]
        if kind == 0x3B:
            break
        if kind != 0x21:  # not a block: skipped, as the next may be one
            at += 1
            junk = True
            continue
        label, start = data[at + 1 : at + 2], at
        at += 2
        while at < len(data) and data[at] and blocks < _GIF_BLOCKS:
            at += data[at] + 1
            blocks += 1
        at += 1
        if label == bytes([_GRAPHIC_CONTROL]) and at - start == 8:
            control = data[start:at]
    if blocks >= _GIF_BLOCKS:
        raise too_many_pieces("gif", f"x {_GIF_BLOCKS // MAX_PIECES} blocks")
    raise broken("no frame", "gif", early=at >= len(data) and not junk)


# ---- TIFF

_PICTURE_TAGS: Final = frozenset(
    [
        *(*range(254, 260), 262, 266, 273, 274, *range(277, 280), 284, 292, 293, 297, 301, 317),
        *(*range(320, 326), 332, 338, 339, 347, *range(512, 522), *range(529, 533)),
    ]
)
"""Tags that determine the pixels: sizes, compression, strips, tiles, colours, tables of JPEG, and the orientation."""


def _first_page(data: bytes) -> bytes:
    """Return the file with a directory of only the first page's picture: no profiles, EXIF, XMP, other pages.

    A BigTIFF is returned unchanged. Raises ImageError: truncated.
    """
    order: Literal["little", "big"] = "little" if data[:2] == b"II" else "big"
    at = int.from_bytes(data[4:8], order)
    if 42 not in data[2:4]:
        return data
    if at + 2 > len(data):
        raise broken("a directory behind the end", "tiff", early=True)
    count = int.from_bytes(data[at : at + 2], order)
    entries = (data[at + 2 + 12 * i : at + 14 + 12 * i] for i in range(count))
    kept = [e for e in entries if len(e) == 12 and int.from_bytes(e[:2], order) in _PICTURE_TAGS]
    directory = len(kept).to_bytes(2, order) + b"".join(kept) + bytes(4)
    return data[:4] + len(data).to_bytes(4, order) + data[8:] + directory


# ---- AVIF


def _open_avif(data: bytes) -> Other:
    """Open with libavif: Pillow's class would read EXIF, which is very slow for a hostile block, and copy twice.

    The orientation is that of the container (`irot`, `imir`), as in Pillow and in browsers.
    """
    decoder = _avif.AvifDecoder(data, "auto", 1)
    (width, height), _, mode, _, _, orientation, _ = decoder.get_info()
    if orientation >= 5:
        width, height = height, width
    return Other(Header("avif", width, height, mode, orientation, _PIXEL_BYTES["avif"], bounded=False), decoder)


def _decode_avif(other: Other) -> Pixels:
    width, height = other.header.width, other.header.height
    if other.header.orientation >= 5:
        width, height = height, width
    data = other.image.get_frame(0)[0]
    pixels: Pixels = np.frombuffer(data, np.uint8).reshape(height, width, -1)
    channels = pixels.shape[2]
    if channels == 4:
        return on_white(height, width, lambda top, bottom: pixels[top:bottom])
    return grey_to_rgb(pixels) if channels == 1 else pixels.copy()
