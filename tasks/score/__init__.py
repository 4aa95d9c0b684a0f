"""The `score` family: numbers and labels that describe an image, from stored embeddings or from pixels.

A new scorer is one name in `AnyVectorScorer` or `AnyImageScorer`.
"""

from typing import Annotated

from pydantic import Field

from tasks.score.aesthetic_v1 import AestheticV1
from tasks.score.aesthetic_v2 import AestheticV2
from tasks.score.image_issues import ImageIssues
from tasks.score.image_sizes import ImageSizes
from tasks.score.language import Language
from tasks.score.nsfw import Nsfw
from tasks.score.prompts import Prompts
from tasks.score.score import Score
from tasks.score.score_images import ScoreImages
from tasks.score.score_vectors import ScoreVectors
from tasks.score.violence import Violence
from tasks.score.watermark import Watermark
from tasks.score.zero_shot import ZeroShot

AnyVectorScorer = Annotated[AestheticV1 | AestheticV2 | Nsfw | Violence | ZeroShot, Field(discriminator="use")]
"""Every scorer of stored embeddings."""
AnyImageScorer = Watermark
"""Every scorer of pixels."""
AnyScorer = Annotated[AnyVectorScorer | AnyImageScorer | ImageIssues | Language, Field(discriminator="use")]
"""Every scorer that a stage `score` can name."""
AnyScore = Annotated[
    Score | ScoreVectors | ScoreImages | Prompts | ImageIssues | ImageSizes | Language, Field(discriminator="use")
]
"""Every member that a recipe can name."""

Score.model_rebuild(_types_namespace={"AnyScorer": AnyScorer})
ScoreVectors.model_rebuild(_types_namespace={"AnyVectorScorer": AnyVectorScorer})
ScoreImages.model_rebuild(_types_namespace={"AnyImageScorer": AnyImageScorer})

__all__ = [
    "AnyImageScorer",
    "AnyScore",
    "AnyScorer",
    "AnyVectorScorer",
    "ImageIssues",
    "ImageSizes",
    "Language",
    "Prompts",
    "Score",
    "ScoreImages",
    "ScoreVectors",
]
