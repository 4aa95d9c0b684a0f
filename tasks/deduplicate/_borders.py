"""Copies on two sides of a cluster's border: which rows lie close enough to which other cluster, and their pairs.

A cell holds the unit vectors that are nearer to its centroid c than to any other c'. With w = (c - c') / |c - c'|, the
angle of x to the border of the two cells is a(x) = asin(w x), and two vectors are at least as far apart as these angles
differ. So a copy of x within the angle t = acos(1 - epsilon) lies in c' only at a(y) >= a(x) - t; and as a(y) <= 0, the
nearer of the two lies within t / 2. That one *visits* the other's cell, and is compared with all rows there (`_near`).
The bound is certain, but wide in d dimensions: copies differ by a vector of length sqrt(2 epsilon) at most, in about a
random direction, of which w shows one part in sqrt(d). The reach t = 4 sqrt(2 epsilon / d), four standard deviations of
that, is what `likely` means; it lets a few rows visit instead of nearly all. Either way a row visits no more than the
`count` nearest of the cells within reach, and `cut` counts the rows that would have had to visit more.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Final, Literal

import numpy as np

from tasks.deduplicate._near import CosinePairs, Near
from tasks.vectors.core_pool import on_cores
from tasks.vectors.mapped import release
from tasks.vectors.nearest_centroid import block_rows
from tasks.vectors.unit_rows import UnitRows

if TYPE_CHECKING:
    import torch

SLACK: Final = 1e-3
"""Added to each bound on a sine: covers float32 products, and cells that all but touch."""
VISITORS: Final = 512
HOSTS: Final = 2048
"""Rows multiplied at once, of the two sides."""
AHEAD: Final = 2
"""Blocks whose pairs wait to be taken; where all rows are copies, one has 20 MB of them."""

NEAREST: Final = 64
"""Cells that a row may visit, of the likely reach: those whose centroids are nearest to its own cell's. More rows are
then more cells, and no more work a row."""
DEVIATIONS: Final = 4.0
"""Of how far copies lie apart across a border, for the likely reach."""
Reach = Literal["likely", "certain"]


def angle(epsilon: float, dim: int, reach: Reach) -> float:
    """Return how far two copies lie apart at right angles to a border, radians: at most, or as good as always."""
    certain = math.acos(1 - epsilon)
    return certain if reach == "certain" else min(certain, DEVIATIONS * math.sqrt(2 * epsilon / dim))


@dataclass(frozen=True)
class _Visits:
    """Which other cells the rows of one cell visit."""

    visitor: np.ndarray
    """int64 (v,): places."""
    cell: np.ndarray
    """int32 (v,)."""
    strays: int
    cut: int


class Borders:
    """Finds pairs across borders. `vectors`: (m, d), those of a cell lying together; places are rows of it.

    Memory: 12 bytes a visit, at most `count` a row; and a few blocks a core.
    """

    def __init__(
        self,
        vectors: np.ndarray,
        starts: np.ndarray,
        centroids: np.ndarray,
        count: int,
        epsilon: float,
        reach: Reach,
        device: str,
        folded: np.ndarray | None = None,
    ) -> None:
        """`starts`: int64 (k + 1,), where each cell begins; `centroids`: float32 (k, d), unit rows; `folded`: the
        vectors by one `Fold`, float16 (m, w).
        """
        import torch

        self._vectors, self._folded, self._starts, self._device = vectors, folded, starts, device
        self._threshold, self._angle = 1 - epsilon, angle(epsilon, vectors.shape[1], reach)
        self._centroids = torch.from_numpy(np.array(centroids, np.float32)).to(device)
        self._only_near = reach == "likely"
        self.cut = 0
        """Rows that had more cells within reach than they visit: 0 of a certain reach says that no pair is missed."""
        self.strays = 0
        """Rows that are nearer to another centroid than to their own: the bound does not hold for pairs of them."""
        self.compared = 0
        """Pairs that were multiplied so far."""
        self._visit(count)

    @property
    def visits(self) -> int:
        """How many visits there are."""
        return len(self._visitor)

    def _visit(self, count: int) -> None:
        visitors, cells = [np.empty(0, np.int64)], [np.empty(0, np.int32)]
        every = range(len(self._starts) - 1)
        for found in on_cores(lambda cell: self._visits_of(cell, count), every, self._device):
            visitors.append(found.visitor)
            cells.append(found.cell)
            self.strays += found.strays
            self.cut += found.cut
        visitor, cell = np.concatenate(visitors), np.concatenate(cells)
        order = np.argsort(cell, kind="stable")
        self._visitor = visitor[order]
        self._first = np.searchsorted(cell[order], np.arange(len(self._starts)))

    def _visits_of(self, cell: int, count: int) -> _Visits:
        import torch

        start, stop = self._starts[cell], self._starts[cell + 1]
        reach = float(np.sin(self._angle / 2)) + SLACK
        rows = UnitRows(self._vectors[start:stop], self._device)
        others = self._others(cell)
        centroids, own = self._centroids[others], int((others == cell).nonzero())
        step = block_rows(len(others))
        most = min(count, len(others))
        apart = (2 - 2 * (centroids @ centroids[own])).clamp_min(0).sqrt_().clamp_min_(SLACK)
        places, cells = [], []
        strays = cut = 0
        for begin in range(0, len(rows), step):
            near = rows[begin : min(begin + step, len(rows))] @ centroids.T
            sine = near[:, own : own + 1].clone().sub(near).div_(apart)
            sine[:, own] = torch.inf
            strays += int((sine < -SLACK).any(dim=1).sum())
            within = (sine <= reach).sum(dim=1)
            cut += int((within > most).sum())
            some = within.nonzero().squeeze(1)
            lowest, at = sine[some].topk(most, dim=1, largest=False)
            row, column = (lowest <= reach).nonzero(as_tuple=True)
            places.append((some[row] + (start + begin)).cpu().numpy())
            cells.append(others[at[row, column]].to(torch.int32).cpu().numpy())
        return _Visits(np.concatenate(places), np.concatenate(cells), strays, cut)

    def _others(self, cell: int) -> "torch.Tensor":
        """Return the cells that rows of a cell may visit, itself among them: int64 (c,), ascending."""
        import torch

        count = len(self._centroids)
        if not self._only_near or count <= NEAREST + 1:
            return torch.arange(count, device=self._device)
        near = (self._centroids @ self._centroids[cell]).topk(NEAREST + 1).indices
        found: torch.Tensor = torch.unique(torch.cat([near, near.new_tensor([cell])]))
        return found

    def pairs(self, visiting: np.ndarray | None = None, hosting: np.ndarray | None = None) -> Iterator[CosinePairs]:
        """Yield (places of visitors, places of hosts, cosines) above 1 - epsilon; a pair that visits both ways comes
        twice.

        `visiting`, `hosting`: bool (m,), the rows that may be on either side; all where None.
        """
        meetings = self._meetings(visiting, hosting)
        for guests, hosts, found in on_cores(self._meet, meetings, self._device, AHEAD):
            self.compared += guests * hosts
            yield found

    def _meetings(
        self, visiting: np.ndarray | None, hosting: np.ndarray | None
    ) -> Iterator[tuple[np.ndarray, slice | np.ndarray]]:
        """Yield (places of visitors, places of hosts) to be compared: a block of either."""
        for cell, (first, last) in enumerate(pairwise(self._first.tolist())):
            guests = self._visitor[first:last]
            if visiting is not None:
                guests = guests[visiting[guests]]
            start, stop = self._starts[cell : cell + 2].tolist()
            for begin in range(start, stop if len(guests) else start, HOSTS):
                block = slice(begin, min(begin + HOSTS, stop))
                whole = hosting is None or bool(hosting[block].all())
                hosts = block if whole or hosting is None else begin + np.flatnonzero(hosting[block])
                for at in range(0, len(guests), VISITORS):
                    yield guests[at : at + VISITORS], hosts

    def _meet(self, both: tuple[np.ndarray, slice | np.ndarray]) -> tuple[int, int, CosinePairs]:
        """Return (number of visitors, of hosts, their pairs)."""
        guests, hosts = (Near(self._vectors, self._folded, places, self._threshold, self._device) for places in both)
        at, host, cosine = guests.pairs(slice(0, len(guests)), hosts, slice(0, len(hosts)))
        self._release()
        return len(guests), len(hosts), (guests.places[at], hosts.places[host], cosine)

    def _release(self) -> None:
        release(self._vectors)
        if self._folded is not None:
            release(self._folded)
