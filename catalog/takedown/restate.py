"""Row counts of published versions, corrected after a takedown or a repair replaced files in place."""

from collections import Counter
from collections.abc import Collection, Mapping
from dataclasses import replace
from typing import Any

import pyarrow.parquet as pq

from catalog import delta
from catalog.dataset import Dataset
from catalog.takedown.amend import amend
from catalog.version import VERSIONS, TableVersion, Version, to_parquet


def restate(dataset: Dataset, tables: Collection[str]) -> list[int]:
    """Correct the row counts of some tables and of their stages in every version; return the changed versions.

    Requires the dataset's lease. Call it after files were replaced in place and the logs were amended
    (`catalog.takedown.amend`).
    """
    delta.widen(dataset.storage, "versions", VERSIONS)
    changed: dict[str, int] = {}
    for part in dataset.version_files():
        version = dataset.read_version(part.path)
        now = {name: _counted(dataset, name, t) if name in tables else t for name, t in version.tables.items()}
        if now != version.tables:
            restated = replace(version, tables=now)
            dataset.storage.put(part.path, to_parquet(replace(restated, stages=_recounted(dataset, restated))))
            changed[part.path] = version.number
    amend(dataset.storage, "versions", [part.path for part in dataset.version_files()] if tables else [])
    return list(changed.values())


def _counted(dataset: Dataset, table: str, state: TableVersion) -> TableVersion:
    parts = delta.files(dataset.storage, table, state.delta_version)
    return replace(state, rows=sum(part.rows for part in parts), bytes=sum(part.bytes for part in parts))


def _recounted(dataset: Dataset, version: Version) -> list[Mapping[str, Any]]:
    """Return the facts of a version's stages with the rows that their tables hold now.

    Where several stages wrote one table, its column `stage` attributes the rows; their bytes remain as recorded.
    """
    writers = Counter(stage["table"] for stage in version.stages if "table" in stage)
    shared: dict[str, Counter[str]] = {}
    for table in (name for name, count in writers.items() if count > 1 and name in version.tables):
        shared[table] = Counter()
        for part in delta.files(dataset.storage, table, version.tables[table].delta_version):
            with dataset.storage.filesystem().open_input_file(part.path) as file:
                shared[table].update(pq.read_table(file, columns=["stage"]).column("stage").to_pylist())
    found: list[Mapping[str, Any]] = []
    for stage in version.stages:
        table = str(stage.get("table"))
        if table in shared:
            found.append({**stage, "rows": shared[table][stage["name"]]})
        elif table in version.tables:
            now = version.tables[table]
            found.append({**stage, "rows": now.rows, "bytes": now.bytes})
        else:
            found.append(stage)
    return found
