"""Part numbers: their record is never silently lost, and lost numbers are never assigned twice."""

from collections.abc import Callable

import numpy as np
import pytest

from catalog.dataset import Dataset
from catalog.edges import copies
from catalog.errors import DamagedError
from catalog.numbers import GAP, LOST, STATE, found, known, reserved, were_given
from catalog.parts import PartFile
from catalog.schema import EDGES, SOURCE
from catalog.version import TableState, VersionFacts

WritePart = Callable[..., PartFile]


def test_a_new_dataset_has_no_numbers(local_dataset: Dataset) -> None:
    assert known(local_dataset) == {}
    assert not were_given(local_dataset)
    assert found(local_dataset) == []


def test_recorded_numbers_are_returned(local_dataset: Dataset, write_part: WritePart) -> None:
    write_part(local_dataset, "source", 1, [{"sample_id": 1 << 24}])
    local_dataset.set_state(STATE, {"chunk": 1})
    assert known(local_dataset) == {"chunk": 1}


def test_a_lost_record_is_damage(local_dataset: Dataset, write_part: WritePart) -> None:
    write_part(local_dataset, "source", 1, [{"sample_id": 1 << 24}])
    assert were_given(local_dataset)
    with pytest.raises(DamagedError, match=r"_state/numbers\.json is damaged: it does not exist"):
        known(local_dataset)


def test_a_saved_search_has_assigned_no_numbers(
    local_dataset: Dataset, write_part: WritePart, facts: VersionFacts
) -> None:
    part = write_part(local_dataset, "source", 1, [{"sample_id": 1 << 24}])
    version = local_dataset.publish({"source": TableState(SOURCE, [part])}, facts)
    rows = copies(np.array([1 << 24]), version)
    write_part(local_dataset, "edges", 1, rows.to_pylist(), EDGES)
    assert not were_given(local_dataset)


def test_numbers_are_found_in_rows_and_in_the_names_of_shards(local_dataset: Dataset, write_part: WritePart) -> None:
    write_part(local_dataset, "source", 1, [{"sample_id": 2 << 24}, {"sample_id": 5 << 24 | 9}])
    local_dataset.storage.put("shards/00007-ab.tar", b"")
    local_dataset.storage.put("_quarantine/20260101T000000Z/shards/00011-ab.tar", b"")
    assert found(local_dataset) == [2, 5, 7, 11]


def test_an_unreadable_part_is_skipped(local_dataset: Dataset, write_part: WritePart) -> None:
    write_part(local_dataset, "source", 1, [{"sample_id": 2 << 24}])
    local_dataset.storage.put("source/broken.parquet", b"not a Parquet file")
    assert found(local_dataset) == [2]


def test_lost_numbers_are_reserved_beyond_the_largest(local_dataset: Dataset, write_part: WritePart) -> None:
    assert reserved(local_dataset) == {LOST: GAP - 1}
    write_part(local_dataset, "source", 1, [{"sample_id": 4 << 24}])
    assert reserved(local_dataset) == {LOST: 4 + GAP}
