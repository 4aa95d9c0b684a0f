"""`method: intersection`: keep the rows that all of several selectors keep."""

from typing import ClassVar, Literal

import numpy as np

from tasks.prune._combine import Vote


class Intersection(Vote):
    """Keep a row if every member keeps it. Every member judges every row; fractions are of the same rows.

    The number of rows is that of the intersection: for members that keep 0.3 and 0.5, often about 0.15. For a total
    that is known in advance, use `method: then`.
    """

    method: Literal["intersection"] = "intersection"
    decide: ClassVar[np.ufunc] = np.logical_and
