"""Files that were replaced in place: every commit, old and new, says what they hold now, and nothing else changes."""

from collections.abc import Callable
from pathlib import Path

import deltalake
import pyarrow as pa
import pytest

from catalog import delta
from catalog.dataset import Dataset
from catalog.errors import NotFoundError
from catalog.parts import PartFile
from catalog.schema import SOURCE
from catalog.takedown.amend import amend
from catalog.takedown.restate import restate
from catalog.version import TableState, VersionFacts

WritePart = Callable[..., PartFile]


def test_the_logs_and_the_versions_follow_the_files(
    local_dataset: Dataset, write_part: WritePart, facts: VersionFacts
) -> None:
    one, two = (write_part(local_dataset, "source", n, [{"sample_id": n << 24 | i} for i in range(5)]) for n in (0, 1))
    local_dataset.publish({"source": TableState(SOURCE, [one])}, facts)
    local_dataset.publish({"source": TableState(SOURCE, [one, two])}, facts)
    now = write_part(local_dataset, "source", 0, [{"sample_id": 3, "url": "http://x/" + "y" * 500}])
    assert now.path == one.path
    changed = amend(local_dataset.storage, "source", [one.path])
    assert changed == ["source/_delta_log/00000000000000000000.json"]
    assert amend(local_dataset.storage, "source", [one.path]) == []
    assert restate(local_dataset, ["source"]) == [1, 2]
    assert restate(local_dataset, ["source"]) == []
    first, second = local_dataset.versions()
    assert local_dataset.files(first, "source") == [now]
    assert local_dataset.files(second, "source") == [now, two]
    assert [(v.tables["source"].rows, v.tables["source"].bytes) for v in (first, second)] == [
        (1, now.bytes),
        (6, now.bytes + two.bytes),
    ]
    folder = Path(local_dataset.storage.uri, "source")
    for version, rows in ((first, 1), (second, 6)):
        log = deltalake.DeltaTable(folder, version=version.tables["source"].delta_version)
        assert log.to_pyarrow_table().num_rows == rows


def test_checkpoints_go_as_they_repeat_the_log(local_dataset: Dataset, write_part: WritePart) -> None:
    part = write_part(local_dataset, "source", 0, [{"sample_id": 1}])
    delta.commit(local_dataset.storage, "source", SOURCE, [part])
    folder = Path(local_dataset.storage.uri, "source")
    deltalake.DeltaTable(folder).create_checkpoint()
    assert list(folder.glob("_delta_log/*checkpoint*"))
    now = write_part(local_dataset, "source", 0, [{"sample_id": i} for i in range(9)])
    amend(local_dataset.storage, "source", [now.path])
    assert not list(folder.glob("_delta_log/*checkpoint*"))
    added = pa.table(deltalake.DeltaTable(folder).get_add_actions()).to_pylist()
    assert [(a["size_bytes"], a["num_records"]) for a in added] == [(now.bytes, 9)]


def test_republishing_is_the_next_version_with_the_same_tables(
    local_dataset: Dataset, write_part: WritePart, facts: VersionFacts
) -> None:
    with pytest.raises(NotFoundError, match="has no version yet"):
        local_dataset.republish()
    part = write_part(local_dataset, "source", 0, [{"sample_id": 1}])
    first = local_dataset.publish({"source": TableState(SOURCE, [part])}, facts)
    second = local_dataset.republish()
    assert (second.number, second.tables, second.recipe_sha256) == (2, first.tables, first.recipe_sha256)
    assert local_dataset.publish({"source": TableState(SOURCE, [part])}, facts) == second
