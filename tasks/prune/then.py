"""`method: then`: apply selectors in sequence, each to the rows that the previous one kept."""

from dataclasses import replace
from typing import Literal

import numpy as np
import pyarrow as pa
from pydantic import Field

from catalog.inputs import Inputs
from tasks.prune._base import Selection, scatter
from tasks.prune._combine import Combination, numbers_of, together
from tasks.stage import Run


class Then(Combination):
    """Apply the members in sequence, each to the rows that the previous one kept.

    A fraction is of the remaining rows; with `of_total`, of the input rows: [0.6, 0.3] then keeps 0.3 of all, not 0.18.
    The last member keeps exactly its number of rows, if that many remain. The result is that of separate stages, but
    rows are read once, and have one decision. Sizes and complexities of concepts are those of the remaining rows.
    """

    method: Literal["then"] = "then"
    of_total: bool = Field(False, description="fractions are of the input rows, not of the remaining rows")

    def judge(self, rows: pa.Table, pool: pa.Table, inputs: Inputs, run: Run) -> Selection:
        left = np.ones(rows.num_rows, bool)
        votes = []
        for place in range(len(self.of)):
            mine = rows if left.all() else rows.filter(pa.array(left))
            one = self.asked(place, mine, pool if self.of_total or place == 0 else mine, inputs, run)
            chosen = scatter(Selection(one.keep, one.evidence, one.numbers), left, "")
            votes.append(replace(one, seen=left, keep=chosen.keep, evidence=chosen.evidence, numbers=chosen.numbers))
            left = chosen.keep
        run.note(rows=rows.num_rows, kept=int(left.sum()))
        return Selection(left, together(votes), numbers_of(votes))
