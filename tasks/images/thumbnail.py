"""Small pictures for pages."""

from tasks.images import ImageError, decode, encode, inspect, resize


def thumbnail(data: bytes, side_px: int) -> bytes | None:
    """Return encoded image bytes as a WebP that fits into a square; None if they cannot be decoded.

    A picture that fits already is not enlarged.
    """
    try:
        header = inspect(data)
        pixels = decode(data, scale=min(1.0, side_px / max(header.width, header.height)))
        return encode(resize(pixels, side_px, "keep_ratio_largest", only_if_bigger=True), "webp", quality=80)
    except ImageError:
        return None
