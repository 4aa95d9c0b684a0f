"""`method: intersection`: keep the rows that all of several selectors keep."""

from functools import reduce
from typing import Literal

import numpy as np
import pyarrow as pa

from catalog.inputs import Inputs
from tasks.prune._base import Selection
from tasks.prune._combine import Combination, together
from tasks.stage import Run


class Intersection(Combination):
    """Keeps a row where every member keeps it. Every member judges every row; fractions are of the same rows.

    As many rows as the members' choices share: of members that keep 0.3 and 0.5, often about 0.15. For a total that is
    known beforehand, use `method: then`.
    """

    method: Literal["intersection"] = "intersection"

    def judge(self, rows: pa.Table, pool: pa.Table, inputs: Inputs, run: Run) -> Selection:
        said = [self.asked(place, rows, pool, inputs, run) for place in range(len(self.of))]
        keep = reduce(np.logical_and, [one.keep for one in said])
        run.note(rows=rows.num_rows, kept=int(keep.sum()))
        return Selection(keep, together(said))
