"""Garbage: everything that no version needs, nothing that one needs, nothing young, and not while somebody builds."""

import os
import time
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pyarrow as pa
import pytest

from catalog.dataset import QUARANTINE_TIME, Catalog, Dataset
from catalog.errors import BusyError, UserError
from catalog.gc import collect, plan
from catalog.lease import hold
from catalog.parts import PartFile
from catalog.schema import IMAGES, SOURCE
from catalog.version import TableState, VersionFacts

WritePart = Callable[..., PartFile]
NOW_S = -5.0
"""A grace period that makes files garbage at once, whatever the clocks of the stores say."""


def image_part(dataset: Dataset, write_part: WritePart, number: int) -> PartFile:
    """Write an images part, and its shard with the two files beside it."""
    stem = f"{number:05d}-{number:016x}"
    for name in (f"{stem}.tar", f"{stem}.parquet", f"{stem}_stats.json"):
        dataset.storage.put(f"shards/{name}", b"x" * 100)
    rows: list[dict[str, Any]] = [{"sample_id": number << 24, "status": "success", "shard": f"shards/{stem}.tar"}]
    return write_part(dataset, "images", number, [*rows, {"sample_id": number << 24 | 1, "status": "failed"}])


@pytest.fixture
def build(dataset: Dataset, write_part: WritePart, facts: VersionFacts) -> Callable[..., None]:
    def build(*numbers: int, publish: bool = True) -> None:
        images = [image_part(dataset, write_part, n) for n in numbers]
        source = [write_part(dataset, "source", n, [{"sample_id": n << 24}]) for n in numbers]
        tables = {"images": TableState(IMAGES, images), "source": TableState(SOURCE, source)}
        if publish:
            dataset.publish(tables, replace(facts, recipe_sha256=str(numbers)))

    return build


def shard_files(number: int) -> set[str]:
    return {f"shards/{number:05d}-{number:016x}{end}" for end in (".tar", ".parquet", "_stats.json")}


def part_files(number: int) -> set[str]:
    return {f"{table}/{number:032x}.parquet" for table in ("images", "source")}


def readable(dataset: Dataset) -> None:
    for version in dataset.versions():
        for table, state in version.tables.items():
            files = dataset.files(version, table)
            sizes = dataset.storage.list(table)
            assert [sizes[part.path] for part in files] == [part.bytes for part in files]
            assert len(files) == state.files


def test_what_no_version_needs_goes(dataset: Dataset, build: Callable[..., None]) -> None:
    build(1, 2)
    build(2, 3)
    build(4, 5, publish=False)
    dataset.record_run({"run_id": "x"})
    dataset.copy_logs()  # otherwise the next lease does it
    dataset.set_state("attempts", {"a": 1})
    dataset.storage.put("images/.a.parquet.tmp-12-0123abcd", b"half")
    dataset.storage.put("versions/00000009-00ff.parquet", b"never committed")
    garbage = plan(dataset, NOW_S)
    expected = {"images/.a.parquet.tmp-12-0123abcd", "versions/00000009-00ff.parquet"}
    expected |= part_files(4) | part_files(5) | shard_files(4) | shard_files(5)
    assert set(garbage.files) == expected
    assert garbage.bytes == sum(dataset.storage.list()[path] for path in expected)
    before = dataset.storage.list()
    assert set(collect(garbage).files) == expected
    left = set(dataset.storage.list())
    assert left - {"_lease"} == set(before) - expected - {"_lease"}
    readable(dataset)
    assert dataset.state("attempts") == {"a": 1}
    assert dataset.runs().num_rows == 1
    assert plan(dataset, NOW_S).files == {}


def test_old_work_and_the_reports_of_versions_that_are_gone(dataset: Dataset, build: Callable[..., None]) -> None:
    for numbers in ((1, 2), (2, 3)):
        build(*numbers)
    for path in ("_reports/1.html", "_reports/2.html", "_work/checkpoints-ab/state.npy", "_work/scratch-x/y/z"):
        dataset.storage.put(path, b"x")
    assert plan(dataset).files == {}, "they are young"
    assert set(plan(dataset, NOW_S).files) == {"_work/checkpoints-ab/state.npy", "_work/scratch-x/y/z"}
    collect(plan(dataset, NOW_S, keep_versions=1))
    left = set(dataset.storage.list())
    assert "_reports/2.html" in left
    assert not {path for path in left if path.startswith("_work/") or path == "_reports/1.html"}


def test_what_was_set_aside_goes_when_it_has_lain_there_long_enough(local_dataset: Dataset) -> None:
    """However old the file was when `verify --repair` set it aside."""
    now, old = datetime.now(UTC), datetime.now(UTC) - timedelta(days=2)
    paths = [f"_quarantine/{time:{QUARANTINE_TIME}}/shards/00000-ab.tar" for time in (now, old)]
    for path in paths:
        local_dataset.storage.put(path, b"x")
        os.utime(local_dataset.storage.local(path) or "", (time.time() - 900_000,) * 2)
    found = plan(local_dataset)
    assert found.quarantined == list(found.files) == [paths[1]]
    collect(found)
    assert set(local_dataset.storage.list()) == {paths[0], "_lease"}


def test_planning_removes_nothing(dataset: Dataset, build: Callable[..., None]) -> None:
    build(1, publish=False)
    before = dataset.storage.list()
    assert plan(dataset, NOW_S).files
    assert dataset.storage.list() == before


def test_young_files_stay(dataset: Dataset, build: Callable[..., None]) -> None:
    build(1)
    build(2, publish=False)
    assert plan(dataset).files == {}
    assert plan(dataset, older_than_s=600).files == {}


def test_age_is_the_files_own(local_dataset: Dataset) -> None:
    local_dataset.storage.put("source/old.parquet", b"")
    local_dataset.storage.put("source/new.parquet", b"")
    day_ago = time.time() - 90_000
    os.utime(local_dataset.storage.local("source/old.parquet") or "", (day_ago, day_ago))
    assert list(plan(local_dataset).files) == ["source/old.parquet"]


def test_old_versions_can_be_given_up(dataset: Dataset, build: Callable[..., None]) -> None:
    for numbers in ((1, 2), (2, 3), (3, 4)):
        build(*numbers)
    garbage = plan(dataset, NOW_S, keep_versions=2)
    assert garbage.forgotten == [1]
    assert set(garbage.files) == part_files(1) | shard_files(1)
    collect(garbage)
    assert [v.number for v in dataset.versions()] == [2, 3]
    readable(dataset)
    build(9)
    assert dataset.version().number == 4, "numbers are never used again"
    with pytest.raises(UserError, match="at least 1"):
        plan(dataset, keep_versions=0)


def test_not_while_somebody_builds(dataset: Dataset, build: Callable[..., None]) -> None:
    build(1, publish=False)
    garbage = plan(dataset, NOW_S)
    with hold(dataset), pytest.raises(BusyError, match="is being built"):
        collect(garbage)
    assert set(garbage.files) <= set(dataset.storage.list())


def test_what_was_published_since_the_plan_stays(dataset: Dataset, build: Callable[..., None]) -> None:
    build(1)
    build(2, 3, publish=False)
    garbage = plan(dataset, NOW_S)
    build(1, 2)
    assert set(collect(garbage).files) == part_files(3) | shard_files(3)
    readable(dataset)


def test_parts_go_before_the_shards_that_they_name(dataset: Dataset, build: Callable[..., None]) -> None:
    build(1, 2, publish=False)
    order = [path.partition("/")[0] == "shards" for path in plan(dataset, NOW_S).files]
    assert order == sorted(order)


def test_other_datasets_are_not_touched(catalog: Catalog, write_part: WritePart) -> None:
    cats = catalog.dataset("cats")
    write_part(cats, "source", 1, [{"sample_id": 1}])
    assert plan(catalog.dataset("birds"), NOW_S).files == {}
    assert cats.finished("source")


def test_an_empty_images_table_needs_no_shards(dataset: Dataset, facts: VersionFacts) -> None:
    dataset.storage.put("shards/00001-aa.tar", b"x")
    dataset.publish({"images": TableState(IMAGES, []), "t": TableState(pa.schema([("x", pa.int8())]), [])}, facts)
    assert set(plan(dataset, NOW_S).files) == {"shards/00001-aa.tar"}


def test_a_held_version_keeps_its_files(
    dataset: Dataset, build: Callable[..., None], write_part: WritePart, facts: VersionFacts
) -> None:
    """It is none of the versions that `keep_versions` counts, and stays while somebody may approve it yet."""

    def held(*numbers: int) -> None:
        images = [image_part(dataset, write_part, n) for n in numbers]
        dataset.publish({"images": TableState(IMAGES, images)}, replace(facts, recipe_sha256=str(numbers)), ["small"])

    held(5)
    build(0)
    held(6)
    build(1)
    held(7)
    assert not shard_files(7) & set(plan(dataset, older_than_s=NOW_S).files)
    removed = collect(plan(dataset, older_than_s=NOW_S, keep_versions=1))
    assert removed.forgotten == [1, 2, 3]
    assert [v.number for v in dataset.versions()] == [4, 5]
    assert shard_files(5) | shard_files(6) | shard_files(0) <= set(removed.files)
    readable(dataset)
    dataset.approve(5)
    assert any(path.startswith("versions/") for path in plan(dataset, older_than_s=NOW_S).files)  # the row before
    collect(plan(dataset, older_than_s=NOW_S, keep_versions=1))
    assert [v.number for v in dataset.versions()] == [5]
    readable(dataset)
