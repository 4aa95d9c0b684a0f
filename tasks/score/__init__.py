"""The `score` family: numbers and labels that say what an image is like, from stored embeddings or from pixels."""

from typing import Annotated

from pydantic import Field

from tasks.score.image_issues import ImageIssues
from tasks.score.image_sizes import ImageSizes
from tasks.score.language import Language
from tasks.score.prompts import Prompts
from tasks.score.score import Score
from tasks.score.score_images import ScoreImages
from tasks.score.score_vectors import ScoreVectors

AnyScore = Annotated[
    Score | ScoreVectors | ScoreImages | Prompts | ImageIssues | ImageSizes | Language, Field(discriminator="use")
]

__all__ = ["AnyScore", "ImageIssues", "ImageSizes", "Language", "Prompts", "Score", "ScoreImages", "ScoreVectors"]
