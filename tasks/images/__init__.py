"""Image bytes: inspect, decode, hash, measure, resize, encode. No other code touches them.

Bytes from the web are hostile: size and format are read from the header, against limits, before a pixel is decoded.
The results of all functions depend only on the bytes and the arguments.

The rules:

- Pictures are uint8 (height, width, 3), RGB. One channel becomes three equal ones; 16 bits are reduced to the upper 8.
- EXIF orientation is applied: pictures, sizes and hashes are those of the upright picture (img2dataset does not apply
  it). Colour profiles are ignored.
- Transparent pixels are composited on white. An alpha channel of 0 everywhere, over colours that differ, counts as
  unused, and is ignored (`on_white`). The first frame of an animation is used.
- Data that is not the picture (text, profiles, EXIF, comments, unknown chunks, trailing bytes) is skipped before
  decoding, so it cannot make a picture fail, however damaged or large it is.
- A file that ends early is `truncated`, never half a picture; one that lacks only its end marker is complete.
- Decoding has a budget that is checked before it starts: pixels (`Limits`), samples over all scans of a JPEG
  (`SCAN_SAMPLES`), segments, chunks and blocks (`MAX_PIECES`); above it is `too_complex`. Formats for which this does
  not bound the time (`Header.bounded`) require `DecoderProcesses`, which decodes in processes that it can kill.
- JPEG and WebP are decoded by OpenCV (libjpeg-turbo, libwebp), other formats by Pillow, because OpenCV drops
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
    "needs_separate_process",
    "phash",
    "pixels_sha256",
    "resize",
    "resized",
    "statistics",
]


def inspect(data: bytes) -> Header:
    """Parse the header, without decoding.

    Raises ImageError: not_an_image, unsupported_format, undecodable, truncated, too_complex.
    """
    return _read(data)[0]


_DEFAULT = Limits()


def needs_separate_process(data: bytes) -> bool:
    """Return whether even the headers of a format should be parsed in another process: see `DecoderProcesses`."""
    return sniff(data) in _others.UNBOUNDED


def decode(data: bytes, limits: Limits = _DEFAULT, scale: float = 1.0) -> Pixels:
    """Decode a picture, upright: uint8 (height, width, 3), RGB.

    `scale` is the factor by which the caller will shrink it: a JPEG may then be decoded at 1/2, 1/4 or 1/8 of its size
    (never smaller than requested), which costs half as much. Raises ImageError.
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
    """Return a digest (hex) that two files share only if their pictures are equal, pixel by pixel.

    - JPEG: of its compressed data, tables, size and orientation, without metadata (EXIF, colour profiles, comments,
      thumbnails, trailing bytes). Files with equal digests decode to equal pixels, and no picture has to be decoded at
      full size for it: decoding, resizing and hashing would nearly double the work on 1024 x 768 pixels. In return, a
      JPEG that was losslessly recompressed (other Huffman tables, progressive) has another digest, and so has a PNG
      made from it; the perceptual hash finds these.
    - Other formats: of width, height and the pixels from `decode`: upright RGB, transparency on white. Compression,
      metadata, palettes and the format itself make no difference.

    It depends only on the bytes, never on the size at which a picture is stored. `pixels` avoids decoding again.
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
