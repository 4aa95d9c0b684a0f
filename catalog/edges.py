"""Edges: the row and dataset that each row was derived from, for lineage, take-downs and `gc`.

The table `edges` (`catalog.schema.EDGES`), in the dataset of the child, has a row for every pair of child and parent.
Code that derives rows from other rows (such as `flows.explore.save`, which copies them) writes the edges before it
writes anything that holds their content. Copying a row also copies its edges, so a row names every dataset in its
lineage, and the lineage remains complete when datasets in between are removed.

Roles: `copy_of` means that the child is the parent, byte for byte. Any other role (`init`, `cond_image`, `mix`, ...)
means that the child was made from the parent.

Datasets that were saved from a search by a release without edges have no such table. Their recipe names the version
that was searched, and their rows have its sample_ids, which determines the edges.
"""

from collections.abc import Mapping
from typing import Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import yaml

from catalog.dataset import Catalog, Dataset
from catalog.lookup import ids_of
from catalog.pieces import read_parquet
from catalog.schema import EDGES
from catalog.version import Version

TABLE: Final = "edges"
COPY: Final = "copy_of"
SAVED: Final = "saved_search"
"""The key of a recipe text that marks a dataset as saved from a search instead of built."""


def copies(sample_ids: np.ndarray, of: Version) -> pa.Table:
    """Return the edges of rows, int64 (n,), that were copied from a version with their sample_ids."""
    return _edges(sample_ids, of.dataset, of.number)


def edges_of(dataset: Dataset) -> pa.Table:
    """Return the edges of every row of a dataset in any version or unpublished part: columns of EDGES, each row once.

    Reads the parts of `edges` and the last version's recipe, and more only for a saved search without edges.
    """
    paths = [f"{TABLE}/{name}.parquet" for name in dataset.finished(TABLE)]
    found = [read_parquet(dataset.storage, path, EDGES.names).cast(EDGES) for path in paths]
    found += _implied(dataset)
    rows = pa.concat_tables([EDGES.empty_table(), *found])
    return rows.group_by(EDGES.names).aggregate([]).select(EDGES.names)


def users(catalog: Catalog, name: str) -> Mapping[int, list[str]]:
    """Return version -> the other datasets that depend on it, for the versions of a dataset that others depend on.

    A dataset depends on a version if it has rows of it, or if one of its own versions was built from it (`from:`). The
    last version of the dataset itself may have been built from an earlier one.
    """
    used: dict[int, list[str]] = {}
    last = catalog.dataset(name).last()  # its own: what it was built from
    for entry in last.inputs if last else ():
        if entry.get("dataset") == name:
            used.setdefault(entry["version"], []).append(name)
    for other in catalog.datasets():
        if other == name:
            continue
        dataset = catalog.dataset(other)
        rows = edges_of(dataset)
        mine = rows.filter(pc.equal(rows.column("parent_dataset"), name))
        numbers = {*pc.unique(mine.column("parent_version")).drop_null().to_pylist()}
        numbers |= {i["version"] for v in dataset.versions() for i in v.inputs if i.get("dataset") == name}
        for number in sorted(numbers):
            used.setdefault(number, []).append(other)
    return used


def saved_from(recipe: str) -> str | None:
    """Return the version (`laion@3`) that a saved search was made from, by its recipe text; None for another recipe."""
    if SAVED not in recipe:
        return None
    try:
        about = (yaml.safe_load(recipe) or {}).get(SAVED)
    except (yaml.YAMLError, AttributeError):
        return None
    return str(about["from"]) if isinstance(about, dict) and "from" in about else None


def _implied(dataset: Dataset) -> list[pa.Table]:
    """Return the edges that the recipe of a saved search without a table `edges` implies."""
    last = dataset.last()
    if last is None or saved_from(last.recipe) is None:
        return []
    found = []
    for version in dataset.versions():
        name, _, number = (saved_from(version.recipe) or "").partition("@")
        table = next((t for t in ("source", "images") if t in version.tables), None)
        if name and number.isdecimal() and table and TABLE not in version.tables:
            ids = ids_of(dataset.storage, [part.path for part in dataset.files(version, table)])
            found.append(_edges(ids, name, int(number)))
    return found


def _edges(sample_ids: np.ndarray, name: str, number: int) -> pa.Table:
    rows = len(sample_ids)
    ids = pa.array(sample_ids, pa.int64())
    columns = [
        ids,
        pa.repeat(pa.scalar(name, pa.string()), rows),
        pa.repeat(pa.scalar(number, pa.int64()), rows),
        ids,
        pa.repeat(pa.scalar(COPY, pa.string()), rows),
        pa.nulls(rows, pa.float32()),
    ]
    return pa.table(columns, schema=EDGES)
