"""Image bytes: look, decode, hash, measure, resize, encode. The only code that touches them.

Bytes from the web are hostile: size and format are read from the header, against limits, before a pixel is decoded.
Everything that these functions return depends on the bytes and the arguments alone.

The rules, stated once:

- Pictures are uint8 (height, width, 3), RGB. One channel becomes three equal ones; 16 bits keep their upper 8.
- EXIF orientation is applied: pictures, sizes and hashes are those of the upright picture (img2dataset leaves them as
  they lie). Colour profiles are ignored.
- Transparent pixels are composited on white. Of an animation, the first frame counts.
- JPEG is decoded by OpenCV (libjpeg-turbo), everything else by Pillow, because OpenCV drops palettes' transparency.
"""

import hashlib
import io
import math
import os
import re
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Final, Literal, NamedTuple

MAX_PIXELS: Final = 1 << 27
"""No limit can be set above this. OpenCV holds to it too, should a header say one size to Pillow and another to it."""
os.environ.setdefault("OPENCV_IO_MAX_IMAGE_PIXELS", str(MAX_PIXELS))

import cv2  # noqa: E402  (reads the variable above)
import numpy as np  # noqa: E402
from PIL import (  # noqa: E402
    AvifImagePlugin,
    BmpImagePlugin,
    GifImagePlugin,
    Image,
    ImageFilter,
    JpegImagePlugin,
    PngImagePlugin,
    TiffImagePlugin,
    WebPImagePlugin,
)

from catalog.image_formats import DECODED, sniff  # noqa: E402

cv2.setNumThreads(1)  # threads are the stages' to give out

Pixels = np.ndarray[Any, np.dtype[Any]]
"""uint8 (height, width, 3), RGB, C-contiguous."""
ResizeMode = Literal["border", "keep_ratio", "keep_ratio_largest", "center_crop", "no"]
Format = Literal["jpg", "png", "webp"]

_STRIP_ROWS: Final = 256
_EXIF_ORIENTATION: Final = 0x0112


class ImageError(Exception):
    """Bytes that give no picture. `reason` is one of not_an_image, unsupported_format, truncated, undecodable,
    unencodable, too_many_pixels, too_long_side; `detail` is the evidence."""

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(reason, detail)
        self.reason = reason
        self.detail = detail


@dataclass(frozen=True, slots=True)
class Limits:
    """What is decoded at all. A picture of `max_pixels` takes about 9 bytes a pixel while it is decoded."""

    max_pixels: int = 50_000_000
    max_side_px: int = 32_768


class Header(NamedTuple):
    """What an image says of itself before it is decoded. Width and height are those of the upright picture."""

    format: str
    """jpg, png, webp, gif, bmp, tiff or avif."""
    width: int
    height: int
    mode: str
    """Pillow's: L, RGB, CMYK, P, RGBA, ..."""
    orientation: int
    """EXIF's 1..8; 1 is upright."""


_OPENERS: Final[dict[str, Callable[[io.BytesIO], Any]]] = {
    "jpg": JpegImagePlugin.JpegImageFile,
    "png": PngImagePlugin.PngImageFile,
    "webp": WebPImagePlugin.WebPImageFile,
    "gif": GifImagePlugin.GifImageFile,
    "bmp": BmpImagePlugin.BmpImageFile,
    "tiff": TiffImagePlugin.TiffImageFile,
    "avif": AvifImagePlugin.AvifImageFile,
}
"""Opened by class and not by `Image.open`, which tries some forty formats and has a global pixel limit of its own."""


def inspect(data: bytes) -> Header:
    """Return what the header says, decoding nothing. Raises ImageError: not_an_image,
    unsupported_format, undecodable, truncated."""
    return _open(data)[1]


def decode(data: bytes, limits: Limits = Limits(), scale: float = 1.0) -> Pixels:
    """Return the picture, upright: uint8 (height, width, 3), RGB.

    `scale` says by what factor the caller is going to shrink it: a JPEG may then come at 1/2, 1/4 or 1/8 of its size
    (never smaller than asked for), which costs half as much. Raises ImageError.
    """
    image, header = _open(data)
    check(header, limits)
    if header.format == "jpg" and header.mode in ("L", "RGB"):
        pixels = _decode_jpeg(data, header, scale)
    else:
        pixels = _decode_other(image, header.format, data)
    return _upright(pixels, header.orientation)


def check(header: Header, limits: Limits) -> None:
    """Raise ImageError where a header is over the limits."""
    width, height = header.width, header.height
    if max(width, height) > limits.max_side_px:
        raise ImageError("too_long_side", f"{width} x {height}, limit {limits.max_side_px} a side")
    if width * height > limits.max_pixels:
        raise ImageError("too_many_pixels", f"{width} x {height}, limit {limits.max_pixels}")


def _open(data: bytes) -> tuple[Any, Header]:
    format_ = sniff(data)
    if format_ is None:
        raise ImageError("not_an_image", f"{len(data)} bytes that begin with {data[:16]!r}")
    if format_ not in DECODED:
        raise ImageError("unsupported_format", f"{format_}; read are {', '.join(sorted(DECODED))}")
    try:
        image = _OPENERS[format_](io.BytesIO(data))
        width, height = image.size
        orientation = 1 if format_ == "tiff" else _orientation(image)  # Pillow turns TIFF by itself
    except Exception as error:  # Pillow raises a dozen kinds on hostile headers
        raise _broken(error, format_, data) from error
    if orientation >= 5:
        width, height = height, width
    if width < 1 or height < 1:
        raise ImageError("undecodable", f"{width} x {height} pixels")
    return image, Header(format_, width, height, image.mode, orientation)


def _orientation(image: Any) -> int:
    block = image.info.get("exif")
    if not block:
        return 1
    try:
        exif = Image.Exif()
        exif.load(block)
        value = exif.get(_EXIF_ORIENTATION, 1)
    except Exception:  # noqa: BLE001  (a broken EXIF block does not break the picture)
        return 1
    return value if isinstance(value, int) and 1 <= value <= 8 else 1


def _broken(error: Exception | None, format_: str, data: bytes) -> ImageError:
    text = " ".join(str(error or "no picture").split()) or type(error).__name__
    early = _ends_early(format_, data) or any(sign in text.lower() for sign in ("truncated", "unexpected end"))
    return ImageError("truncated" if early else "undecodable", f"{format_}: {text[:160]}")


def _ends_early(format_: str, data: bytes) -> bool:
    """Return whether a file that could not be decoded lacks its end, for formats whose decoders do not say."""
    if format_ == "jpg":
        return data.rstrip(b"\0")[-2:] != b"\xff\xd9"
    return format_ == "webp" and int.from_bytes(data[4:8], "little") + 8 > len(data)


# ---- decoding


def _decode_jpeg(data: bytes, header: Header, scale: float) -> Pixels:
    flags = cv2.IMREAD_IGNORE_ORIENTATION
    factor = max((f for f in (1, 2, 4, 8) if f * scale <= 1), default=1)
    if factor == 1:
        flags |= cv2.IMREAD_COLOR_RGB
    else:
        flags |= {2: cv2.IMREAD_REDUCED_COLOR_2, 4: cv2.IMREAD_REDUCED_COLOR_4, 8: cv2.IMREAD_REDUCED_COLOR_8}[factor]
    try:
        pixels = cv2.imdecode(np.frombuffer(data, np.uint8), flags)
    except cv2.error as error:
        raise _broken(error, "jpg", data) from error
    if pixels is None:
        raise _broken(None, "jpg", data)
    if factor > 1:
        cv2.cvtColor(pixels, cv2.COLOR_BGR2RGB, dst=pixels)
    return pixels


def _decode_other(image: Any, format_: str, data: bytes) -> Pixels:
    """Decode with Pillow, then convert in strips: no second copy of a large picture."""
    try:
        image.load()
        width, height = image.size
        pixels = np.empty((height, width, 3), np.uint8)
        convert = _converter(image)
        for top in range(0, height, _STRIP_ROWS):
            bottom = min(height, top + _STRIP_ROWS)
            pixels[top:bottom] = convert(image.crop((0, top, width, bottom)))
    except ImageError:
        raise
    except Exception as error:  # Pillow raises a dozen kinds on hostile bytes
        raise _broken(error, format_, data) from error
    return pixels


def _converter(image: Any) -> Callable[[Any], Pixels]:
    """Return how a strip of `image` becomes uint8 (rows, width, 3)."""
    if image.has_transparency_data:
        return _on_white
    if image.mode.startswith("I"):  # 16-bit grey, which Pillow may call 32-bit
        return lambda strip: np.repeat((np.asarray(strip) >> 8).clip(0, 255).astype(np.uint8)[..., None], 3, axis=2)
    if image.mode == "F":
        raise ImageError("undecodable", "floating-point pixels")
    return lambda strip: np.asarray(strip.convert("RGB"))


def _on_white(strip: Any) -> Pixels:
    rgba = np.asarray(strip.convert("RGBA")).astype(np.uint16)
    alpha = rgba[..., 3:]
    return ((rgba[..., :3] * alpha + 255 * (255 - alpha) + 127) // 255).astype(np.uint8)


def _upright(pixels: Pixels, orientation: int) -> Pixels:
    if orientation == 1:
        return pixels
    if orientation >= 5:
        pixels = pixels.transpose(1, 0, 2)
    if orientation in (3, 4, 7, 8):
        pixels = pixels[::-1]
    if orientation in (2, 3, 6, 7):
        pixels = pixels[:, ::-1]
    return np.ascontiguousarray(pixels)


# ---- measuring


class Statistics(NamedTuple):
    """What a picture looks like in numbers; the fields are columns of the images table."""

    phash: int | None
    brightness: float
    brightness_p5: float
    brightness_p99: float
    blur: float
    histogram_std: float
    entropy: float
    greyscale: bool


_BRIGHTNESS: Final = np.array([[0.241, 0.691, 0.068]], np.float32)
_GRID_PX: Final = 96
_SMALL_PX: Final = 128
_BLUR_PX: Final = 64
_LARGE_PX: Final = 4_000_000
_MARGIN: Final = 2
"""Percents on either side of a percentile between which it is looked for."""
_MOST_NEAR: Final = 1 << 20
"""Values that are kept for it: 4 MB, which only large pictures with much of one brightness exceed."""
_FINE_BINS: Final = 1 << 16
"""Of the histogram that says where it is, when there were too many or it was not there."""


def statistics(pixels: Pixels, one_channel: bool = False, fast: bool = False) -> Statistics:
    """Measure a picture, uint8 (height, width, 3) RGB. The definitions are cleanvision's (0.3.7) where it has one.

    - brightness of a pixel: sqrt(0.241 R^2 + 0.691 G^2 + 0.068 B^2) / 255 (HSP colour model); its mean, 5th and 99th
      percentile over all pixels.
    - blur: standard deviation of Pillow's FIND_EDGES over the grey picture, its longer side shrunk to 64 (bicubic).
    - histogram_std: standard deviation of the 256 counts of that small grey picture's histogram.
    - entropy: of the histograms of all channels as one, bits (Pillow's `Image.entropy`): 0..9.58 for three channels,
      and 0..8 for a picture that was stored with `one_channel`.
    - greyscale: all three channels equal everywhere.
    - phash: see `phash`.

    With `fast`, for pictures that `decode` has reduced, so that nothing is exact any more: brightness is that of a grid
    of at most 96 x 96 pixels, and the picture is shrunk by averaging before the blur is measured.
    """
    grid = _grid(pixels)
    grey = cv2.cvtColor(pixels, cv2.COLOR_RGB2GRAY)
    small = _shrunk(grey)
    mean, p5, p99 = _brightness(grid, grid if fast else pixels)
    blur, histogram_std = _blur(small if fast else pixels)
    return Statistics(
        phash=_phash(small),
        brightness=mean,
        brightness_p5=p5,
        brightness_p99=p99,
        blur=blur,
        histogram_std=histogram_std,
        entropy=_entropy(pixels, 1 if one_channel else 3),
        greyscale=_is_grey(grid) and _is_grey(pixels),
    )


def _grid(pixels: Pixels) -> Pixels:
    """Return at most 96 x 96 of the pixels, evenly spread: their distribution is about that of the whole."""
    height, width = pixels.shape[:2]
    return cv2.resize(pixels, (min(width, _GRID_PX), min(height, _GRID_PX)), interpolation=cv2.INTER_NEAREST)


def _brightness(grid: Pixels, pixels: Pixels) -> tuple[float, float, float]:
    """Return mean, 5th and 99th percentile of the brightness of `pixels`; `grid` are some of them.

    The grid says about where a percentile lies; of the pixels, strip by strip, only the values near it are kept.
    """
    some = np.sort(_values(grid), axis=None)
    wanted = [_Percentile(percent, some, pixels.shape[0] * pixels.shape[1]) for percent in (5, 99)]
    total = 0.0
    for values in _strips(pixels):
        total += cv2.sumElems(values)[0]
        for percentile in wanted:
            percentile.add(values)
    p5, p99 = (percentile.value(pixels) / 255 for percentile in wanted)
    return total / (pixels.shape[0] * pixels.shape[1]) / 255, p5, p99


def _values(pixels: Pixels) -> Any:
    """Return 255 x brightness, float32 (height, width)."""
    squares = cv2.multiply(pixels, pixels, dtype=cv2.CV_32F)
    return cv2.sqrt(cv2.transform(squares, _BRIGHTNESS))


def _strips(pixels: Pixels) -> Iterator[Any]:
    """Yield the same of all rows, some at a time."""
    return (_values(pixels[top : top + _STRIP_ROWS]) for top in range(0, len(pixels), _STRIP_ROWS))


class _Percentile:
    """One percentile of float32 values that come in strips, exactly as numpy has it: linear between two values."""

    def __init__(self, percent: int, some: Any, size: int) -> None:
        """`some` of the values, ascending; `size`: how many there will be."""
        self._place: float = percent / 100 * (size - 1)
        self._first = math.floor(self._place)
        self._last = min(self._first + 1, size - 1)
        around = (min(max(p, 0), 100) / 100 for p in (percent - _MARGIN, percent + _MARGIN))
        self._low, self._high = (some[round(p * (some.size - 1))] for p in around)
        self._below = 0
        self._near: list[Any] = []
        self._held = 0

    def add(self, values: Any) -> None:
        """Take a strip of the values."""
        self._below += int(np.count_nonzero(values < self._low))
        if self._held <= _MOST_NEAR:
            self._near.append(values[(values >= self._low) & (values <= self._high)])
            self._held += self._near[-1].size

    def value(self, pixels: Pixels) -> float:
        """Return it. `pixels`: where the values came from, should the grid not have been like the whole."""
        below = self._below
        if self._held > _MOST_NEAR or not below <= self._first <= self._last < below + self._held:
            return self._between(*self._searched(pixels))
        near = np.concatenate(self._near)
        near.partition((self._first - below, self._last - below))
        return self._between(float(near[self._first - below]), float(near[self._last - below]))

    def _between(self, one: float, other: float) -> float:
        return one + (self._place - self._first) * (other - one)

    def _searched(self, pixels: Pixels) -> tuple[float, float]:
        """Return the two values in a second pass and a third, which hold no more than some bins of a histogram.

        With how often each value came: in a flat picture all are the same.
        """
        bins = np.zeros(_FINE_BINS)
        for values in _strips(pixels):
            bins += cv2.calcHist([values], [0], None, [_FINE_BINS], [0, 256]).ravel()
        first, last = np.searchsorted(np.cumsum(bins), (self._first, self._last), "right")
        low, high = (first - 1) * 256 / _FINE_BINS, (last + 2) * 256 / _FINE_BINS  # a bin more: edges are rounded
        below, counts = 0, Counter[float]()
        for values in _strips(pixels):
            below += int(np.count_nonzero(values < low))
            near, times = np.unique(values[(values >= low) & (values <= high)], return_counts=True)
            counts.update(dict(zip(near.tolist(), times.tolist(), strict=True)))
        near = np.sort(list(counts))
        upto = below + np.cumsum([counts[value] for value in near.tolist()])
        one, other = near[np.searchsorted(upto, (self._first, self._last), "right")]
        return float(one), float(other)


def _entropy(pixels: Pixels, channels: int) -> float:
    counts = np.concatenate([cv2.calcHist([pixels], [c], None, [256], [0, 256]) for c in range(channels)])
    p = counts[counts > 0].astype(np.float64) / (pixels.shape[0] * pixels.shape[1] * channels)
    return float(-(p * np.log2(p)).sum()) + 0.0  # never minus zero


def _blur(pixels: Pixels) -> tuple[float, float]:
    """Return `blur` and `histogram_std` of a picture, uint8 (height, width, 3) or (height, width)."""
    height, width = pixels.shape[:2]
    ratio = max(height, width) / _BLUR_PX
    picture = _resized(pixels, max(1, int(width // ratio)), max(1, int(height // ratio))) if ratio > 1 else pixels
    grey = Image.fromarray(picture).convert("L")
    edges = np.asarray(grey.filter(ImageFilter.FIND_EDGES))
    return float(edges.std(dtype=np.float64)), float(np.std(grey.histogram()))


def _resized(pixels: Pixels, width: int, height: int) -> Pixels:
    """Return the picture at another size (Pillow's bicubic). Large ones channel by channel, which gives the same: as
    RGB, Pillow would hold it twice."""
    if pixels.ndim == 2 or pixels.shape[0] * pixels.shape[1] < _LARGE_PX:
        return np.asarray(Image.fromarray(pixels).resize((width, height), Image.Resampling.BICUBIC))
    return np.stack([_resized(np.ascontiguousarray(pixels[..., c]), width, height) for c in range(3)], axis=2)


def phash(pixels: Pixels) -> int | None:
    """Return the 64-bit perceptual hash as a signed integer, or None for a flat picture.

    Grey, shrunk to 32 x 32 (Lanczos), 2-D DCT-II, the lowest 8 x 8 frequencies, bit = above their median; row by row,
    the first bit the highest (pHash as the imagehash package defines it). Pictures of one colour would all collide:
    hashes with fewer than 4 set or clear bits are None. Equal pictures give equal hashes, similar ones close ones
    (Hamming distance); it does not survive mirroring, rotation or strong crops.
    """
    return _phash(_shrunk(cv2.cvtColor(pixels, cv2.COLOR_RGB2GRAY)))


def _shrunk(grey: Pixels) -> Pixels:
    """Return the picture averaged over whole k x k blocks, so that the longer side is below 256: fast, and exact.

    The edge pixels that fill no block are left out.
    """
    height, width = grey.shape
    k = max(height, width) // _SMALL_PX
    if k < 2:
        return grey
    rows, columns = max(1, height // k), max(1, width // k)
    cut = grey[: rows * k, : columns * k]
    return cv2.resize(cut, (columns, rows), interpolation=cv2.INTER_AREA)


def _phash(grey: Pixels) -> int | None:
    square = np.asarray(Image.fromarray(grey).resize((32, 32), Image.Resampling.LANCZOS), np.float64)
    if np.ptp(square) < 2:  # rounding noise would decide the bits
        return None
    low = _COSINES @ square @ _COSINES.T
    bits = (low > np.median(low)).ravel()
    if not 4 <= bits.sum() <= 60:
        return None
    return int(np.packbits(bits).view(">i8")[0])


_COSINES: Final = np.cos(np.pi / 64 * np.outer(np.arange(8), 2 * np.arange(32) + 1))
"""The lowest 8 of the 32 functions of the DCT-II, not normalised."""


def _is_grey(pixels: Pixels) -> bool:
    for top in range(0, len(pixels), _STRIP_ROWS):
        red, green, blue = cv2.split(pixels[top : top + _STRIP_ROWS])
        if not (np.array_equal(red, green) and np.array_equal(green, blue)):
            return False
    return True


# ---- the digest of what a picture shows

_NEXT_MARKER: Final = re.compile(rb"\xff[^\x00\xd0-\xd7\xff]")
"""The end of a JPEG's compressed data: any marker but a restart."""
_START_OF_SCAN: Final = 0xDA
_END_OF_IMAGE: Final = 0xD9
_COMMENT: Final = 0xFE
_FRAMES: Final = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
_WITHOUT_LENGTH: Final = frozenset([0x01, *range(0xD0, 0xD9)])


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
        for piece in _jpeg_picture(data):
            digest.update(piece)
    else:
        shown = decode(data) if pixels is None else pixels
        digest.update(b"rgb%d,%d:" % (shown.shape[1], shown.shape[0]))
        digest.update(np.ascontiguousarray(shown).data)
    return digest.hexdigest()


def _jpeg_picture(data: bytes) -> list[bytes]:
    """Return what decides the pixels of a JPEG, piece by piece; all of it, where its segments cannot be told apart."""
    pieces: list[bytes] = []
    jfif, adobe, components, scans = False, b"", b"", 0
    for kind, segment in _jpeg_segments(data):
        if kind == 0xE0 and segment[4:9] == b"JFIF\0":
            jfif = True
        elif kind == 0xEE and segment[4:9] == b"Adobe":
            adobe = segment[15:16]
        if kind != _COMMENT and not 0xE0 <= kind <= 0xEF:
            pieces.append(segment)
        if kind in _FRAMES:
            components = segment[10::3]
        scans += kind == _START_OF_SCAN
    if not components or not scans:
        return [data]
    # JFIF says YCbCr, and so do components that are called 1, 2, 3, unless Adobe's marker says otherwise.
    unsure = bool(adobe) or components not in (b"\1", b"\1\2\3")
    return [b"a" + adobe, b"j" if unsure and jfif else b"-", *pieces]


def _jpeg_segments(data: bytes) -> list[tuple[int, bytes]]:
    """Return (marker, bytes with the marker) of every segment up to the end of the image; a scan has its data with it.

    Empty where bytes lie between the segments, or the end is missing: then decoders differ in what they make of it.
    """
    found: list[tuple[int, bytes]] = []
    at = 2
    while data[at : at + 1] == b"\xff" and at + 1 < len(data):
        kind = data[at + 1]
        if kind == _END_OF_IMAGE:
            return found
        if kind == 0xFF:  # a fill byte
            at += 1
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


# ---- resizing and encoding


def resized(width: int, height: int, size_px: int, mode: ResizeMode, only_if_bigger: bool = False) -> tuple[int, int]:
    """Return the (width, height) that a picture is scaled to, before any crop or border: img2dataset's rule.

    keep_ratio and center_crop bring the shorter side to `size_px`, border and keep_ratio_largest the longer one.
    """
    if mode == "no":
        return width, height
    side = min(width, height) if mode in ("keep_ratio", "center_crop") else max(width, height)
    if only_if_bigger and side <= size_px:
        return width, height
    scale = size_px / side
    return max(1, round(width * scale)), max(1, round(height * scale))


def resize(
    pixels: Pixels,
    size_px: int,
    mode: ResizeMode = "border",
    only_if_bigger: bool = False,
    original: tuple[int, int] | None = None,
) -> Pixels:
    """Resize uint8 (height, width, 3) as img2dataset does: area when shrinking, Lanczos when enlarging.

    - keep_ratio: the shorter side becomes `size_px`; keep_ratio_largest: the longer one does.
    - center_crop: the shorter side, then the middle square; border: the longer side, then white on both ends.
    - no: as it is. With `only_if_bigger`, pictures that are small enough stay as they are (no border either).

    `original` is the (width, height) of a picture that `decode` gave at a fraction of its size. Raises ImageError
    (too_many_pixels) where the result would have more than MAX_PIXELS.
    """
    height, width = pixels.shape[:2]
    full_width, full_height = original or (width, height)
    target = resized(full_width, full_height, size_px, mode, only_if_bigger)
    if mode == "no" or (only_if_bigger and target == (width, height)):
        return pixels
    if target[0] * target[1] > MAX_PIXELS:
        raise ImageError("too_many_pixels", f"{width} x {height} would become {target[0]} x {target[1]}")
    if target != (width, height):
        shrink = target[0] < width or target[1] < height
        method = cv2.INTER_AREA if shrink else cv2.INTER_LANCZOS4
        pixels = cv2.resize(pixels, target, interpolation=method)
    if mode == "center_crop":
        left, top = (target[0] - size_px) // 2, (target[1] - size_px) // 2
        pixels = pixels[top : top + size_px, left : left + size_px]
    elif mode == "border":
        pixels = _bordered(pixels, size_px)
    return np.ascontiguousarray(pixels)


def _bordered(pixels: Pixels, size_px: int) -> Pixels:
    height, width = pixels.shape[:2]
    top, left = (size_px - height) // 2, (size_px - width) // 2
    bottom, right = size_px - height - top, size_px - width - left
    return cv2.copyMakeBorder(pixels, top, bottom, left, right, cv2.BORDER_CONSTANT, value=(255, 255, 255))


def encode(pixels: Pixels, format_: Format = "jpg", quality: int = 95) -> bytes:
    """Encode uint8 (height, width, 3) RGB. `quality` is 0..100 for jpg and webp (over 100: lossless webp), 0..9, the
    compression, for png. Raises ImageError (unencodable), for a side over the format's limit."""
    name = {"jpg": cv2.IMWRITE_JPEG_QUALITY, "png": cv2.IMWRITE_PNG_COMPRESSION, "webp": cv2.IMWRITE_WEBP_QUALITY}
    try:
        done, data = cv2.imencode(f".{format_}", cv2.cvtColor(pixels, cv2.COLOR_RGB2BGR), [name[format_], quality])
    except cv2.error as error:
        raise ImageError("unencodable", " ".join(str(error).split())[:160]) from error
    if not done:
        raise ImageError("unencodable", f"{pixels.shape[1]} x {pixels.shape[0]} as {format_}")
    return data.tobytes()
