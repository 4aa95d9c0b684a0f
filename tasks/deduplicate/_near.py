"""Pairs of rows with a cosine above a threshold; most pairs are excluded at a fraction of the multiplications.

A unit vector x is *folded* to (W' x, sqrt(1 - |W' x|^2)), with W a few orthonormal directions. That is a unit vector
again, and by Cauchy and Schwarz no cosine decreases: x y = (W' x)(W' y) + (the rest of x)(the rest of y), which is at
most the product of the two folded ones. So a pair whose folded product is not above the threshold is excluded with
certainty; the others are multiplied in full. Their number depends on W and on the data, so both W and its width are
fitted to pairs of rows from the actual comparisons: the directions in which these differ most, as many as minimise the
cost.
"""

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Final

import numpy as np

from tasks.deduplicate._limits import LIMITS, Limits
from tasks.vectors.mapped import gather, release
from tasks.vectors.nearest_centroid import block_rows
from tasks.vectors.unit_rows import UnitRows

if TYPE_CHECKING:
    import torch

SLACK: Final = 2e-3
"""Upper bound of the rounding error of a folded product: 2^-10 of each side (float16, and its length), 1e-5 of
float32."""
REST: Final = 1e-6
"""Added to the square of the rest, so that cancellation in it never makes a product too small."""
FIT_PAIRS: Final = 4096
"""Pairs for fitting the directions; the width is chosen on as many others."""
DENSE: Final = 64
"""If more than one pair in this many is not excluded, the whole block is multiplied in full."""
PIECE_PAIRS: Final = 4096

CosinePairs = tuple[np.ndarray, np.ndarray, np.ndarray]
"""Pairs: (row int64 (m,), ascending; other row int64 (m,), ascending for each row; cosine float32 (m,))."""


@dataclass(frozen=True)
class Fold:
    """Folds unit vectors."""

    directions: "torch.Tensor"
    """float32 (d, w - 1), orthonormal columns."""

    @classmethod
    def fit(
        cls, one: np.ndarray, other: np.ndarray, threshold: float, device: str, limits: Limits = LIMITS
    ) -> "Fold | None":
        """Fit to pairs (one, other), (m, d) each, at minimal cost; None if folding does not pay."""
        import torch

        half = len(one) // 2
        if half == 0:
            return None
        left, right = (UnitRows(side, device)[0 : len(side)] for side in (one, other))
        apart = left[:half] - right[:half]
        _, vectors = torch.linalg.eigh(apart.T @ apart)
        directions = vectors.flip(1)  # the largest first
        best, cost = None, one.shape[1] / 2
        for width in limits.folded_widths:
            if width >= cost:
                break
            fold = cls(directions[:, : width - 1].contiguous())
            product = (fold(left[half:]) * fold(right[half:])).sum(dim=1)
            this = width + limits.verify_cost * float((product > threshold - SLACK).float().mean())
            best, cost = (fold, this) if this < cost else (best, cost)
        return best

    @property
    def width(self) -> int:
        """Return the length of a folded vector."""
        return self.directions.shape[1] + 1

    def __call__(self, unit: "torch.Tensor") -> "torch.Tensor":
        """Return the folded vectors, float32 (n, w), of unit vectors (n, d)."""
        import torch

        part = unit @ self.directions
        rest = (1 - part.square().sum(dim=1, keepdim=True)).clamp_min_(0).add_(REST).sqrt_()
        return torch.cat([part, rest], dim=1)

    def write(self, vectors: np.ndarray, into: np.ndarray, device: str) -> None:
        """Fold rows (n, d) into float16 (n, w), block by block; maps are released."""
        step = block_rows(vectors.shape[1])
        for begin in range(0, len(vectors), step):
            span = slice(begin, min(begin + step, len(vectors)))
            into[span] = self(UnitRows(vectors[span], device)[0 : span.stop - begin]).half().cpu().numpy()
            release(into)


class Near:
    """Rows to compare by a threshold on the cosine. Memory: their folded vectors, or `UnitRows`."""

    def __init__(
        self,
        vectors: np.ndarray,
        folded: np.ndarray | None,
        places: slice | np.ndarray,
        threshold: float,
        device: str,
        limits: Limits = LIMITS,
    ) -> None:
        """`vectors`: (n, d), each row with a direction; `folded`: float16 (n, w) by one `Fold`, or None: all pairs are
        multiplied in full; `places`: which rows, int64 (m,) or a range.
        """
        self._vectors, self._device, self.threshold = vectors, device, threshold
        self._held_bytes = limits.held_bytes
        self.places: np.ndarray = np.arange(places.start, places.stop) if isinstance(places, slice) else places
        """int64 (m,): which of the rows (n, d) these are."""
        self._range = places
        self._folded = None if folded is None else UnitRows(_some(folded, places), device, self._held_bytes)
        self._product: torch.Tensor | None = None

    @classmethod
    def of(cls, vectors: np.ndarray, threshold: float, device: str, limits: Limits = LIMITS) -> "Near":
        """Return all rows (n, d), folded if that pays."""
        count = len(vectors)
        folded = None
        if count * (count - 1) // 2 >= limits.least_folded_pairs:
            rng = np.random.default_rng(0)
            one, other = rng.integers(0, count, (2, 2 * FIT_PAIRS))
            differ = one != other
            fold = Fold.fit(vectors[one[differ]], vectors[other[differ]], threshold, device, limits)
            if fold is not None:
                folded = np.empty((count, fold.width), np.float16)
                fold.write(vectors, folded, device)
        return cls(vectors, folded, slice(0, count), threshold, device, limits)

    def __len__(self) -> int:
        return len(self.places)

    @cached_property
    def _unit(self) -> UnitRows:
        return UnitRows(_some(self._vectors, self._range), self._device, self._held_bytes)

    def pairs(self, rows: slice, other: "Near", columns: slice | np.ndarray) -> CosinePairs:
        """Return the pairs above the threshold between a range of rows and rows of another, as indices of each side.

        A range with itself (`other` is this, `columns` equals `rows`) returns each pair once: the later row first.
        """
        itself = other is self and isinstance(columns, slice) and columns == rows
        number = np.arange(columns.start, columns.stop) if isinstance(columns, slice) else columns
        if self._folded is None or other._folded is None:
            return self._exact(rows, other, columns, number, itself)
        product = self._multiplied(self._folded[rows], _chosen(other._folded, columns), itself)
        left, right = _above(product, self.threshold - SLACK)
        if len(left) * DENSE > product.numel():
            return self._exact(rows, other, columns, number, itself)
        at, to = left.cpu().numpy() + rows.start, number[right.cpu().numpy()]
        if itself:
            at, to = at[at > to], to[at > to]
        cosine = self.cosines(at, other, to)
        near = cosine > self.threshold
        return at[near], to[near], cosine[near]

    def cosines(self, rows: np.ndarray, other: "Near", columns: np.ndarray) -> np.ndarray:
        """Return the cosine of each pair of rows: float32 (m,), for two index arrays (m,)."""
        found = np.empty(len(rows), np.float32)
        for begin in range(0, len(rows), PIECE_PAIRS):
            piece = slice(begin, begin + PIECE_PAIRS)
            found[piece] = (self._rows(rows[piece]) * other._rows(columns[piece])).sum(dim=1).cpu().numpy()
        return found

    def _rows(self, at: np.ndarray) -> "torch.Tensor":
        return UnitRows(gather(self._vectors, self.places[at]), self._device)[0 : len(at)]

    def _exact(
        self, rows: slice, other: "Near", columns: slice | np.ndarray, number: np.ndarray, itself: bool
    ) -> CosinePairs:
        product = self._multiplied(self._unit[rows], _chosen(other._unit, columns), itself)
        at, to = _above(product, self.threshold)
        cosine = product[at, to].cpu().numpy()
        return at.cpu().numpy() + rows.start, number[to.cpu().numpy()], cosine

    def _multiplied(self, one: "torch.Tensor", other: "torch.Tensor", itself: bool) -> "torch.Tensor":
        """Return the products, in a buffer that the next call reuses: new pages cost as much as folded rows."""
        import torch

        size = len(one) * len(other)
        if self._product is None or len(self._product) < size:
            self._product = one.new_empty(size)
        product = self._product[:size].view(len(one), len(other))
        torch.mm(one, other.T, out=product)
        return product.tril_(-1) if itself else product  # zeros are never above the threshold


def _some(rows: np.ndarray, places: slice | np.ndarray) -> np.ndarray:
    return rows[places] if isinstance(places, slice) else gather(rows, places)


def _chosen(rows: UnitRows, columns: slice | np.ndarray) -> "torch.Tensor":
    import torch

    if isinstance(columns, slice):
        return rows[columns]
    low, high = (int(columns[0]), int(columns[-1]) + 1) if len(columns) else (0, 0)
    block = rows[low:high]
    return block[torch.from_numpy(columns - low).to(block.device)]


def _above(product: "torch.Tensor", threshold: float) -> tuple["torch.Tensor", "torch.Tensor"]:
    """Return (row, column) of the values above a threshold, row by row: int64 (m,) twice. Few rows have any."""
    if product.numel() == 0:
        none = product.nonzero()[:, 0]
        return none, none
    some = (product.amax(dim=1) > threshold).nonzero().squeeze(1)
    at, to = (product[some] > threshold).nonzero(as_tuple=True)
    return some[at], to


def nearest(pairs: CosinePairs) -> CosinePairs:
    """Return each row's pair with the highest cosine; in a tie the first."""
    at, to, cosine = pairs
    if len(at) == 0:
        return pairs
    first = np.flatnonzero(np.r_[True, at[1:] != at[:-1]])
    best = np.maximum.reduceat(cosine, first)
    equal = cosine == np.repeat(best, np.diff(np.r_[first, len(at)]))
    return at[first], np.minimum.reduceat(np.where(equal, to, np.iinfo(np.int64).max), first), best
