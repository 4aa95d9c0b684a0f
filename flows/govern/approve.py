"""Letting a held version count: `espalier approve DATASET@N`."""

from typing import Any

from catalog.dataset import Catalog, Version
from catalog.errors import NotFoundError, UserError
from catalog.lease import hold


def approve(catalog: Catalog, label: str, wait_s: float | None = 0.0) -> tuple[Version, Version]:
    """Approve the held version that `laion@3` names; return it, and the version that is the latest now.

    Waits up to `wait_s` seconds (None: as long as it takes) for a builder of the dataset. Raises UserError where no
    number is given or the version is not held, NotFoundError where there is none, BusyError while somebody builds.
    """
    name, _, number = label.partition("@")
    dataset = catalog.existing(name)
    if not number:
        held = ", ".join(version.label for version in dataset.held()) or "none"
        raise UserError(f"{label!r} names no version; expected DATASET@NUMBER (held now: {held})")
    version = catalog.resolve(label)
    with hold(dataset, wait_s) as lease:
        lease.check()
        approved = dataset.approve(version.number)
        last = dataset.last()
    if last is None:
        raise NotFoundError(f"{approved.label} was forgotten meanwhile")
    return approved, last


def describe(approved: Version, last: Version) -> dict[str, Any]:
    """Return what was approved as JSON can say it."""
    return {"approved": approved.label, "latest": last.label, "held_for": list(approved.held)}


def told(approved: Version, last: Version) -> str:
    """Return the line that says what came of it."""
    if approved.number == last.number:
        return f"{approved.label} is approved, and the latest of {approved.dataset}"
    return (
        f"{approved.label} is approved; {last.label} came later and stays the latest. "
        f"To make its content the latest, build its recipe again"
    )
