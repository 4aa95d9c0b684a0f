"""`method: union`: keep the rows that any of several selectors keeps."""

from typing import ClassVar, Literal

import numpy as np

from tasks.prune._combine import Vote


class Union(Vote):
    """Keeps a row where at least one member keeps it. Every member judges every row; fractions are of the same rows.

    As many rows as the members' choices have in all: at least as many as the largest keeps, at most their sum.
    """

    method: Literal["union"] = "union"
    decide: ClassVar[np.ufunc] = np.logical_or
