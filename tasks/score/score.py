"""`use: score`: the entry of a recipe, which expands to the stages that its scorers require.

    prompts         the vectors of labels, if a scorer has texts                      -> table `prompts`
    score_images    scorers of pixels (watermark)                                     -> table `image_scores`
    score_vectors   scorers of embeddings (aesthetic, nsfw, violence, zero_shot)      -> table `scores`
    language        the language of captions                                          -> table `languages`
    image_issues    cleanvision's scores, from the statistics of `download`           -> table `image_issues`

They are apart because they cost so differently: a head more, or labels fitted again, must not decode every image again.
"""

from typing import TYPE_CHECKING, Literal

import pyarrow as pa
from pydantic import Field, model_validator

from catalog.schema import SAMPLE_ID
from tasks.score._base import ImageScorer, VectorScorer
from tasks.score.prompts import Prompts
from tasks.score.score_images import Forwarding, ScoreImages
from tasks.score.score_vectors import ScoreVectors
from tasks.stage import Columns, Resources, Stage, Tables

if TYPE_CHECKING:
    from tasks.score import AnyScorer


class Score(Forwarding, Stage):
    """Compute one column per scorer: float32 scores, or strings for labels.

    A score that cannot be computed is null. Thresholds are SQL in a later `filter`: changing one computes no score.
    """

    use: Literal["score"] = "score"
    table = "scores"
    scorers: tuple["AnyScorer", ...] = Field(min_length=1, description="the scorers, each with columns of its name")
    resources: Resources = Resources(gpus="auto")

    @model_validator(mode="after")
    def _columns_are_distinct(self) -> "Score":
        names = ["sample_id", *(field.name for scorer in self.scorers for field in scorer.fields())]
        doubled = sorted({name for name in names if names.count(name) > 1})
        if doubled:
            raise ValueError(f"two columns would be named {doubled[0]!r}: give the scorers other names")
        return self

    def inputs(self, available: Tables) -> Columns:
        found: Columns = {}
        for stage in self.expand():
            for table, names in stage.inputs(available).items():
                found[table] = tuple(dict.fromkeys((*found.get(table, ()), *names)))
        return found

    def output(self, available: Tables) -> pa.Schema:
        return pa.schema([SAMPLE_ID, *(field for scorer in self.scorers for field in scorer.fields())])

    def expand(self) -> tuple[Stage, ...]:
        vectors = tuple(s.resolved() for s in self.scorers if isinstance(s, VectorScorer))
        images = tuple(s for s in self.scorers if isinstance(s, ImageScorer))
        sets = tuple(prompts for s in vectors if (prompts := s.prompts) is not None)
        forwarding = {name: getattr(self, name) for name in Forwarding.model_fields}
        found: list[Stage] = [part for s in self.scorers if isinstance(s, Stage) for part in s.expand()]
        if sets:
            found.append(Prompts(name=f"{self.name}-prompts", resources=self.resources, sets=sets))
        if images:
            name = f"{self.name}-images" if vectors else self.name
            found.append(ScoreImages(name=name, resources=self.resources, scorers=images, **forwarding))
        if vectors:
            found.append(ScoreVectors(name=self.name, resources=self.resources, scorers=vectors))
        return tuple(found)
