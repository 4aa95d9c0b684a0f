"""The list of datasets: what each entry has, and the bytes that it counts."""

from pathlib import Path

import pytest

from catalog.dataset import Catalog
from flows.explore.ls import UNPUBLISHED, datasets, megabytes
from tests.flows.vectors import Planted


def on_disk(folder: Path) -> float:
    return round(sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()) / 1e6, 2)


def test_an_entry_counts_versions_that_are_held_and_names_the_last_that_is_not(tmp_path: Path) -> None:
    birds = Planted(tmp_path)
    first = birds.publish([0])
    held = birds.publish([0, 1], held=["small"])
    (entry,) = datasets(birds.catalog)
    assert entry == {
        "dataset": "birds",
        "last": "birds@1",
        "samples": 300,
        "versions": 2,
        "MB": on_disk(tmp_path / "birds"),
        "last_build": held.created_at.isoformat(timespec="seconds"),
        "note": "1 held",
    }
    assert entry["MB"] > 0
    sizes = megabytes(birds.dataset, birds.dataset.versions())
    assert sizes == {1: round(first.bytes / 1e6, 2), 2: round(held.bytes / 1e6, 2)}
    birds.dataset.approve(2)
    assert [(e["last"], e["samples"], e["note"]) for e in datasets(birds.catalog)] == [("birds@2", 600, "")]


def test_only_held_versions_give_no_last(tmp_path: Path) -> None:
    birds = Planted(tmp_path)
    birds.publish([0], held=["small"])
    (entry,) = datasets(birds.catalog)
    assert (entry["last"], entry["samples"], entry["versions"], entry["note"]) == (None, None, 1, "1 held")


def test_datasets_are_sorted_and_one_without_a_part_is_not_listed(tmp_path: Path) -> None:
    for name in ("zebras", "ants", "empty"):
        (tmp_path / name).mkdir()
    for name, size in (("zebras", 30_000), ("ants", 20_000)):
        (tmp_path / name / "source").mkdir()
        (tmp_path / name / "source" / "x.parquet").write_bytes(b"x" * size)
    found = datasets(Catalog(tmp_path))
    assert [(e["dataset"], e["versions"], e["MB"], e["note"]) for e in found] == [
        ("ants", 0, 0.02, UNPUBLISHED),
        ("zebras", 0, 0.03, UNPUBLISHED),
    ]
    assert {(e["last"], e["samples"], e["last_build"]) for e in found} == {(None, None, None)}


@pytest.mark.parametrize("versions", [0, 1])
def test_sizes_of_the_versions_that_are_asked_for(tmp_path: Path, versions: int) -> None:
    birds = Planted(tmp_path)
    birds.publish([0])
    birds.publish([0, 1])
    assert list(megabytes(birds.dataset, birds.dataset.versions()[:versions])) == [1][:versions]
