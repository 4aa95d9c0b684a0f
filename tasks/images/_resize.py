"""Resize and encode by img2dataset's rules."""

from typing import Literal

import cv2
import numpy as np

from tasks.images._base import MAX_PIXELS, ImageError, Pixels

ResizeMode = Literal["border", "keep_ratio", "keep_ratio_largest", "center_crop", "no"]
Format = Literal["jpg", "png", "webp"]


def resized(width: int, height: int, size_px: int, mode: ResizeMode, only_if_bigger: bool = False) -> tuple[int, int]:
    """Return the (width, height) to which a picture is scaled, before any crop or border: img2dataset's rule.

    keep_ratio and center_crop scale the shorter side to `size_px`, border and keep_ratio_largest the longer one.
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
    - no: unchanged. With `only_if_bigger`, pictures that are small enough are unchanged (without border).

    `original` is the (width, height) of a picture that `decode` has reduced. Raises ImageError (too_many_pixels) if the
    result would have more than MAX_PIXELS.
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
    """Encode uint8 (height, width, 3) RGB. `quality` is 0..100 for jpg and webp (over 100: lossless webp), and for png
    the compression 0..9. Raises ImageError (unencodable) for a side over the format's limit."""
    name = {"jpg": cv2.IMWRITE_JPEG_QUALITY, "png": cv2.IMWRITE_PNG_COMPRESSION, "webp": cv2.IMWRITE_WEBP_QUALITY}
    try:
        done, data = cv2.imencode(f".{format_}", cv2.cvtColor(pixels, cv2.COLOR_RGB2BGR), [name[format_], quality])
    except cv2.error as error:
        raise ImageError("unencodable", " ".join(str(error).split())[:160]) from error
    if not done:
        raise ImageError("unencodable", f"{pixels.shape[1]} x {pixels.shape[0]} as {format_}")
    return data.tobytes()
