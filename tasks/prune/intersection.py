"""`method: intersection`: keep the rows that all of several selectors keep."""

from typing import ClassVar, Literal

import numpy as np

from tasks.prune._combine import Vote


class Intersection(Vote):
    """Keeps a row where every member keeps it. Every member judges every row; fractions are of the same rows.

    As many rows as the members' choices share: of members that keep 0.3 and 0.5, often about 0.15. For a total that is
    known beforehand, use `method: then`.
    """

    method: Literal["intersection"] = "intersection"
    decide: ClassVar[np.ufunc] = np.logical_and
