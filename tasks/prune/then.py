"""`method: then`: let one selector choose among what the one before it left."""

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
    """Applies its members one after the other, each to the rows that the one before kept.

    A fraction is of what was left; with `of_total`, of the rows that came in: [0.6, 0.3] then keeps 0.3 of all, not
    0.18. What the last member keeps is exactly what it says, as far as so many rows are left. It is what stages in a
    row would do, but reads the rows once and gives one decision. Sizes and complexities of concepts are those of the
    rows that were left.
    """

    method: Literal["then"] = "then"
    of_total: bool = Field(False, description="fractions are of the rows that came in, not of what was left")

    def judge(self, rows: pa.Table, pool: pa.Table, inputs: Inputs, run: Run) -> Selection:
        left = np.ones(rows.num_rows, bool)
        said = []
        for place in range(len(self.of)):
            mine = rows if left.all() else rows.filter(pa.array(left))
            one = self.asked(place, mine, pool if self.of_total or place == 0 else mine, inputs, run)
            chosen = scatter(Selection(one.keep, one.evidence, one.numbers), left, "")
            said.append(replace(one, seen=left, keep=chosen.keep, evidence=chosen.evidence, numbers=chosen.numbers))
            left = chosen.keep
        run.note(rows=rows.num_rows, kept=int(left.sum()))
        return Selection(left, together(said), numbers_of(said))
