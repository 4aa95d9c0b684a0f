"""Prefetching: batches have fixed boundaries, and threads end with their consumer."""

import threading
from functools import partial

import numpy as np
import pyarrow as pa
from PIL.Image import Image

from tasks.embed._prepared import Prepared
from tasks.encoders.encoder import Encoder
from tasks.streams.decode_ahead import prepare_ahead
from tests.pictures import encoded, picture

ENCODER = Encoder(name="clip", model="ViT-B-32", pretrained="openai", text=False)
QUEUED = 3


class Thumbnails:
    """Replaces the transform of a model: no weights are needed to test prefetching."""

    shape = (4, 4, 3)

    def __init__(self) -> None:
        self.prepared = 0

    def prepare(self, picture: Image) -> np.ndarray:
        self.prepared += 1
        return np.asarray(picture.resize((4, 4)))


def rows(n: int, start: int = 0) -> pa.Table:
    images = [encoded(picture(16, 16, seed=start + i), "PNG") for i in range(n)]
    return pa.table({"sample_id": range(start, start + n), "image": pa.array(images, pa.large_binary())})


def test_rows_are_complete_and_in_order() -> None:
    model = Thumbnails()
    prepare = partial(Prepared, models={ENCODER: model})  # type: ignore[dict-item]
    found = list(prepare_ahead(iter([rows(6), rows(5, 6)]), 4, 3, prepare, QUEUED))
    assert [p.sample_ids.to_pylist() for p in found] == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9, 10]]
    for prepared in found:
        for sample_id, small in zip(prepared.sample_ids.to_pylist(), prepared.pictures["clip"], strict=True):
            np.testing.assert_allclose(small.mean(), picture(16, 16, seed=sample_id).mean(), atol=2)


def test_prefetching_is_bounded_and_stops_with_its_consumer() -> None:
    model, before = Thumbnails(), threading.active_count()
    taken: list[int] = []
    table = rows(4)
    endless = (taken.append(1) or table for _ in iter(int, 1))
    running = prepare_ahead(endless, 4, 2, partial(Prepared, models={ENCODER: model}), QUEUED)  # type: ignore[dict-item]
    next(running)
    next(running)
    assert len(taken) <= 2 + QUEUED + 1
    running.close()  # type: ignore[attr-defined]
    assert threading.active_count() == before
    assert model.prepared <= 4 * len(taken)
