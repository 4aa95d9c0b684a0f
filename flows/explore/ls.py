"""List the datasets of a catalog (`espalier ls`), and compute the sizes that `espalier versions` shows."""

from concurrent.futures import ThreadPoolExecutor
from typing import Any

from catalog.dataset import Catalog, Dataset
from catalog.sizes import image_bytes, stored_bytes
from catalog.version import Version

UNPUBLISHED = "nothing published"


def datasets(catalog: Catalog) -> list[dict[str, Any]]:
    """Return one entry a dataset, sorted by name: last version, samples, versions, stored MB, last build.

    A dataset without a finished build is listed with 0 versions once it has a part of a table. MB counts every version
    and the images.
    """
    with ThreadPoolExecutor(8) as pool:  # each is several requests, on object stores
        rows = pool.map(lambda name: _row(catalog.dataset(name)), catalog.datasets())
        return [row for row in rows if row is not None]


def _row(dataset: Dataset) -> dict[str, Any] | None:
    versions = dataset.versions()
    if not versions and not dataset.tables():
        return None
    counted = [version for version in versions if not version.is_held]
    last = counted[-1] if counted else None
    held = len(versions) - len(counted)
    return {
        "dataset": dataset.name,
        "last": last.label if last else None,
        "samples": last.tables["samples"].rows if last and "samples" in last.tables else None,
        "versions": len(versions),
        "MB": round(stored_bytes(dataset) / 1e6, 2),
        "last_build": versions[-1].created_at.isoformat(timespec="seconds") if versions else None,
        "note": f"{held} held" if held else "" if versions else UNPUBLISHED,
    }


def megabytes(dataset: Dataset, versions: list[Version]) -> dict[int, float]:
    """Return version number -> MB of its tables and images."""
    images = image_bytes(dataset, versions)
    return {v.number: round((v.bytes + images[v.number]) / 1e6, 2) for v in versions}
