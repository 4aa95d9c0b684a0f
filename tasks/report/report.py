"""`use: report`: the data card as a table, one row per fact or picture. `Report.page` renders it.

Sections, each in `position` order, `content` being JSON:

    summary         rows, kept, kept_bytes, concepts, title, description
    funnel          per step: stage, seen, kept, rejected, the most frequent reasons (reason, rows, example), other_rows
    before, after   samples of the input, and of the kept rows: caption, kept, stage, reason, evidence
    rejected        samples of the most frequent reasons
    concept         per cluster: cluster, size, kept, mean_distance, terms; after `use: concepts` intra, inter, label
    concept_image   the samples nearest to the concepts' centroids; after `use: concepts` also the farthest (at: edge)
    balance         effective number of clusters and size by rank, before and after
    coverage        per pruning stage, and member of a combination: coverage of the concepts and their tail;
                    numbers_missing if the members cannot be shown, as the decisions have no numbers
    histogram       per measure: edges, all, left, below, above, min, max, median, median_kept
    pair            two rows per pair of near-duplicates: representative, similarity, reason
    model           name, family, licence, metrics

The table is a function of its inputs and the seed: the same bytes on every run.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, ClassVar, Final, Literal

import pyarrow as pa
from pydantic import Field

from catalog.errors import RecipeError
from catalog.inputs import Inputs
from catalog.schema import PLACE_NAMES, field
from tasks.report._base import Entry, ReportTables, by_position
from tasks.report._concepts import concepts
from tasks.report._coverage import coverages
from tasks.report._funnel import funnel, summary
from tasks.report._histograms import histograms, measures
from tasks.report._models import models
from tasks.report._pictures import grids, pairs
from tasks.report._thumbnails import thumbnails
from tasks.stage import Batches, Columns, Run, Size, Tables, TableStage

CARD: Final = pa.schema(
    [
        field("section", pa.string(), "summary, funnel, before, after, rejected, concept, ..."),
        field("position", pa.int32(), "0, 1, ... within the section"),
        field("content", pa.string(), "JSON: what this row says"),
        field("image", pa.large_binary(), "WebP, at most 160 px on a side; null where there is no picture"),
    ]
)

READ: Final[Columns] = {
    "source": ("url", "caption", "label"),
    "images": (
        *("status", "reason", "detail", *PLACE_NAMES, "image"),
        *("original_width", "original_height", "brightness", "blur", "entropy"),
    ),
    "decisions": ("stage", "keep", "reason", "evidence", "representative", "similarity", "numbers"),
    "clusters": ("cluster", "distance"),
    "concepts": ("cluster", "intra", "inter", "name_caption", "name_label", "label_cosine", "nearest", "farthest"),
    "models": ("name", "family", "sha256", "licence", "metrics"),
}
"""The columns that a card can show, if they exist, in addition to scores (by role)."""


class Report(TableStage):
    """Write the data card. Works after any stages: sections without data are omitted."""

    version = 3
    table: ClassVar[str] = "report"
    rows_per_sample = "none"
    grows_with = "nothing"
    alive_only: ClassVar[bool] = False
    seeded: ClassVar[bool] = True

    use: Literal["report"] = "report"
    title: str = Field("", max_length=200, description="the card's heading; default: the dataset's name")
    description: str = Field("", max_length=4000, description="a sentence or two on what the dataset is for")
    samples: int = Field(24, ge=0, le=96, description="pictures in each grid")
    concepts: int = Field(40, ge=0, le=200, description="clusters shown, the largest first")
    pairs: int = Field(12, ge=0, le=48, description="near-duplicate pairs shown")

    def inputs(self, available: Tables) -> Columns:
        """Return every column that the card can show, of the available tables."""
        columns = {
            table: tuple(name for name in names if name in available[table].names)
            for table, names in READ.items()
            if table in available
        }
        for measure in measures(available):
            have = columns.get(measure.table, ())
            columns[measure.table] = have + tuple(name for name in measure.needs if name not in have)
        if not columns:
            raise RecipeError("report: no earlier stage writes a table that a card can show (source, images, ...)")
        return columns

    def output(self, available: Tables) -> pa.Schema:
        """Return the schema of the card, CARD."""
        return CARD

    def work(self, size: Size) -> float:
        """Return 1: the pictures are a sample, and reading columns takes little time compared to that."""
        return 1.0

    def run(self, inputs: Inputs, run: Run) -> Batches:
        """Yield the card, one table of a few hundred rows."""
        entries = list(self._entries(inputs, run.seed, run.stages))
        pictured = [entry.sample_id for entry in entries if entry.sample_id is not None]
        images = thumbnails(inputs, pictured)
        run.note(entries=len(entries), pictures=len(images))
        yield _table(entries, images)

    @staticmethod
    def page(card: pa.Table, lineage: Mapping[str, Any], timings: Sequence[Mapping[str, Any]] = ()) -> str:
        """Return the HTML of a card: see `tasks.report._page.render`."""
        from tasks.report._page import render

        return render(card, lineage, timings)

    def _entries(self, inputs: Inputs, seed: int, stages: Sequence[str]) -> Iterator[Entry]:
        tables = ReportTables(inputs, stages)
        schemas = {name: inputs.schema(name) for name in inputs.tables()}
        yield summary(tables, self.title, self.description)
        yield from funnel(tables)
        yield from grids(tables, self.samples, seed)
        yield from concepts(tables, self.concepts)
        yield from coverages(tables)
        yield from histograms(tables, measures(schemas))
        yield from pairs(tables, self.pairs)
        yield from models(tables)


def _table(entries: list[Entry], images: dict[int, bytes]) -> pa.Table:
    columns: dict[str, list[Any]] = {name: [] for name in CARD.names}
    for position, entry in by_position(entries):
        columns["section"].append(entry.section)
        columns["position"].append(position)
        columns["content"].append(json.dumps(entry.content, sort_keys=True))
        columns["image"].append(None if entry.sample_id is None else images.get(entry.sample_id))
    return pa.table(columns, schema=CARD)
