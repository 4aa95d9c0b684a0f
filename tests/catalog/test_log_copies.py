"""Copies of the logs: every commit and every row of a version can be restored byte by byte."""

from collections.abc import Callable

import pytest

from catalog import log_copies
from catalog.dataset import Dataset
from catalog.errors import DamagedError
from catalog.log_copies import added, check, commit_number, commit_path, keep, newest, path_of, paths, read, renew
from catalog.parts import PartFile
from catalog.schema import SOURCE
from catalog.version import TableState, VersionFacts

WritePart = Callable[..., PartFile]
TABLES = ("source", "versions")


@pytest.fixture
def published(local_dataset: Dataset, write_part: WritePart, facts: VersionFacts) -> Dataset:
    """Return a dataset with one version and no copies."""
    part = write_part(local_dataset, "source", 0, [{"sample_id": 0}])
    local_dataset.publish({"source": TableState(SOURCE, [part])}, facts)
    local_dataset.storage.delete(paths(local_dataset.storage))
    return local_dataset


def test_paths_of_commits_hold_their_number() -> None:
    assert commit_path("source", 7) == "source/_delta_log/00000000000000000007.json"
    assert commit_number(commit_path("source", 7)) == 7
    assert commit_number("source/_delta_log/00000000000000000010.checkpoint.parquet") is None


def test_commits_and_rows_of_versions_are_copied_byte_by_byte(published: Dataset) -> None:
    storage = published.storage
    copies = keep(storage, TABLES)
    assert set(copies.files) >= {commit_path("source", 0), commit_path("versions", 0)}
    assert any(path.startswith("versions/") and path.endswith(".parquet") for path in copies.files)
    assert read(storage, path_of(1)).files == {path: storage.read(path) for path in copies.files}


def test_a_commit_is_copied_once(published: Dataset) -> None:
    keep(published.storage, TABLES)
    again = keep(published.storage, TABLES)
    assert (again.number, again.files, paths(published.storage)) == (1, {}, [path_of(1)])


def test_a_commit_that_cannot_be_read_is_not_copied(published: Dataset) -> None:
    published.storage.put(commit_path("source", 0), b"not a commit")
    copies = keep(published.storage, TABLES)
    assert commit_path("source", 0) not in copies.files
    assert "source" not in copies.until


def test_a_missing_last_commit_is_damage(published: Dataset) -> None:
    check(published.storage)
    keep(published.storage, TABLES)
    check(published.storage)
    published.storage.delete([commit_path("source", newest_commit(published))])
    with pytest.raises(DamagedError, match="it does not exist"):
        check(published.storage)


def newest_commit(dataset: Dataset) -> int:
    copies = newest(dataset.storage)
    assert copies is not None
    return copies.until["source"]


def test_a_damaged_file_of_copies_is_refused_and_passed_over(published: Dataset) -> None:
    keep(published.storage, TABLES)
    published.storage.put(path_of(2), b"not a file of copies")
    with pytest.raises(ValueError, match="it is not a file of copies"):
        read(published.storage, path_of(2))
    copies = newest(published.storage)
    assert copies is not None
    assert copies.number == 1


def test_renewing_replaces_the_older_copies(published: Dataset) -> None:
    first = keep(published.storage, TABLES)
    renewed = renew(published.storage, TABLES)
    assert paths(published.storage) == [path_of(2)]
    assert renewed.files == first.files
    assert log_copies.read(published.storage, path_of(2)).files == first.files


def test_the_parts_that_a_commit_adds_are_listed() -> None:
    entry = b'{"commitInfo": {}}\n\n{"add": {"path": "a.parquet"}}\n{"remove": {"path": "b.parquet"}}\n'
    assert list(added(entry)) == ["a.parquet"]
    with pytest.raises(ValueError, match="a line is not an object"):
        list(added(b"[1]"))
