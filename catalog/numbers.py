"""Part numbers: which chunk of a source has which number. The number is in the `sample_id` of every row, for good.

They are one JSON object in the dataset's state `numbers`: what a chunk is known by -> its number. A number is never
given twice, so the next one follows the largest of the object. Where the object and its copy are lost, `reserved`
takes their place: an object that knows no chunk, and keeps every number that may have been given from being given
again. The next plan then finds the numbers of chunks by the names of the parts of `source` (`flows.build.plan`).
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
"""The key of what is reserved until a plan has found again which chunk has which number."""
RESERVED: Final = "(reserved)"
"""The key of what is reserved from then on."""
GAP: Final = 1_000_000
"""So many numbers are left out after the largest that is found: later ones may have been given to files that are gone
since, with all that was made from them."""
_SHARD: Final = re.compile(r"(?:^|/)shards/(\d+)-")


def known(dataset: Dataset) -> dict[str, int]:
    """Return chunk -> part number. Raises DamagedError where numbers were given, and nothing says which."""
    numbers: dict[str, int] = dict(dataset.state(STATE))
    if not numbers and were_given(dataset):
        raise damaged(dataset.storage.uri, f"_state/{STATE}.json", "it is not there")
    return numbers


def were_given(dataset: Dataset) -> bool:
    """Say whether a dataset has parts with numbers of its own. What was saved from a search keeps those of another."""
    if not dataset.finished("source") or dataset.finished(EDGES_TABLE):
        return False
    try:
        last = next(iter([*dataset.held(), dataset.last()]), None)
    except EspalierError:
        return True
    return last is None or f"{SAVED}:" not in last.recipe  # of an older release, without edges


def found(dataset: Dataset) -> list[int]:
    """Return the part numbers that rows and shards have, in any file that can be read, ascending."""
    return sorted(set(_found(dataset)))


def reserved(dataset: Dataset) -> dict[str, int]:
    """Return the object that stands for numbers that are lost."""
    return {LOST: max(found(dataset), default=-1) + GAP}


def _found(dataset: Dataset) -> Iterator[int]:
    for path in dataset.storage.list():  # the quarantine too
        if shard := _SHARD.search(path):
            yield int(shard[1])
    for table in dataset.tables():
        for name in dataset.finished(table):
            try:
                yield from _of_part(dataset, f"{table}/{name}.parquet")
            except EspalierError:  # `verify` names it
                continue


def _of_part(dataset: Dataset, path: str) -> Iterator[int]:
    """Yield the smallest and the largest number of every row group of a part."""
    filesystem = None if dataset.storage.is_local else dataset.storage.filesystem()
    with reading(dataset.storage.uri, path):
        footer = pq.read_metadata(dataset.storage.local(path) or path, filesystem=filesystem)
    names = footer.schema.to_arrow_schema().names
    if "sample_id" not in names:
        return
    for group in range(footer.num_row_groups):
        said = footer.row_group(group).column(names.index("sample_id")).statistics
        if said is not None and said.has_min_max:
            yield from (said.min >> SAMPLE_BITS, said.max >> SAMPLE_BITS)
