"""`embed`: vectors of images and captions, by any number of encoders, in one pass over the bytes.

Images are decoded once for all encoders, by threads, some forward batches ahead of the device. The forward batches of
a part are always the same rows, however the rows arrive, so that a vector depends only on its part.

Source: CLIP, Radford et al., ICML 2021, arXiv:2103.00020 (the score is the cosine of section 2.3, unscaled).
"""

from collections.abc import Iterator, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar, Final, Literal

import numpy as np
import pyarrow as pa
from pydantic import Field, model_validator

from catalog.errors import RecipeError, nearest
from catalog.schema import SAMPLE_ID, field
from tasks.embed._prepared import Prepared
from tasks.encoders.encoder import Encoder
from tasks.encoders.model import Model, load, unit
from tasks.stage import Batches, Columns, MapStage, Resources, Step, Tables
from tasks.streams.decode_ahead import prepare_ahead

if TYPE_CHECKING:
    from tasks.embed import AnyEncoder

AHEAD: Final = 3
"""Forward batches that may be ready or in progress: bounds the memory (64 pictures of 224 x 224 are 10 MB)."""
UNDECODABLE: Final = "undecodable"
NOT_FINITE: Final = "not_finite"
PIECE_ROWS: Final = 4096
"""Rows of one output table: large enough for good row groups, small enough for memory (8 MB at 2 x 512 numbers)."""


class Embed(MapStage):
    """Write `embeddings`: float16 vectors of length 1, float32 scores, and `embed_reason` if a row lacks a vector.

    A row whose image cannot be decoded has no image vector and no score (`undecodable`); a row for which a model
    returns NaN, infinity or the zero vector lacks that vector (`not_finite`). A missing or blank caption has no vector
    and no score, which is not a failure and has no reason.
    """

    table: ClassVar[str] = "embeddings"

    use: Literal["embed"] = "embed"
    encoders: tuple["AnyEncoder", ...] = Field(min_length=1, description="every encoder, in one pass over the images")
    batch_size: int = Field(64, gt=0, description="images in one forward pass")
    decode_threads: int = Field(4, gt=0, description="threads that decode and resize")
    resources: Resources = Resources(gpus="auto")

    @model_validator(mode="after")
    def _columns_are_distinct(self) -> "Embed":
        names = ["sample_id", "embed_reason"]
        for encoder in self.encoders:
            names += [encoder.name] + ([f"{encoder.name}_text", f"{encoder.name}_score"] if encoder.text else [])
        doubled = sorted({name for name in names if names.count(name) > 1})
        if doubled:
            raise ValueError(f"two columns would be named {doubled[0]!r}: give the encoders other names")
        return self

    def inputs(self, available: Tables) -> Columns:
        """Return the image, and the caption if an encoder has text."""
        wanted: Columns = {"images": ("image",)}
        if self._reads_captions:
            wanted["source"] = ("caption",)
        for table in wanted:
            if table not in available:
                raise RecipeError(f"embed needs the table {table!r}{nearest(table, available)}")
        for encoder in self.encoders:
            encoder.check(available)
        return wanted

    def output(self, available: Tables) -> pa.Schema:
        """Return sample_id, each encoder's columns, and embed_reason."""
        about = "why a vector is missing: undecodable or not_finite; null where none is"
        columns = [column for encoder in self.encoders for column in encoder.fields(available)]
        return pa.schema([SAMPLE_ID, *columns, field("embed_reason", pa.string(), about)])

    def sides(self, available: Tables) -> tuple[str, ...]:
        """Return `models` if the recipe trains one of the encoders."""
        return ("models",) if any(encoder.trained for encoder in self.encoders) else ()

    def parameters(self) -> dict[str, Any]:
        """Return the fields, with local checkpoints by content; without decode_threads, which changes no result."""
        encoders = [encoder.parameters() for encoder in self.encoders]
        return super().parameters() | {"encoders": encoders, "decode_threads": None}

    def open(self, device: str, sides: Mapping[str, pa.Table]) -> Step:
        """Load every encoder. Raises UserError if weights cannot be loaded."""
        import torch

        torch.set_num_threads(max(1, int(self.resources.cpus)))
        models = {encoder: load(encoder, device, sides) for encoder in self.encoders}
        return partial(self._step, models)

    @property
    def _reads_captions(self) -> bool:
        return any(encoder.text for encoder in self.encoders)

    def _step(self, models: Mapping[Encoder, Model], batches: Iterator[pa.Table]) -> Batches:
        pieces: list[pa.Table] = []
        rows = 0
        prepare = partial(Prepared, models=models)
        for prepared in prepare_ahead(batches, self.batch_size, self.decode_threads, prepare, AHEAD):
            pieces.append(_embed(models, prepared))
            rows += pieces[-1].num_rows
            if rows >= PIECE_ROWS:
                yield pa.concat_tables(pieces).combine_chunks()
                pieces, rows = [], 0
        if pieces:
            yield pa.concat_tables(pieces).combine_chunks()


def _embed(models: Mapping[Encoder, Model], prepared: Prepared) -> pa.Table:
    columns: dict[str, pa.Array] = {"sample_id": prepared.sample_ids}
    fault = np.zeros(len(prepared.decoded), bool)
    for encoder, model in models.items():
        image, image_good = unit(model.images(prepared.pictures[encoder.name]), prepared.decoded)
        columns[encoder.name] = _vectors(image, image_good)
        fault |= prepared.decoded & ~image_good
        if not encoder.text:
            continue
        text, text_good = unit(model.texts(prepared.tokens[encoder.name]), prepared.captioned)
        columns[f"{encoder.name}_text"] = _vectors(text, text_good)
        cosine = np.einsum("nd,nd->n", image, text)
        columns[f"{encoder.name}_score"] = pa.array(cosine, pa.float32(), mask=~(image_good & text_good))
        fault |= prepared.captioned & ~text_good
    reasons = np.where(prepared.decoded, np.where(fault, NOT_FINITE, ""), UNDECODABLE)
    columns["embed_reason"] = pa.array(reasons, pa.string(), mask=reasons == "")
    return pa.table(columns)


def _vectors(vectors: np.ndarray, good: np.ndarray) -> pa.Array:
    values = pa.array(vectors.astype(np.float16).ravel())
    return pa.FixedSizeListArray.from_arrays(values, vectors.shape[1], mask=pa.array(~good))
