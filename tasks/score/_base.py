"""The contract of the `score` family: a scorer computes a number, or a label, for every row, in columns of its name.

A `VectorScorer` reads one embedding column, and becomes a `Head`: a chain of affine maps; the first maps of all scorers
are one matrix product. An `ImageScorer` reads pixels. Scores are written once; thresholds are SQL in a later stage.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, ClassVar, Self

import numpy as np
import pyarrow as pa
from pydantic import Field

from catalog.errors import RecipeError
from catalog.schema import score
from tasks.files.weights import Weights
from tasks.score._heads import Head
from tasks.score.prompts import PromptSet
from tasks.stage import Config, Tables
from tasks.vectors.columns import vector_column, width

if TYPE_CHECKING:
    from PIL.Image import Image

Forward = Callable[[np.ndarray], np.ndarray]
"""uint8 (n, height, width, 3) to float32 (n,)."""


class Scorer(Config, ABC):
    """One scorer. Subclasses add `use: Literal["x"] = "x"`; the column is named `name`, by default `use`."""

    version: ClassVar[int] = 1
    """Increase it when the scores change for the same input: it is in the fingerprint, and in the field's metadata."""
    about: ClassVar[str]
    """The meaning of the number, its range and direction."""

    use: str
    name: str = Field("", pattern=r"^([a-z][a-z0-9_]*)?$", description="the column; default: the value of `use`")

    def model_post_init(self, context: Any) -> None:
        if not self.name:
            object.__setattr__(self, "name", self.use)

    def fields(self) -> list[pa.Field]:
        """Return the columns that it writes. Raises RecipeError if one of its files cannot be read."""
        return [score(self.name, self.use, self.version, self.about)]

    def check(self, available: Tables) -> None:
        """Raise RecipeError if the scores cannot be computed from these tables. Fetches and loads nothing."""
        if isinstance(self, Weights):
            self.check_weights()

    def parameters(self) -> dict[str, Any]:
        """Return the parameters that determine its scores, with weights by content, not by path."""
        found = self.settings() | {"version": self.version}
        if isinstance(self, Weights):
            found |= {"weights": self.digest(), "sha256": None}
        return found


class VectorScorer(Scorer):
    """A scorer of stored embeddings. Rows are normalised; null, zero and NaN vectors have the score null."""

    encoder: str = Field("", description="embedding column; default: the first one")

    @property
    def dim(self) -> int | None:
        """The required length of vectors; None: any."""
        return None

    @property
    def prompts(self) -> PromptSet | None:
        """The texts whose vectors it requires, or None. Raises RecipeError if a file of texts cannot be read."""
        return None

    def resolved(self) -> Self:
        """Return the scorer with the contents of its text files, which workers may not have."""
        return self

    def column(self, available: Tables) -> str:
        """Return the embedding column that it reads. Raises RecipeError if it does not exist or has another width."""
        column = vector_column(available, self.encoder)
        found = width(available["embeddings"], column)
        if self.dim is not None and found != self.dim:
            raise RecipeError(f"scorer {self.name!r}: embedding column {column!r}: found {found}, expected {self.dim}")
        return column

    def check(self, available: Tables) -> None:
        super().check(available)
        self.column(available)

    @abstractmethod
    def head(self, vectors: Mapping[str, np.ndarray]) -> Head:
        """Load the head. `vectors`: label -> float32 (d,) of `prompts`, in order; raises UserError."""


class ImageScorer(Scorer):
    """A scorer of pixels. An image is decoded once for all of them; undecodable images have the score null."""

    shape: ClassVar[tuple[int, int, int]]
    """height, width, 3 of the result of `prepare`."""

    @abstractmethod
    def prepare(self, picture: "Image") -> np.ndarray:
        """Return uint8 of `shape`. Runs in threads."""

    @abstractmethod
    def open(self, device: str) -> Forward:
        """Load the network. Raises UserError for wrong weights."""
