"""Forward batches: every row has its picture, whatever the batches of the input."""

from functools import partial

import numpy as np
import pyarrow as pa
from PIL.Image import Image, fromarray

from tasks.embed._prepared import Prepared
from tasks.encoders.encoder import Encoder
from tasks.streams.decode_ahead import prepare_ahead
from tests.pictures import encoded, picture

ENCODER = Encoder(name="clip", model="ViT-B-32", pretrained="openai", text=False)


class Thumbnails:
    """Replaces the transform of a model, which needs no weights here."""

    shape = (4, 4, 3)

    def prepare(self, picture: Image) -> np.ndarray:
        return np.asarray(picture.resize((4, 4)))


def rows(n: int, start: int = 0) -> pa.Table:
    images = [encoded(picture(16, 16, seed=start + i), "PNG") for i in range(n)]
    return pa.table({"sample_id": range(start, start + n), "image": pa.array(images, pa.large_binary())})


def test_rows_are_complete_and_in_order() -> None:
    model = Thumbnails()
    prepare = partial(Prepared, models={ENCODER: model})  # type: ignore[dict-item]
    found = list(prepare_ahead(iter([rows(6), rows(5, 6)]), 4, 3, prepare, 3))
    assert [p.sample_ids.to_pylist() for p in found] == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9, 10]]
    for prepared in found:
        for sample_id, small in zip(prepared.sample_ids.to_pylist(), prepared.pictures["clip"], strict=True):
            np.testing.assert_array_equal(small, model.prepare(fromarray(picture(16, 16, seed=sample_id))))
        assert prepared.decoded.all()
