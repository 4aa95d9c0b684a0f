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
    from PIL import Image

    try:
        return Image.fromarray(images.decode(rows.column("image")[row].as_py() or b""))
    except images.ImageError as error:
        if damage := stored_error(rows, row, error.reason):
            raise damage from error
        return None
