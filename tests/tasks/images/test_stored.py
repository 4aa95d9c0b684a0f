"""Decoding the picture of a row: bytes that are no picture, and bytes of a shard that may be damaged."""

import pyarrow as pa
import pytest

from catalog.errors import StoredImageError
from catalog.inputs import STORED
from tasks.images.stored import picture_of
from tests.pictures import jpeg


def test_a_row_without_a_picture_has_none() -> None:
    rows = pa.table(
        {"sample_id": range(3), "image": pa.array([jpeg(20, 10, 0), b"no picture", None], pa.large_binary())}
    )
    picture = picture_of(rows, 0)
    assert picture is not None
    assert picture.size == (20, 10)
    assert picture_of(rows, 1) is None
    assert picture_of(rows, 2) is None


def test_bytes_of_a_shard_that_cannot_be_decoded_are_an_error() -> None:
    rows = pa.table({"sample_id": [7, 8], "image": pa.array([b"no picture", None], pa.large_binary())})
    stored = rows.replace_schema_metadata({STORED: b"1"})
    with pytest.raises(StoredImageError) as caught:
        picture_of(stored, 0)
    assert caught.value.sample_id == 7
    assert picture_of(stored, 1) is None
