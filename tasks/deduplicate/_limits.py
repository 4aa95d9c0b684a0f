"""Sizes at which the search for semantic copies changes its method: they bound memory and cost, and no verdict."""

from dataclasses import dataclass
from typing import Final

from tasks.vectors.unit_rows import HELD_BYTES


@dataclass(frozen=True)
class Limits:
    """The sizes. Only tests use others than the defaults."""

    pairs_in_memory: int = 1 << 25
    """The maximum number of ties in memory, 20 bytes each; more are found in rounds."""
    least_folded_pairs: int = 1 << 25
    """Below this number, all pairs are multiplied before directions are fitted."""
    folded_pairs_per_row: int = 128
    """Pairs per row above which vectors are folded: folding one costs as much as multiplying this many pairs in
    full."""
    folded_widths: tuple[int, ...] = (32, 64, 96, 128, 192, 256)
    """Lengths of folded vectors to choose from, ascending."""
    verify_cost: int = 16_384
    """Cost of a pair that is not excluded, in multiplications."""
    large_cell_rows: int = 1 << 15
    """Cells above this are processed by all cores together: one per core would take too much memory, and leave cores
    idle at the end."""
    candidate_rows: int = 512
    """Candidates that are multiplied at once with `target_rows` rows of a target cell."""
    target_rows: int = 2048
    held_bytes: int = HELD_BYTES
    """See `UnitRows`."""


LIMITS: Final = Limits()
