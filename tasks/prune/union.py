"""`method: union`: keep the rows that any of several selectors keeps."""

from functools import reduce
from typing import Literal

import numpy as np
import pyarrow as pa

from catalog.inputs import Inputs
from tasks.prune._base import Selection
from tasks.prune._combine import Combination, together
from tasks.stage import Run


class Union(Combination):
    """Keeps a row where at least one member keeps it. Every member judges every row; fractions are of the same rows.

    As many rows as the members' choices have in all: at least as many as the largest keeps, at most their sum.
    """

    method: Literal["union"] = "union"

    def judge(self, rows: pa.Table, pool: pa.Table, inputs: Inputs, run: Run) -> Selection:
        said = [self.asked(place, rows, pool, inputs, run) for place in range(len(self.of))]
        keep = reduce(np.logical_or, [one.keep for one in said])
        run.note(rows=rows.num_rows, kept=int(keep.sum()))
        return Selection(keep, together(said))
