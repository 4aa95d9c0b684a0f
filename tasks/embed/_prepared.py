"""Forward batches of `embed`: pictures for every encoder, and the tokens of captions."""

from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa

from tasks.encoders.encoder import Encoder
from tasks.encoders.model import Model

if TYPE_CHECKING:
    import torch


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
        from tasks.images.stored import picture_of

        picture = picture_of(self._rows, row)
        if picture is None:
            return
        for encoder, model in self._models.items():
            self.pictures[encoder.name][row] = model.prepare(picture)
        self.decoded[row] = True
