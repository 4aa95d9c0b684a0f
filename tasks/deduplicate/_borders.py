"""Copies across the borders of clusters: candidate rows near a border, and their cross-cell pairs.

A cell contains the unit vectors that are nearer to its centroid c than to any other c'. With w = (c - c') / |c - c'|,
the angle of x to the border of the two cells is a(x) = asin(w x), and the angle between two vectors is at least the
difference of their border angles. So a copy of x within the angle t = acos(1 - epsilon) is in c' only if
a(y) >= a(x) - t; and as a(y) <= 0, the nearer of the two is within t / 2 of the border. That row is a *candidate* of
the other cell (the *target cell*), and is compared with all rows of it (`_near`).
The bound is certain, but loose in d dimensions: copies differ by a vector of length at most sqrt(2 epsilon), in about a
random direction, whose component along w is about 1 / sqrt(d) of it. `likely` uses the reach t = 4 sqrt(2 epsilon / d),
four standard deviations of that component, for which few rows are candidates instead of nearly all. In both cases a row
is a candidate of at most the `count` nearest target cells within reach; `truncated` counts the rows with more.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Final, Literal

import numpy as np

from tasks.deduplicate._limits import LIMITS, Limits
from tasks.deduplicate._near import CosinePairs, Near
from tasks.vectors.core_pool import on_cores
from tasks.vectors.mapped import release
from tasks.vectors.nearest_centroid import block_rows
from tasks.vectors.unit_rows import UnitRows

if TYPE_CHECKING:
    import torch

SLACK: Final = 1e-3
"""Added to each bound on a sine, for rounding of float32 products and nearly identical centroids."""
AHEAD: Final = 2
"""Blocks whose pairs are buffered; if all rows are copies, a block has 20 MB of them."""

NEAREST: Final = 64
"""The maximum number of target cells of a row, for the likely reach: those whose centroids are nearest to its cell's.
The work per row is thus independent of the number of cells."""
DEVIATIONS: Final = 4.0
"""Standard deviations of the distance of copies across a border, for the likely reach."""
Reach = Literal["likely", "certain"]


def angle(epsilon: float, dim: int, reach: Reach) -> float:
    """Return the maximum distance of two copies perpendicular to a border, in radians: certain, or likely."""
    certain = math.acos(1 - epsilon)
    return certain if reach == "certain" else min(certain, DEVIATIONS * math.sqrt(2 * epsilon / dim))


@dataclass(frozen=True)
class _Candidates:
    """The target cells of the rows of one source cell."""

    place: np.ndarray
    """int64 (v,): candidates."""
    cell: np.ndarray
    """int32 (v,): the target cell of each."""
    misassigned: int
    truncated: int


class Borders:
    """Finds cross-cell pairs. `vectors`: (m, d), grouped by cell; a *place* is a row index of them.

    Memory: 12 bytes per candidate, at most `count` per row; and a few blocks per core.
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
        limits: Limits = LIMITS,
    ) -> None:
        """`starts`: int64 (k + 1,), the first place of each cell; `centroids`: float32 (k, d), unit rows; `folded`: the
        vectors by one `Fold`, float16 (m, w).
        """
        import torch

        self._vectors, self._folded, self._starts, self._device = vectors, folded, starts, device
        self._limits = limits
        self._threshold, self._angle = 1 - epsilon, angle(epsilon, vectors.shape[1], reach)
        self._centroids = torch.from_numpy(np.array(centroids, np.float32)).to(device)
        self._only_near = reach == "likely"
        self.truncated = 0
        """Rows with more target cells within reach than `count`: with the certain reach, 0 means that no pair is
        missed."""
        self.misassigned = 0
        """Misassigned rows, which are nearer to another centroid: the bound does not hold for their pairs."""
        self.compared = 0
        """The number of pairs multiplied so far."""
        self._find_candidates(count)

    @property
    def candidates(self) -> int:
        """The number of (candidate, target cell) pairs."""
        return len(self._places)

    def _find_candidates(self, count: int) -> None:
        places, cells = [np.empty(0, np.int64)], [np.empty(0, np.int32)]
        every = range(len(self._starts) - 1)
        for found in on_cores(lambda cell: self._candidates_of(cell, count), every, self._device):
            places.append(found.place)
            cells.append(found.cell)
            self.misassigned += found.misassigned
            self.truncated += found.truncated
        place, cell = np.concatenate(places), np.concatenate(cells)
        order = np.argsort(cell, kind="stable")
        self._places = place[order]
        self._first = np.searchsorted(cell[order], np.arange(len(self._starts)))

    def _candidates_of(self, cell: int, count: int) -> _Candidates:
        import torch

        start, stop = self._starts[cell], self._starts[cell + 1]
        reach = float(np.sin(self._angle / 2)) + SLACK
        rows = UnitRows(self._vectors[start:stop], self._device, self._limits.held_bytes)
        others = self._others(cell)
        centroids, own = self._centroids[others], int((others == cell).nonzero())
        step = block_rows(len(others))
        most = min(count, len(others))
        apart = (2 - 2 * (centroids @ centroids[own])).clamp_min(0).sqrt_().clamp_min_(SLACK)
        places, cells = [], []
        misassigned = truncated = 0
        for begin in range(0, len(rows), step):
            near = rows[begin : min(begin + step, len(rows))] @ centroids.T
            sine = near[:, own : own + 1].clone().sub(near).div_(apart)
            sine[:, own] = torch.inf
            misassigned += int((sine < -SLACK).any(dim=1).sum())
            within = (sine <= reach).sum(dim=1)
            truncated += int((within > most).sum())
            some = within.nonzero().squeeze(1)
            lowest, at = sine[some].topk(most, dim=1, largest=False)
            row, column = (lowest <= reach).nonzero(as_tuple=True)
            places.append((some[row] + (start + begin)).cpu().numpy())
            cells.append(others[at[row, column]].to(torch.int32).cpu().numpy())
        return _Candidates(np.concatenate(places), np.concatenate(cells), misassigned, truncated)

    def _others(self, cell: int) -> "torch.Tensor":
        """Return the possible target cells of a cell's rows, including the cell: int64 (c,), ascending."""
        import torch

        count = len(self._centroids)
        if not self._only_near or count <= NEAREST + 1:
            return torch.arange(count, device=self._device)
        near = (self._centroids @ self._centroids[cell]).topk(NEAREST + 1).indices
        found: torch.Tensor = torch.unique(torch.cat([near, near.new_tensor([cell])]))
        return found

    def pairs(self, sources: np.ndarray | None = None, targets: np.ndarray | None = None) -> Iterator[CosinePairs]:
        """Yield (places of candidates, places in target cells, cosines) above 1 - epsilon; a pair is yielded
        twice if each row is a candidate of the other's cell.

        `sources`, `targets`: bool (m,), the rows allowed on each side; None: all.
        """
        blocks = self._blocks(sources, targets)
        for candidates, rows, found in on_cores(self._compare, blocks, self._device, AHEAD):
            self.compared += candidates * rows
            yield found

    def _blocks(
        self, sources: np.ndarray | None, targets: np.ndarray | None
    ) -> Iterator[tuple[np.ndarray, slice | np.ndarray]]:
        """Yield (places of candidates, places in target cells) to compare, block by block."""
        at_once, rows_at_once = self._limits.candidate_rows, self._limits.target_rows
        for cell, (first, last) in enumerate(pairwise(self._first.tolist())):
            candidates = self._places[first:last]
            if sources is not None:
                candidates = candidates[sources[candidates]]
            start, stop = self._starts[cell : cell + 2].tolist()
            for begin in range(start, stop if len(candidates) else start, rows_at_once):
                block = slice(begin, min(begin + rows_at_once, stop))
                whole = targets is None or bool(targets[block].all())
                rows = block if whole or targets is None else begin + np.flatnonzero(targets[block])
                for at in range(0, len(candidates), at_once):
                    yield candidates[at : at + at_once], rows

    def _compare(self, both: tuple[np.ndarray, slice | np.ndarray]) -> tuple[int, int, CosinePairs]:
        """Return (number of candidates, number of rows of the target cell, their pairs)."""
        how = self._threshold, self._device, self._limits
        candidates, rows = (Near(self._vectors, self._folded, places, *how) for places in both)
        at, other, cosine = candidates.pairs(slice(0, len(candidates)), rows, slice(0, len(rows)))
        self._release()
        return len(candidates), len(rows), (candidates.places[at], rows.places[other], cosine)

    def _release(self) -> None:
        release(self._vectors)
        if self._folded is not None:
            release(self._folded)
