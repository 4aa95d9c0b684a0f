"""`method: prototypes`: keep the rows that are hardest, or easiest, by their distance to their prototype."""

from typing import Literal

import numpy as np
from pydantic import Field

from catalog.inputs import Inputs
from tasks.prune._base import ClusterSelector, Rows, Selection, Which, measured, sentences
from tasks.stage import Run


class Prototypes(ClusterSelector):
    """Rank rows by 1 - cosine to the centroid of their cluster, with a floor for every cluster.

    Each of the K clusters that have rows keeps at least min(size, int(total / K * balance)) of its first rows; the rest
    of the total is filled by rank over all clusters, ties by sample_id.
    Source: Sorscher et al., Beyond neural scaling laws, NeurIPS 2022 (arXiv 2206.14486), section 5, self-supervised
    prototypes; the balance score r = 0.5 is theirs (appendix). Not k-medoids: the prototype is a mean and not a row.
    """

    method: Literal["prototypes"] = "prototypes"
    which: Which = Field("hard", description="hard where data is plentiful, easy where it is scarce")
    balance: float = Field(0.5, ge=0, le=1, description="floor of a cluster, as a fraction of an equal share")

    def select(self, rows: Rows, total: int, inputs: Inputs, run: Run) -> Selection:
        sizes = rows.sizes()
        floor = int(total / np.count_nonzero(sizes) * self.balance)
        key = rows.difficulty(self.which)
        ranks = rows.ranks(key)
        keep = ranks < floor
        rest = np.flatnonzero(~keep)
        filled = rest[np.argsort(key[rest], kind="stable")[: total - int(keep.sum())]]
        keep[filled] = True
        run.note(clusters=int(np.count_nonzero(sizes)), floor=floor, kept_by_floor=total - len(filled))
        if len(filled):
            run.note(threshold_distance=round(float(rows.distance[filled[-1]]), 6))
        size = sizes[rows.cluster]
        least = np.minimum(floor, size)
        evidence = sentences(
            "distance ", rows.distance, ", rank ", ranks + 1, " of ", size,
            " in cluster ", rows.cluster, ", floor ", least,
        )  # fmt: skip
        numbers = measured(distance=rows.distance, rank=ranks + 1, size=size, cluster=rows.cluster, floor=least)
        return Selection(keep, evidence, numbers)
