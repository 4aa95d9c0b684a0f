"""`use: zero_shot`: which of several labels matches an image best, by the texts `template.format(label)`.

The logits are a weighted mean over the templates, w_p: sum_p w_p * scale * <x, t(p, c)>. That is linear in x, so the
templates fold into one vector per label: a hundred templates cost as much as one. (CLIP's ensemble also scales each
label's mean vector to length 1; the formula here, ZPE's, does not.)

Source: CLIP, Radford et al., ICML 2021, arXiv:2103.00020, section 3.1; weights: `tasks/score/_zpe.py`.
"""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Self

import numpy as np
import pyarrow as pa
from pydantic import Field

from catalog.errors import RecipeError, UserError
from catalog.schema import field, score
from catalog.user_file import read_lines
from tasks.files.digest import digest_of
from tasks.score._base import VectorScorer
from tasks.score._heads import Affine, Head
from tasks.score.prompts import Ensemble, PromptSet

if TYPE_CHECKING:
    import torch

Texts = tuple[str, ...] | str
"""Texts in the recipe, or a text file with one per line."""


class ZeroShot(Ensemble, VectorScorer):
    """Tags: the best label in column `name`, its probability in `<name>_probability` (softmax over the labels).

    With `each: true` also every label's probability, in `<name>_<label>`; for a label without Latin letters and digits
    the column has its number. In a tie the first label is chosen.
    """

    about: ClassVar[str] = "the label that fits best"

    use: Literal["zero_shot"] = "zero_shot"
    labels: Texts = Field(description="at least two labels, or a text file with one per line")
    templates: Texts = Field(("a photo of a {}.",), description="texts with {} for the label, or a text file of them")
    each: bool = Field(False, description="write the probability of every label")

    @property
    def prompts(self) -> PromptSet:
        ensemble = {name: getattr(self, name) for name in Ensemble.model_fields}
        labels, templates = (_lines(texts, self.name) for texts in (self.labels, self.templates))
        return PromptSet(name=self.name, encoder=self.encoder, labels=labels, templates=templates, **ensemble)

    def resolved(self) -> Self:
        prompts = self.prompts
        return self.model_copy(update={"labels": prompts.labels, "templates": prompts.templates})

    def fields(self) -> list[pa.Field]:
        more = {"scorer": self.use, "version": str(self.version)}
        found = [
            field(self.name, pa.string(), self.about, **more),
            score(f"{self.name}_probability", self.use, self.version, "probability of that label among the labels"),
        ]
        for number, label in enumerate(self.prompts.labels if self.each else ()):
            name = re.sub(r"[^a-z0-9]+", "_", label.lower()).strip("_") or str(number)
            about = f"probability of {label!r} among the labels"
            found.append(score(f"{self.name}_{name}", self.use, self.version, about))
        return found

    def parameters(self) -> dict[str, Any]:
        """Return the parameters with the texts themselves, also those from files."""
        prompts = self.prompts
        found = super().parameters() | {"labels": list(prompts.labels), "templates": list(prompts.templates)}
        return found | {"reference": prompts.parameters()["reference"]}

    def head(self, vectors: Mapping[str, np.ndarray]) -> Head:
        weight = np.stack(list(vectors.values())).astype(np.float64) * self.logit_scale
        return Head((Affine(weight, np.zeros(len(weight))),), self._best, tuple(vectors))

    def _best(self, logits: "torch.Tensor") -> "list[torch.Tensor]":
        probabilities = logits.softmax(1)
        best = logits.argmax(1)
        columns = [best, probabilities.gather(1, best[:, None])[:, 0]]
        return columns + (list(probabilities.unbind(1)) if self.each else [])


def _lines(texts: Texts, name: str) -> tuple[str, ...]:
    if not isinstance(texts, str):
        return texts
    try:
        lines = read_lines(texts)
    except UserError as error:
        raise RecipeError(f"scorer {name!r}: cannot read {texts!r}, expected a text file: {error}") from None
    digest_of(Path(texts))  # recorded, so that a change after planning is noticed
    return tuple(line.strip() for line in lines if line.strip())
