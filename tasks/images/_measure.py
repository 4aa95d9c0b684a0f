"""Pixel statistics: brightness, blur, entropy and the perceptual hash."""

import math
from collections import Counter
from collections.abc import Iterator
from typing import Any, Final, NamedTuple

import cv2
import numpy as np
from PIL import Image, ImageFilter

from tasks.images._base import STRIP_ROWS, Pixels


class Statistics(NamedTuple):
    """Pixel statistics; the fields are columns of the images table."""

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
"""A percentile is searched for within this many percents on either side of the grid's."""
_MOST_NEAR: Final = 1 << 20
"""Values that are stored for it: 4 MB, which only large pictures with much of one brightness exceed."""
_FINE_BINS: Final = 1 << 16
"""Bins of the histogram that locates it if there were too many values or it was not among them."""


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

    With `fast`, for pictures that `decode` has reduced (so no value is exact): brightness is that of a grid of at most
    96 x 96 pixels, and the picture is shrunk by averaging before the blur is measured.
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
    """Return at most 96 x 96 evenly spaced pixels, whose distribution approximates that of the picture."""
    height, width = pixels.shape[:2]
    return cv2.resize(pixels, (min(width, _GRID_PX), min(height, _GRID_PX)), interpolation=cv2.INTER_NEAREST)


def _brightness(grid: Pixels, pixels: Pixels) -> tuple[float, float, float]:
    """Return mean, 5th and 99th percentile of the brightness of `pixels`; `grid` is a subset of them.

    The grid estimates a percentile; of the pixels, strip by strip, only the values near it are stored.
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
    """Yield the values of all rows, in strips."""
    return (_values(pixels[top : top + STRIP_ROWS]) for top in range(0, len(pixels), STRIP_ROWS))


class _Percentile:
    """One percentile of float32 values that arrive in strips, equal to numpy's: linear between two values."""

    def __init__(self, percent: int, some: Any, size: int) -> None:
        """`some` of the values, ascending; `size`: the number of all values."""
        self._place: float = percent / 100 * (size - 1)
        self._first = math.floor(self._place)
        self._last = min(self._first + 1, size - 1)
        around = (min(max(p, 0), 100) / 100 for p in (percent - _MARGIN, percent + _MARGIN))
        self._low, self._high = (some[round(p * (some.size - 1))] for p in around)
        self._below = 0
        self._near: list[Any] = []
        self._held = 0

    def add(self, values: Any) -> None:
        """Add a strip of the values."""
        self._below += int(np.count_nonzero(values < self._low))
        if self._held <= _MOST_NEAR:
            self._near.append(values[(values >= self._low) & (values <= self._high)])
            self._held += self._near[-1].size

    def value(self, pixels: Pixels) -> float:
        """Return the percentile. `pixels` are read again if the grid's estimate was too far off."""
        below = self._below
        if self._held > _MOST_NEAR or not below <= self._first <= self._last < below + self._held:
            return self._between(*self._searched(pixels))
        near = np.concatenate(self._near)
        near.partition((self._first - below, self._last - below))
        return self._between(float(near[self._first - below]), float(near[self._last - below]))

    def _between(self, one: float, other: float) -> float:
        return one + (self._place - self._first) * (other - one)

    def _searched(self, pixels: Pixels) -> tuple[float, float]:
        """Return the two values by a second and a third pass, which store only some bins of a histogram.

        Values are counted, as in a flat picture all are equal.
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
    """Resize a picture (Pillow's bicubic). Large ones are resized channel by channel, with the same result: as RGB,
    Pillow would hold them twice."""
    if pixels.ndim == 2 or pixels.shape[0] * pixels.shape[1] < _LARGE_PX:
        return np.asarray(Image.fromarray(pixels).resize((width, height), Image.Resampling.BICUBIC))
    return np.stack([_resized(np.ascontiguousarray(pixels[..., c]), width, height) for c in range(3)], axis=2)


def phash(pixels: Pixels) -> int | None:
    """Return the 64-bit perceptual hash as a signed integer, or None for a flat picture.

    Grey, shrunk to 32 x 32 (Lanczos), 2-D DCT-II, the lowest 8 x 8 frequencies, bit = above their median; row by row,
    the first bit the highest (pHash as defined by the imagehash package). Pictures of one colour would all collide:
    hashes with fewer than 4 set or clear bits are None. Equal pictures have equal hashes, similar ones close hashes
    (Hamming distance); it is not invariant to mirroring, rotation or strong crops.
    """
    return _phash(_shrunk(cv2.cvtColor(pixels, cv2.COLOR_RGB2GRAY)))


def _shrunk(grey: Pixels) -> Pixels:
    """Return the picture averaged over whole k x k blocks, so that the longer side is below 256: fast, and exact.

    Edge pixels that do not fill a block are dropped.
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
    for top in range(0, len(pixels), STRIP_ROWS):
        red, green, blue = cv2.split(pixels[top : top + STRIP_ROWS])
        if not (np.array_equal(red, green) and np.array_equal(green, blue)):
            return False
    return True
