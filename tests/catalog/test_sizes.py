"""Sizes of datasets and versions: everything that is stored, and the shards that a version's images are in."""

from collections.abc import Callable

from catalog.dataset import Dataset
from catalog.parts import PartFile
from catalog.schema import IMAGES, SOURCE
from catalog.sizes import image_bytes, shard_bytes, stem_of, stored_bytes
from catalog.version import TableState, VersionFacts

WritePart = Callable[..., PartFile]


def images(dataset: Dataset, write_part: WritePart, number: int, size: int) -> PartFile:
    """Write a part of `images` and the files of its shard, of `size` bytes each."""
    for end in (".tar", ".parquet", "_stats.json"):
        dataset.storage.put(f"shards/{number:05d}-ab{end}", b"x" * size)
    rows = [{"sample_id": number << 24, "shard": f"shards/{number:05d}-ab.tar"}, {"sample_id": number << 24 | 1}]
    return write_part(dataset, "images", number, rows)


def test_the_files_of_a_shard_have_one_stem() -> None:
    ends = (".tar", ".parquet", "_stats.json")
    assert {stem_of(f"shards/00003-ab12{end}") for end in ends} == {"00003-ab12"}


def test_the_size_of_a_dataset_counts_unpublished_files(local_dataset: Dataset) -> None:
    local_dataset.storage.put("source/x.parquet", b"x" * 10)
    local_dataset.storage.put("shards/00000-ab.tar", b"x" * 7)
    assert stored_bytes(local_dataset) == 17


def test_the_size_of_a_shard_counts_its_sidecar_files(local_dataset: Dataset, write_part: WritePart) -> None:
    images(local_dataset, write_part, 0, 10)
    images(local_dataset, write_part, 1, 100)
    assert shard_bytes(local_dataset) == {"00000-ab": 30, "00001-ab": 300}


def test_versions_count_the_shards_that_they_share(
    local_dataset: Dataset, write_part: WritePart, facts: VersionFacts
) -> None:
    one = images(local_dataset, write_part, 0, 10)
    first = local_dataset.publish({"images": TableState(IMAGES, [one])}, facts)
    two = images(local_dataset, write_part, 1, 100)
    second = local_dataset.publish({"images": TableState(IMAGES, [one, two])}, facts)
    assert image_bytes(local_dataset, [first, second]) == {1: 30, 2: 330}


def test_a_version_without_images_has_size_zero(
    local_dataset: Dataset, write_part: WritePart, facts: VersionFacts
) -> None:
    part = write_part(local_dataset, "source", 0, [{"sample_id": 0}])
    version = local_dataset.publish({"source": TableState(SOURCE, [part])}, facts)
    assert image_bytes(local_dataset, [version]) == {1: 0}
