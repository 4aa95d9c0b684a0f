"""`method: random`: keep a uniform sample. The baseline that every other method must beat."""

from typing import Literal

import numpy as np

from catalog.inputs import Inputs
from tasks import draw
from tasks.prune._base import Rows, Selection, Selector, sentence
from tasks.stage import Columns, Run, Tables


class Random(Selector):
    """Keeps a uniform sample without replacement: the rows with the smallest keys of the seed and their sample_id.

    Where there are clusters, it chooses among the same rows as the other methods, those with an embedding, so that arms
    of an experiment differ in the choice alone; where there are none, among all. A smaller `keep` keeps a subset.
    """

    method: Literal["random"] = "random"
    seeded = True

    def inputs(self, available: Tables) -> Columns:
        if "clusters" in available:
            return super().inputs(available)
        return {"images": ("status",)} if "images" in available else {"source": ("url",)}

    def _rows(self, inputs: Inputs) -> tuple[np.ndarray, np.ndarray, Rows]:
        if "clusters" in inputs:
            return super()._rows(inputs)
        ids = inputs.ids()
        count = len(ids)
        return ids, np.ones(count, bool), Rows(ids, np.zeros(count, np.int32), np.zeros(count, np.float32))

    def select(self, rows: Rows, total: int, inputs: Inputs, run: Run) -> Selection:
        order = np.argsort(draw.keys(rows.ids, run.seed), kind="stable")
        ranks = np.empty(len(rows), np.int64)
        ranks[order] = np.arange(len(rows))
        return Selection(ranks < total, sentence("drawn as ", ranks + 1, " of ", np.full(len(rows), len(rows))))
