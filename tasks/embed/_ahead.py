"""Prefetching: while the device processes one forward batch, threads prepare the next ones.

Pillow, OpenCV and NumPy release the interpreter's lock while they work, so threads suffice.
"""

import threading
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from queue import Full, Queue
from typing import TYPE_CHECKING, Final

import numpy as np
import pyarrow as pa

from tasks.encoders.encoder import Encoder
from tasks.encoders.model import Model
from tasks.streams.rebatch import rebatch

if TYPE_CHECKING:
    import torch

AHEAD: Final = 3
"""Forward batches that may be ready or in progress: bounds the memory (64 pictures of 224 x 224 are 10 MB)."""
_POLL_S: Final = 0.1


class Prepared:
    """One forward batch, ready for the device once every job is done."""

    def __init__(self, rows: pa.Table, models: Mapping[Encoder, Model]) -> None:
        n = rows.num_rows
        self._rows = rows
        self._models = models
        self.sample_ids = rows["sample_id"].combine_chunks()
        self.decoded = np.zeros(n, bool)
        """(n,): whether there is a picture. Without one, `pictures` is black."""
        self.captioned = np.zeros(n, bool)
        """(n,): whether there is a caption that is not blank."""
        self.pictures = {encoder.name: np.zeros((n, *model.shape), np.uint8) for encoder, model in models.items()}
        """By encoder, uint8 (n, height, width, 3)."""
        self.tokens: dict[str, torch.Tensor] = {}
        """By encoder with text, int64 (n, context length)."""

    def jobs(self) -> Iterator[Callable[[], None]]:
        """Yield the jobs for threads, in any order: each job fills its own rows."""
        if "caption" in self._rows.column_names:
            yield self._tokenize
        for row in range(self._rows.num_rows):
            yield partial(self._decode, row)

    def _tokenize(self) -> None:
        texts = self._rows["caption"].cast(pa.binary()).to_pylist()  # as bytes: a source may hold broken UTF-8
        captions = [(text or b"").decode("utf-8", "replace") for text in texts]
        self.captioned[:] = [not (caption.isspace() or caption.strip("\0") == "") for caption in captions]
        for encoder, model in self._models.items():
            if encoder.text:
                self.tokens[encoder.name] = model.tokens(captions)

    def _decode(self, row: int) -> None:
        from PIL import Image

        from catalog.inputs import stored_error
        from tasks.images import ImageError, decode

        data = self._rows["image"][row].as_py()
        try:
            picture = Image.fromarray(decode(data or b""))
        except ImageError as error:
            if damage := stored_error(self._rows, row, error.reason):
                raise damage from error
            return
        for encoder, model in self._models.items():
            self.pictures[encoder.name][row] = model.prepare(picture)
        self.decoded[row] = True


_Queue = Queue[tuple[Prepared, list[Future[None]]] | None]


def prepare_ahead(
    batches: Iterator[pa.Table], models: Mapping[Encoder, Model], size: int, threads: int
) -> Iterator[Prepared]:
    """Yield the rows of `batches` in forward batches of exactly `size` (the last one may be smaller), in order.

    Images are decoded once for all models. Exceptions of the input are raised here.
    """
    stop = threading.Event()
    queue: _Queue = Queue(AHEAD)
    with ThreadPoolExecutor(threads, "decode") as pool, ThreadPoolExecutor(1, "read") as reader:

        def read() -> None:
            try:
                for rows in rebatch(batches, size):
                    prepared = Prepared(rows, models)
                    _put(queue, (prepared, [pool.submit(job) for job in prepared.jobs()]), stop)
                    if stop.is_set():
                        return
            finally:
                _put(queue, None, stop)

        reading = reader.submit(read)
        try:
            while (item := queue.get()) is not None:
                prepared, jobs = item
                for job in jobs:
                    job.result()
                yield prepared
            reading.result()  # raises the exceptions of the input
        finally:
            stop.set()
            reading.exception()  # it has stopped: no more jobs are submitted to the pool
            pool.shutdown(wait=False, cancel_futures=True)


def _put(queue: _Queue, item: tuple[Prepared, list[Future[None]]] | None, stop: threading.Event) -> None:
    while not stop.is_set():
        with suppress(Full):
            queue.put(item, timeout=_POLL_S)
            return
