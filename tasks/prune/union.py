"""`method: union`: keep the rows that any of several selectors keeps."""

from typing import ClassVar, Literal

import numpy as np

from tasks.prune._combine import Vote


class Union(Vote):
    """Keep a row if at least one member keeps it. Every member judges every row; fractions are of the same rows.

    The number of rows is that of the union: at least that of the largest member, at most their sum.
    """

    method: Literal["union"] = "union"
    decide: ClassVar[np.ufunc] = np.logical_or
