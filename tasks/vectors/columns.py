"""Which column of the table `embeddings` a stage reads, and which one its centroids were fitted on."""

from typing import Final

import pyarrow as pa

from catalog.errors import RecipeError, nearest
from catalog.schema import role
from tasks.stage import Tables

CLUSTERED: Final = "clustered"
"""Key of the metadata of `centroids.centroid`: the embedding column that was clustered."""


def vector_column(available: Tables, encoder: str) -> str:
    """Return the embedding column that `encoder` names; the first one where it is empty. Raises RecipeError."""
    if "embeddings" not in available:
        raise RecipeError("there are no embeddings to read: put a stage `use: embed` before this one")
    names = [field_.name for field_ in available["embeddings"] if role(field_) == "vector"]
    if encoder and encoder not in names:
        raise RecipeError(f"no embedding column {encoder!r}{nearest(encoder, names)}")
    if not names:
        raise RecipeError("the embeddings table has no vector column")
    return encoder or names[0]


def clustered_column(available: Tables, encoder: str) -> str:
    """Return the embedding column that the centroids were fitted on: what they say, else as `vector_column`.

    Raises RecipeError where `encoder` names another one: vectors of two encoders are not to be compared.
    """
    field_ = available["centroids"].field("centroid") if "centroids" in available else None
    fitted = ((field_.metadata if field_ else None) or {}).get(CLUSTERED.encode(), b"").decode()
    if fitted and encoder and encoder != fitted:
        raise RecipeError(f"encoder {encoder!r}: the clusters are of the embedding column {fitted!r}")
    return vector_column(available, encoder or fitted)


def width(schema: pa.Schema, column: str) -> int:
    """Return how many numbers a vector of `column` has."""
    return int(schema.field(column).type.list_size)
