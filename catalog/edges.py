"""Edges: which row of which dataset a row comes from, so that lineage, takedowns and `gc` can follow it.

Table `edges` (`catalog.schema.EDGES`) has a row for every pair of child and parent, in the dataset of the child.
Whoever makes rows of other rows writes it, before it writes anything that holds their content: `flows.explore.save` for
each
row that it copies. Whoever copies a row copies its edges too, so a row names all datasets that it went through, and is
found when those between are gone.

Roles: `copy_of`, the child is the parent, byte for byte. Whatever else a stage calls the part that a parent played
(`init`, `cond_image`, `mix`, ...) says that the child was made of it.

Datasets that were saved from a search before there were edges have none. Their recipe names the version that was
searched, and their rows kept its sample_ids, so their edges follow from that.
"""

from collections.abc import Mapping
from typing import Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import yaml

from catalog.dataset import Catalog, Dataset, Version
from catalog.inputs import read_parquet
from catalog.lookup import ids_of
from catalog.schema import EDGES

TABLE: Final = "edges"
COPY: Final = "copy_of"
SAVED: Final = "saved_search"
"""The key of a recipe text that says: not built, but saved from a search."""


def copies(sample_ids: np.ndarray, of: Version) -> pa.Table:
    """Return the edges of rows, int64 (n,), that were copied from a version and kept their sample_ids."""
    return _edges(sample_ids, of.dataset, of.number)


def edges_of(dataset: Dataset) -> pa.Table:
    """Return the edges of every row of a dataset, of any version or none: columns of EDGES, each row once.

    Reads the parts of `edges`, and the last version's recipe; more only where a search was saved without edges.
    """
    paths = [f"{TABLE}/{name}.parquet" for name in dataset.finished(TABLE)]
    found = [read_parquet(dataset.storage, path, EDGES.names).cast(EDGES) for path in paths]
    found += _implied(dataset)
    rows = pa.concat_tables([EDGES.empty_table(), *found])
    return rows.group_by(EDGES.names).aggregate([]).select(EDGES.names)


def users(catalog: Catalog, name: str) -> Mapping[int, list[str]]:
    """Return version -> the other datasets that have rows of it, of those versions of a dataset that have any."""
    used: dict[int, list[str]] = {}
    for other in catalog.datasets():
        if other == name:
            continue
        rows = edges_of(catalog.dataset(other))
        mine = rows.filter(pc.equal(rows.column("parent_dataset"), name))
        for number in pc.unique(mine.column("parent_version")).drop_null().to_pylist():
            used.setdefault(number, []).append(other)
    return used


def saved_from(recipe: str) -> str | None:
    """Return which version (`laion@3`) was searched, of the recipe text of a saved search; None of any other recipe."""
    if SAVED not in recipe:
        return None
    try:
        about = (yaml.safe_load(recipe) or {}).get(SAVED)
    except (yaml.YAMLError, AttributeError):
        return None
    return str(about["from"]) if isinstance(about, dict) and "from" in about else None


def _implied(dataset: Dataset) -> list[pa.Table]:
    """Return the edges that the recipes of saved searches without a table of edges imply."""
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
