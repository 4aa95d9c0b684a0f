"""`use: prompts`: the vectors of the labels with which scorers compare images, made once for all actors.

`use: score` adds it if a scorer has texts. The texts are embedded by the encoder that made the embedding column, so
images and texts share a space; templates are averaged into one vector per label, uniformly or with ZPE's weights.
"""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Final, Literal

import numpy as np
import pyarrow as pa
from pydantic import Field, model_validator

from catalog.errors import UserError
from catalog.inputs import Inputs
from catalog.schema import field
from tasks.encoders.encoder import Encoder, encoder_of
from tasks.encoders.model import Model, load
from tasks.files.weights import Weights
from tasks.score._zpe import template_scores, template_weights
from tasks.stage import Batches, Columns, Config, Run, Tables, TableStage
from tasks.vectors.columns import vector_column
from tasks.vectors.sample import Sample
from tasks.vectors.unit_rows import UnitRows

if TYPE_CHECKING:
    import torch

SCHEMA: Final = pa.schema(
    [
        field("scorer", pa.string(), "the scorer whose label it is"),
        field("label", pa.string(), "the label, in the recipe's order"),
        field("vector", pa.list_(pa.float32()), "weighted mean of the label's text vectors over the templates"),
    ]
)
BLOCK_ROWS: Final = 4096
"""Images multiplied with one template at once."""


class Reference(Weights):
    """Images unrelated to the corpus (ZPE: 20,000 of LAION-400M), as vectors of the same encoder.

    A NumPy, torch or safetensors file with one array: (n, d) vectors, or (d,), their mean. Rows are scaled to length 1
    before they are averaged; a mean is used unchanged.
    """

    def mean(self, dim: int) -> np.ndarray:
        """Return the mean vector: float64 (d,). Raises UserError if the file has other arrays."""
        arrays = [array.double().numpy() for array in self.read().values()]
        if len(arrays) != 1 or arrays[0].ndim not in (1, 2) or arrays[0].shape[-1] != dim or arrays[0].size == 0:
            shapes = ", ".join(str(array.shape) for array in arrays)
            raise UserError(f"reference {self.weights}: found arrays {shapes}, expected one of (n, {dim}) or ({dim},)")
        (array,) = arrays
        if array.ndim == 2:
            array = array[np.linalg.norm(array, axis=1) > 0]
            array = (array / np.linalg.norm(array, axis=1, keepdims=True)).mean(0)
        if not np.isfinite(array).all():
            raise UserError(f"reference {self.weights}: its mean is not finite")
        return np.asarray(array)


class Ensemble(Config):
    """How the templates of a label are combined into one vector."""

    ensemble: Literal["mean", "zpe"] = Field("mean", description="equal weights, or ZPE's, fitted on the corpus")
    logit_scale: float = Field(100.0, gt=0, description="factor of the cosines; CLIP learnt 100")
    sample_rows: int = Field(20_000, gt=0, description="zpe: images of the corpus to fit on, sampled by the seed")
    reference: Reference | None = Field(
        None, description="zpe: vectors of unrelated images; default: the corpus itself"
    )


class PromptSet(Ensemble):
    """The texts of one scorer: every template with every label."""

    name: str = Field(description="the scorer")
    encoder: str = Field("", description="embedding column; default: the first one")
    labels: tuple[str, ...] = Field(min_length=2, description="the values of {} in the templates")
    templates: tuple[str, ...] = Field(min_length=1, description="texts with {} for the label")

    @model_validator(mode="after")
    def _texts_are_sound(self) -> "PromptSet":
        doubled = sorted({label for label in self.labels if self.labels.count(label) > 1})
        if doubled:
            raise ValueError(f"scorer {self.name!r}: the label {doubled[0]!r} is a duplicate")
        for template in self.templates:
            if template.count("{}") != 1:
                raise ValueError(
                    f"scorer {self.name!r}: the template {template!r} has no {{}} for the label, or several"
                )
        return self

    def texts(self, template: str) -> list[str]:
        """Return one template with every label. Braces in labels have no special meaning."""
        return [template.replace("{}", label) for label in self.labels]

    def parameters(self) -> dict[str, Any]:
        """Return the parameters that determine the vectors, with the reference by content."""
        reference = None if self.reference is None else self.reference.digest()
        return self.settings() | {"reference": reference}


class Prompts(TableStage):
    """Write `prompts`: one vector for each scorer and label, and, as facts, the template weights of each ZPE set.

    ZPE is fitted on at most `sample_rows` alive rows that have a usable embedding, drawn by the seed. Where there is
    none, the weights are equal. It reads the embeddings table, so it is made again, and the scores after it, when the
    corpus grows: weights that moved are new scores.
    """

    table: ClassVar[str] = "prompts"
    rows_per_sample = "none"
    seeded: ClassVar[bool] = True

    use: Literal["prompts"] = "prompts"
    sets: tuple[PromptSet, ...] = Field(min_length=1, description="the texts of every scorer that has texts")

    def inputs(self, available: Tables) -> Columns:
        """Return the columns that ZPE is fitted on."""
        read: list[str] = []
        for set_ in self.sets:
            column = vector_column(available, set_.encoder)
            encoder = encoder_of(available["embeddings"], column)
            encoder.model_copy(update={"text": True}).check(available)  # check its tokenizer
            if set_.reference is not None:
                set_.reference.check_weights()
            if set_.ensemble == "zpe" and column not in read:
                read.append(column)
        return {"embeddings": tuple(read)}

    def sides(self, available: Tables) -> tuple[str, ...]:
        """Return the models where the recipe trains an encoder."""
        columns = [vector_column(available, set_.encoder) for set_ in self.sets]
        trained = any(encoder_of(available["embeddings"], column).trained is not None for column in columns)
        return ("models",) if trained else ()

    def sides_hashed_as_inputs(self) -> tuple[str, ...]:
        return ("models",)

    def output(self, available: Tables) -> pa.Schema:
        return SCHEMA

    def parameters(self) -> dict[str, Any]:
        return super().parameters() | {"sets": [set_.parameters() for set_ in self.sets]}

    def run(self, inputs: Inputs, run: Run) -> Batches:
        schema = inputs.schema("embeddings")
        models: dict[Encoder, Model] = {}
        for done, set_ in enumerate(self.sets):
            column = vector_column({"embeddings": schema}, set_.encoder)
            encoder = encoder_of(schema, column)
            if encoder not in models:
                sides = {} if encoder.trained is None else {"models": inputs.whole("models")}
                models[encoder] = load(encoder, run.device, sides)
            texts = text_vectors(set_, models[encoder], run.scratch / f"{set_.name}.texts.npy")
            weights = np.full(len(set_.templates), 1 / len(set_.templates))
            if set_.ensemble == "zpe":
                weights = _fit(set_, texts, inputs, column, run)
                shares = {text: round(float(w), 6) for text, w in zip(set_.templates, weights, strict=True)}
                run.note(**{f"{set_.name}_template_weights": shares})
            run.progress(done + 1, len(self.sets), "label sets")
            yield _rows(set_, _weighted(weights, texts))


def text_vectors(set_: PromptSet, model: Model, path: Path) -> np.ndarray:
    """Return the texts' vectors, of length 1: float32 (templates, labels, d), memory-mapped at `path`.

    Raises UserError if the model's vector of a text is unusable.
    """
    found: np.ndarray | None = None
    for number, template in enumerate(set_.templates):
        vectors = model.unit_texts(set_.texts(template))
        bad = np.flatnonzero(~vectors.any(axis=1))
        if len(bad):
            raise UserError(f"scorer {set_.name!r}: no usable vector of the text {set_.texts(template)[bad[0]]!r}")
        if found is None:
            shape = (len(set_.templates), *vectors.shape)
            found = np.lib.format.open_memmap(path, mode="w+", dtype=np.float32, shape=shape)
        found[number] = vectors
    assert found is not None  # there is at least one template
    return found


def _fit(set_: PromptSet, texts: np.ndarray, inputs: Inputs, column: str, run: Run) -> np.ndarray:
    sample = Sample(run.scratch / f"{set_.name}.images.npy", set_.sample_rows, texts.shape[2], run.seed)
    for ids, vectors in inputs.vectors("embeddings", column):
        sample.add(ids, vectors)
    _, rows = sample.take()
    run.note(**{f"{set_.name}_zpe_rows": len(rows)})
    if not len(rows):
        return np.full(len(texts), 1 / len(texts))
    images = UnitRows(rows, run.device)
    test_mean = np.sum([block.double().sum(0).cpu().numpy() for block in _blocks(images)], axis=0) / len(rows)
    reference = test_mean if set_.reference is None else set_.reference.mean(texts.shape[2])
    return template_weights(template_scores(_blocks(images), texts, (reference + test_mean) / 2, set_.logit_scale))


def _weighted(weights: np.ndarray, texts: np.ndarray) -> np.ndarray:
    """Return sum_p w_p texts_p: float64 (labels, d), one template in memory at a time."""
    total = np.zeros(texts.shape[1:])
    for weight, vectors in zip(weights, texts, strict=True):
        total += weight * vectors
    return total


def _blocks(images: UnitRows) -> "Iterator[torch.Tensor]":
    for start in range(0, len(images), BLOCK_ROWS):
        yield images[start : start + BLOCK_ROWS]


def _rows(set_: PromptSet, vectors: np.ndarray) -> pa.Table:
    column = pa.array(list(vectors.astype(np.float32)), pa.list_(pa.float32()))
    return pa.table([[set_.name] * len(vectors), list(set_.labels), column], schema=SCHEMA)


def vectors_of(prompts: pa.Table, scorer: str) -> Mapping[str, np.ndarray]:
    """Return label -> float32 (d,) of one scorer, in the recipe's order, from the table `prompts`."""
    rows = [row for row in prompts.to_pylist() if row["scorer"] == scorer]
    return {row["label"]: np.asarray(row["vector"], np.float32) for row in rows}
