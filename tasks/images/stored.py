"""Pictures of rows that a stage reads, decoded."""

from typing import TYPE_CHECKING

import pyarrow as pa

from catalog.inputs import stored_error
from tasks import images

if TYPE_CHECKING:
    from PIL.Image import Image


def picture_of(rows: pa.Table, row: int) -> "Image | None":
    """Return the picture in the column `image` of a row; None where it cannot be decoded.

    Raises StoredImageError where its bytes come from a shard that may be damaged.
    """
    picture, fault = decoded(rows.column("image")[row].as_py())
    if fault is not None and (damage := stored_error(rows, row, fault)):
        raise damage
    return picture


def decoded(data: bytes | None) -> "tuple[Image, None] | tuple[None, str]":
    """Return (the picture of encoded bytes, None), or (None, the reason why they cannot be decoded)."""
    from PIL import Image

    try:
        return Image.fromarray(images.decode(data or b"")), None
    except images.ImageError as error:
        return None, error.reason
