"""Approve a held version: `espalier approve DATASET@N`."""

from typing import Any

from catalog.dataset import Catalog
from catalog.errors import NotFoundError, UserError
from catalog.lease import hold
from catalog.version import Version


def approve(catalog: Catalog, label: str, wait_s: float | None = 0.0) -> tuple[Version, Version]:
    """Approve a held version, such as `laion@3`; return it and the version that is the latest afterwards.

    Waits up to `wait_s` seconds (None: without limit) for a build of the dataset to end. Raises UserError if no number
    is given or the version is not held, NotFoundError if it does not exist, BusyError while a build is running.
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
        raise NotFoundError(f"{approved.label} was removed meanwhile")
    return approved, last


def describe(approved: Version, last: Version) -> dict[str, Any]:
    """Return the result as JSON values."""
    return {"approved": approved.label, "latest": last.label, "held_for": list(approved.held)}


def summary(approved: Version, last: Version) -> str:
    """Return the result as a line of text."""
    if approved.number == last.number:
        return f"{approved.label} is approved; it is the latest version of {approved.dataset}"
    return (
        f"{approved.label} is approved; {last.label} is newer and remains the latest. "
        f"To publish the approved content as the latest version, build its recipe again"
    )
