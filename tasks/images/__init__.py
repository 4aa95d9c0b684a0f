"""Image bytes: look, decode, hash, measure, resize, encode. The only code that touches them.

Bytes from the web are hostile: size and format are read from the header, against limits, before a pixel is decoded.
Everything that these functions return depends on the bytes and the arguments alone.

The rules, stated once:

- Pictures are uint8 (height, width, 3), RGB. One channel becomes three equal ones; 16 bits keep their upper 8.
- EXIF orientation is applied: pictures, sizes and hashes are those of the upright picture (img2dataset leaves them as
  they lie). Colour profiles are ignored.
- Transparent pixels are composited on white. An alpha channel of 0 everywhere, over colours that differ, is taken for
  unused, and ignored (`on_white`). Of an animation, the first frame counts.
- What is not the picture (text, profiles, EXIF, comments, unknown chunks, whatever follows the end) cannot lose it:
  broken or huge, it is skipped before a decoder sees it.
- A file that ends early is `truncated`, never half a picture; one that lacks its end marker alone is whole.
- Decoding has a budget, known before it starts: pixels (`Limits`), samples over all scans of a JPEG
  (`SCAN_SAMPLES`), segments, chunks and blocks (`MAX_PIECES`); over it is `too_complex`. Formats for which this does
  not bound the time (`Header.bounded`) are for `Apart`, which decodes in a process that it can end.
- JPEG and WebP are decoded by OpenCV (libjpeg-turbo, libwebp), everything else by Pillow, because OpenCV drops
  palettes' transparency.
"""

import hashlib

import numpy as np

from catalog.image_formats import DECODED, sniff
from tasks.images import _jpeg, _others, _png, _webp
from tasks.images._base import MAX_PIECES, MAX_PIXELS, Header, ImageError, Limits, Pixels, check, upright
from tasks.images._jpeg import SCAN_SAMPLES
from tasks.images._measure import Statistics, phash, statistics
from tasks.images._resize import Format, ResizeMode, encode, resize, resized

__all__ = [
    "MAX_PIECES",
    "MAX_PIXELS",
    "SCAN_SAMPLES",
    "Format",
    "Header",
    "ImageError",
    "Limits",
    "Pixels",
    "ResizeMode",
    "Statistics",
    "check",
    "decode",
    "decode_fault",
    "encode",
    "inspect",
    "is_for_apart",
    "phash",
    "pixels_sha256",
    "resize",
    "resized",
    "statistics",
]


def inspect(data: bytes) -> Header:
    """Return what the header says, decoding nothing.

    Raises ImageError: not_an_image, unsupported_format, undecodable, truncated, too_complex.
    """
    return _read(data)[0]


_DEFAULT = Limits()


def is_for_apart(data: bytes) -> bool:
    """Return whether bytes are in a format whose very headers should be read in another process: see `Apart`."""
    return sniff(data) in _others.APART


def decode(data: bytes, limits: Limits = _DEFAULT, scale: float = 1.0) -> Pixels:
    """Return the picture, upright: uint8 (height, width, 3), RGB.

    `scale` says by what factor the caller is going to shrink it: a JPEG may then come at 1/2, 1/4 or 1/8 of its size
    (never smaller than asked for), which costs half as much. Raises ImageError.
    """
    header, file = _read(data)
    check(header, limits)
    if isinstance(file, _jpeg.Jpeg):
        pixels = _jpeg.decode(data, file, scale)
    elif isinstance(file, _png.Png):
        pixels = _png.decode(file)
    elif isinstance(file, _webp.Webp):
        pixels = _webp.decode(file)
    else:
        pixels = _others.decode(file)
    return upright(pixels, header.orientation)


def decode_fault(data: bytes) -> str | None:
    """Return the reason for which an image cannot be decoded; None where it can."""
    try:
        decode(data)
    except ImageError as error:
        return error.reason
    return None


def _read(data: bytes) -> tuple[Header, _jpeg.Jpeg | _png.Png | _webp.Webp | _others.Other]:
    format_ = sniff(data)
    if format_ is None:
        raise ImageError("not_an_image", f"{len(data)} bytes that begin with {data[:16]!r}")
    if format_ not in DECODED:
        raise ImageError("unsupported_format", f"{format_}; read are {', '.join(sorted(DECODED))}")
    file: _jpeg.Jpeg | _png.Png | _webp.Webp | _others.Other
    if format_ == "jpg":
        file = _jpeg.read(data)
    elif format_ == "png":
        file = _png.read(data)
    elif format_ == "webp":
        file = _webp.read(data)
    else:
        file = _others.read(format_, data)
    return file.header, file


def pixels_sha256(data: bytes, header: Header, pixels: Pixels | None = None) -> str:
    """Return a digest (hex) that two files share only where they show the same picture, pixel by pixel.

    - JPEG: of its compressed data, tables, size and orientation, without metadata (EXIF, colour profiles, comments,
      thumbnails, whatever follows the end). Files of equal digests decode to equal pixels, and no picture need be
      decoded at full size for it: that, its resizing and hashing would nearly double the work on 1024 x 768 pixels.
      The price: a JPEG whose data was packed anew without loss (other Huffman tables, progressive) has another digest,
      and so has a PNG made of it; the perceptual hash finds these.
    - all others: of width, height and the pixels as `decode` gives them: upright RGB, transparency on white.
      Compression, metadata, palettes and the format itself make no difference.

    It depends on the bytes alone, never on the size that a picture is stored at. `pixels` saves decoding them again.
    """
    digest = hashlib.sha256()
    if header.format == "jpg":
        digest.update(b"jpg%d" % header.orientation)
        for piece in _jpeg.picture(data):
            digest.update(piece)
    else:
        shown = decode(data) if pixels is None else pixels
        digest.update(b"rgb%d,%d:" % (shown.shape[1], shown.shape[0]))
        digest.update(np.ascontiguousarray(shown).data)
    return digest.hexdigest()
