"""Check the arguments of `espalier sql`: its limits, and the version of each dataset that it reads."""

from catalog.database import mentioned
from catalog.dataset import Catalog
from catalog.duck import Limits, half_of_memory_mb
from catalog.errors import UserError


def limits_of(timeout_s: float, memory_mb: int | None) -> Limits:
    """Return the limits of one query; 0 seconds means no limit. Raises UserError for invalid values."""
    if not timeout_s >= 0:  # nan, too
        raise UserError(f"--timeout is {timeout_s:g}, expected seconds, or 0 for no limit")
    most_mb = half_of_memory_mb() if memory_mb is None else memory_mb
    hint = "; --timeout SECONDS and --memory MB raise the limits"
    return Limits(timeout_s or None, most_mb, hint)


def versions_at(catalog: Catalog, text: str, at: int | None) -> dict[str, int] | None:
    """Return the version of each dataset that a statement reads; None for the last versions.

    Raises UserError if a version is requested and the statement names no dataset that has it.
    """
    if at is None:
        return None
    named = mentioned(catalog, text) or [name for name in catalog.datasets() if len(catalog.datasets()) == 1]
    if not named:
        raise UserError(f"--at {at}: the statement names no dataset; write DATASET.TABLE")
    return dict.fromkeys(named, at)
