"""JPEG: parse its markers, limit the cost of its scans, decode with OpenCV (libjpeg-turbo)."""

import io
import re
from collections.abc import Iterator
from typing import Any, Final, NamedTuple

import cv2
import numpy as np
from PIL import JpegImagePlugin

from tasks.images._base import (
    MAX_PIECES,
    Header,
    ImageError,
    Pixels,
    broken,
    imdecode,
    in_strips,
    orientation_of,
    too_many_pieces,
)

_MARKER: Final = re.compile(rb"\xff[^\x00\xff]")
_NEXT_MARKER: Final = re.compile(rb"\xff[^\x00\xd0-\xd7\xff]")
"""The end of a JPEG's compressed data: any marker except a restart."""
_NOT_FILL: Final = re.compile(rb"[^\xff]")
_START_OF_SCAN: Final = 0xDA
_END_OF_IMAGE: Final = 0xD9
_COMMENT: Final = 0xFE
_FRAMES: Final = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
_PROGRESSIVE: Final = frozenset([0xC2, 0xC6, 0xCA, 0xCE])
_WITHOUT_LENGTH: Final = frozenset([0x01, *range(0xD0, 0xD9)])
_MODES: Final = {1: "L", 3: "RGB", 4: "CMYK"}

SCAN_SAMPLES: Final = 1 << 30
"""Decoding budget: samples that all scans together may visit. A visit costs about 1 ns, with or without data, so this
is about a second of CPU; 50 megapixels in the usual ten scans take 700 million."""
SCAN_SAMPLES_PER_PIXEL: Final = 24
"""The budget of pictures above 45 megapixels; libjpeg's default scripts take 14 (4:4:4)."""
_SCAN_LEAST: Final = 1 << 14
"""The minimum cost of a scan: its tables are rebuilt."""
_TAILS: Final = (b"\x55" * 64, b"\xaa" * 64, bytes(64))
"""Three continuations of a file without end marker: they change the result of a decoder that still needs data."""


class Segment(NamedTuple):
    """A marker's kind, and the range of its segment: from the marker to the end of its parameters."""

    kind: int
    start: int
    end: int


class Jpeg(NamedTuple):
    """The parsed markers up to the first scan."""

    header: Header
    segments: list[Segment]
    """Up to and including the first scan."""
    ended: bool
    """Whether the file has an end marker (or does not seem truncated)."""


def read(data: bytes) -> Jpeg:
    """Parse the markers as libjpeg does: bytes between segments are skipped.

    Raises ImageError: truncated, undecodable, too_complex.
    """
    ended = data[-4096:].rstrip(b"\0")[-2:] == b"\xff\xd9"
    segments: list[Segment] = []
    frame: Segment | None = None
    orientation = 0
    for segment in _segments(data):
        segments.append(segment)
        kind, start, end = segment
        if kind == 0xE1 and not orientation and data[start + 4 : start + 10] == b"Exif\0\0":
            orientation = orientation_of(data[start + 4 : end])
        elif kind in _FRAMES and frame is None:
            frame = segment
        elif kind == _START_OF_SCAN:
            break
    else:
        raise broken("no scan", "jpg", not ended)
    if frame is None:
        raise broken("a scan before the frame's header", "jpg", not ended)
    return Jpeg(_header(data, frame, segments[-1], orientation or 1, ended), segments, ended)


def _segments(data: bytes) -> Iterator[Segment]:
    """Yield every segment, without the compressed data. Raises ImageError."""
    at = 2
    for _ in range(MAX_PIECES):
        found = _MARKER.search(data, at)
        if found is None or data[found.end() - 1] == _END_OF_IMAGE:
            return
        start, at, kind = found.start(), found.end(), data[found.end() - 1]
        if kind in _WITHOUT_LENGTH:
            continue
        length = int.from_bytes(data[at : at + 2], "big")
        end = at + max(2, length)
        if end > len(data):
            raise broken("a segment that is longer than the file", "jpg", early=True)
        if length < 2 and not _is_metadata(kind):
            raise broken(f"a segment {kind:#x} of {length} bytes", "jpg")
        yield Segment(kind, start, end)
        at = end
    raise too_many_pieces("jpg", "segments")


def _is_metadata(kind: int) -> bool:
    return kind == _COMMENT or 0xE0 <= kind <= 0xEF


def _header(data: bytes, frame: Segment, scan: Segment, orientation: int, ended: bool) -> Header:
    body = data[frame.start + 4 : frame.end]
    count = body[5] if len(body) > 5 else 0
    if len(body) < 6 + 3 * count:
        raise broken("the frame's header is too short", "jpg", not ended)
    precision, height, width = body[0], int.from_bytes(body[1:3], "big"), int.from_bytes(body[3:5], "big")
    if precision != 8 or count not in _MODES:
        raise broken(f"{count} components of {precision} bits", "jpg")
    if width < 1 or height < 1:
        raise broken(f"{width} x {height} pixels", "jpg")
    samples = _samples(body[6 : 6 + 3 * count], width * height)
    many = frame.kind in _PROGRESSIVE or data[scan.start + 4 : scan.start + 5] != bytes([count])
    if many:
        _check_scans(data, scan.start, samples, width * height)
    if orientation >= 5:
        width, height = height, width
    coefficients = 2 * count if many else 0
    # OpenCV holds the picture twice at the end, when the coefficients have been freed.
    pixel_bytes = 8 + coefficients if count == 4 else max(7, 4 + coefficients)
    return Header("jpg", width, height, _MODES[count], orientation, pixel_bytes)


def _samples(components: bytes, pixels: int) -> dict[int, int]:
    """Return how many samples each component has, by its identifier."""
    factors = {name: (both >> 4) * (both & 15) for name, both in zip(components[::3], components[1::3], strict=True)}
    most = max(*factors.values(), 1)
    return {name: max(1, pixels * factor // most) for name, factor in factors.items()}


def _check_scans(data: bytes, at: int, samples: dict[int, int], pixels: int) -> None:
    """Raise ImageError (too_complex) if the scans from `at` would visit more samples than the budget."""
    budget = max(SCAN_SAMPLES, SCAN_SAMPLES_PER_PIXEL * pixels)
    visits = 0
    for scans, segment in enumerate(_scans(data, at), start=1):
        names = data[segment.start + 5 : segment.end : 2][: data[segment.start + 4]]
        visits += max(_SCAN_LEAST, sum(samples.get(name, 0) for name in names))
        if visits > budget:
            raise ImageError("too_complex", f"jpg: {scans} scans or more of {pixels} pixels, limit {budget} samples")


def _scans(data: bytes, at: int) -> Iterator[Segment]:
    """Yield every scan's header from `at`, up to the first damage."""
    while (found := _NEXT_MARKER.search(data, at)) is not None:
        at, kind = found.end(), data[found.end() - 1]
        if kind == _END_OF_IMAGE:
            return
        if kind in _WITHOUT_LENGTH:
            continue
        end = at + max(2, int.from_bytes(data[at : at + 2], "big"))
        if kind == _START_OF_SCAN and end <= len(data) and end - at > 2:
            yield Segment(kind, found.start(), end)
        at = end


# ---- decoding


def decode(data: bytes, jpeg: Jpeg, scale: float) -> Pixels:
    """Return the picture before orientation, at 1, 1/2, 1/4 or 1/8 of its size. Raises ImageError."""
    if jpeg.header.mode == "CMYK":
        return _decode_cmyk(data, jpeg)
    factor = max((f for f in (1, 2, 4, 8) if f * scale <= 1), default=1)
    try:
        return _decode(data, factor, not jpeg.ended)
    except ImageError:
        if jpeg.ended or not _complete(data, jpeg):
            raise
    return _decode_without_end(data, factor)


def _decode(data: bytes, factor: int, early: bool) -> Pixels:
    reduced = {2: cv2.IMREAD_REDUCED_COLOR_2, 4: cv2.IMREAD_REDUCED_COLOR_4, 8: cv2.IMREAD_REDUCED_COLOR_8}
    flags = cv2.IMREAD_COLOR_RGB if factor == 1 else reduced[factor]
    pixels = imdecode(data, flags | cv2.IMREAD_IGNORE_ORIENTATION, "jpg", early)
    if factor > 1:
        cv2.cvtColor(pixels, cv2.COLOR_BGR2RGB, dst=pixels)
    return pixels


def _complete(data: bytes, jpeg: Jpeg) -> bool:
    """Return whether the scans cover every coefficient of every component, to its last bit."""
    frame = next(segment for segment in jpeg.segments if segment.kind in _FRAMES)
    names = data[frame.start + 10 : frame.end : 3]
    left = {name: [99] * 64 for name in names}
    for segment in _scans(data, jpeg.segments[-1].start):
        first, last, bits = data[segment.end - 3 : segment.end]
        for name in data[segment.start + 5 : segment.end - 3 : 2]:
            if name in left and last < 64:
                left[name][first : last + 1] = [bits & 15] * (last + 1 - first)
    return not any(map(any, left.values()))


def _decode_without_end(data: bytes, factor: int) -> Pixels:
    """Decode a file without end marker. It is complete if no continuation changes the result."""
    whole = data.removesuffix(b"\xff")
    first, *others = (_decode(whole + tail + b"\xff\xd9", factor, True) for tail in _TAILS)
    if not all(np.array_equal(first, other) for other in others):
        raise broken("its compressed data is cut", "jpg", early=True)
    return first


def _decode_cmyk(data: bytes, jpeg: Jpeg) -> Pixels:
    """Decode with Pillow, which is given no metadata except Adobe's marker, which defines the colour transform."""
    kept = [b"\xff\xd8"]
    for kind, start, end in jpeg.segments[:-1]:
        if not _is_metadata(kind) or (kind == 0xEE and data[start + 4 : start + 9] == b"Adobe"):
            kept.append(data[start:end])
    kept.append(data[jpeg.segments[-1].start :])
    try:
        image: Any = JpegImagePlugin.JpegImageFile(io.BytesIO(b"".join(kept)))
        image.load()
        width, height = image.size
        return in_strips(
            height, width, lambda top, bottom: np.asarray(image.crop((0, top, width, bottom)).convert("RGB"))
        )
    except Exception as error:  # Pillow raises a dozen types of errors on hostile bytes
        raise broken(error, "jpg", not jpeg.ended) from error


# ---- the digest


def picture(data: bytes) -> list[bytes]:
    """Return the pieces of a JPEG that determine its pixels; the whole file if its segments cannot be parsed."""
    pieces: list[bytes] = []
    jfif, adobe, components, scans = False, b"", b"", 0
    for kind, segment in _strict_segments(data):
        if kind == 0xE0 and segment[4:9] == b"JFIF\0":
            jfif = True
        elif kind == 0xEE and segment[4:9] == b"Adobe":
            adobe = segment[15:16]
        if not _is_metadata(kind):
            pieces.append(segment)
        if kind in _FRAMES:
            components = segment[10::3]
        scans += kind == _START_OF_SCAN
    if not components or not scans:
        return [data]
    # JFIF means YCbCr, and so do components named 1, 2, 3, unless Adobe's marker overrides it.
    unsure = bool(adobe) or components not in (b"\1", b"\1\2\3")
    return [b"a" + adobe, b"j" if unsure and jfif else b"-", *pieces]


def _strict_segments(data: bytes) -> list[tuple[int, bytes]]:
    """Return (marker, bytes with the marker) of every segment up to the end of the image; a scan includes its data.

    Empty if there are bytes between the segments, or the end is missing: decoders interpret these differently.
    """
    found: list[tuple[int, bytes]] = []
    at = 2
    while data[at : at + 1] == b"\xff" and at + 1 < len(data) and len(found) < MAX_PIECES:
        kind = data[at + 1]
        if kind == _END_OF_IMAGE:
            return found
        if kind == 0xFF:  # fill bytes
            marker = _NOT_FILL.search(data, at)
            at = marker.start() - 1 if marker else len(data)
            continue
        if kind in _WITHOUT_LENGTH:
            break
        end = at + 2 + int.from_bytes(data[at + 2 : at + 4], "big")
        if kind == _START_OF_SCAN:
            following = _NEXT_MARKER.search(data, end)
            end = following.start() if following else len(data)
        found.append((kind, data[at:end]))
        at = end
    return []
