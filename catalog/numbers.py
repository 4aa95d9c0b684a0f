"""Part numbers: the permanent number of each chunk of a source, which is part of the `sample_id` of its rows.

They are one JSON object in the dataset's state `numbers`: key of a chunk -> its number. A number is never assigned
twice: the next one follows the largest. If the object and its copy are lost, `reserved` replaces them by an object that
contains no chunk and reserves every number that may have been assigned. The next plan then recovers the numbers of
chunks from the names of the parts of `source` (`flows.build.plan`).
"""

import re
from collections.abc import Iterator
from typing import Final

import pyarrow.parquet as pq

from catalog.dataset import Dataset
from catalog.edges import SAVED
from catalog.edges import TABLE as EDGES_TABLE
from catalog.errors import EspalierError, damaged, reading
from catalog.schema import SAMPLE_BITS

STATE: Final = "numbers"
LOST: Final = "(lost)"
"""The key of reserved numbers until a plan has recovered the number of each chunk."""
RESERVED: Final = "(reserved)"
"""The key of reserved numbers from then on."""
GAP: Final = 1_000_000
"""How many numbers to skip after the largest one found: they may have been assigned to chunks whose parts are lost."""
_SHARD: Final = re.compile(r"(?:^|/)shards/(\d+)-")


def known(dataset: Dataset) -> dict[str, int]:
    """Return chunk -> part number. Raises DamagedError if numbers were assigned but their record is lost."""
    numbers: dict[str, int] = dict(dataset.state(STATE))
    if not numbers and were_given(dataset):
        raise damaged(dataset.storage.uri, f"_state/{STATE}.json", "it does not exist")
    return numbers


def were_given(dataset: Dataset) -> bool:
    """Return whether a dataset has assigned part numbers. A saved search has those of another dataset."""
    if not dataset.finished("source") or dataset.finished(EDGES_TABLE):
        return False
    try:
        last = next(iter([*dataset.held(), dataset.last()]), None)
    except EspalierError:
        return True
    return last is None or f"{SAVED}:" not in last.recipe  # of an older release, without edges


def found(dataset: Dataset) -> list[int]:
    """Return the part numbers in rows and shards of all readable files, ascending."""
    return sorted(set(_found(dataset)))


def reserved(dataset: Dataset) -> dict[str, int]:
    """Return the object that replaces lost numbers."""
    return {LOST: max(found(dataset), default=-1) + GAP}


def _found(dataset: Dataset) -> Iterator[int]:
    for path in dataset.storage.list():  # including the quarantine
        if shard := _SHARD.search(path):
            yield int(shard[1])
    for table in dataset.tables():
        for name in dataset.finished(table):
            try:
                yield from _of_part(dataset, f"{table}/{name}.parquet")
            except EspalierError:  # `verify` names it
                continue


def _of_part(dataset: Dataset, path: str) -> Iterator[int]:
    """Yield the smallest and the largest part number of every row group of a part."""
    filesystem = None if dataset.storage.is_local else dataset.storage.filesystem()
    with reading(dataset.storage.uri, path):
        footer = pq.read_metadata(dataset.storage.local(path) or path, filesystem=filesystem)
    names = footer.schema.to_arrow_schema().names
    if "sample_id" not in names:
        return
    for group in range(footer.num_row_groups):
        bounds = footer.row_group(group).column(names.index("sample_id")).statistics
        if bounds is not None and bounds.has_min_max:
            yield from (bounds.min >> SAMPLE_BITS, bounds.max >> SAMPLE_BITS)
