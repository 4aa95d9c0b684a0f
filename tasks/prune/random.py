"""`method: random`: keep a uniform sample. The baseline that every other method must beat."""

from typing import Literal

import numpy as np
import pyarrow as pa

from catalog.inputs import Inputs
from tasks.prune._base import ClusterSelector, Rows, Selection, measured, sentences
from tasks.stage import Columns, Run, Tables
from tasks.vectors import random_keys as draw


class Random(ClusterSelector):
    """Keep a uniform sample without replacement: the rows with the smallest keys of the seed and their sample_id.

    If there are clusters, it samples from the same rows as the other methods, those with an embedding, so that arms of
    an experiment differ only in the selection; otherwise from all rows. A smaller `keep` keeps a subset.
    """

    method: Literal["random"] = "random"
    seeded = True

    def inputs(self, available: Tables) -> Columns:
        if "clusters" in available:
            return super().inputs(available)
        return {"images": ("status",)} if "images" in available else {"source": ("url",)}

    def usable(self, rows: pa.Table) -> np.ndarray:
        return super().usable(rows) if "cluster" in rows.column_names else np.ones(rows.num_rows, bool)

    def _rows(self, rows: pa.Table) -> Rows:
        if "cluster" in rows.column_names:
            return super()._rows(rows)
        count = rows.num_rows
        return Rows(rows.column("sample_id").to_numpy(), np.zeros(count, np.int32), np.zeros(count, np.float32))

    def select(self, rows: Rows, total: int, inputs: Inputs, run: Run) -> Selection:
        order = np.argsort(draw.keys(rows.ids, run.seed), kind="stable")
        ranks = np.empty(len(rows), np.int64)
        ranks[order] = np.arange(len(rows))
        evidence = sentences("drawn as ", ranks + 1, f" of {len(rows)}")
        return Selection(ranks < total, evidence, measured(rank=ranks + 1, rows=len(rows)))
