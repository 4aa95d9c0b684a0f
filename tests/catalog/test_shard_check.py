"""A shard without a recorded digest is decoded; one with a digest is compared with it."""

import io
import tarfile
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from catalog.schema import PLACE_NAMES
from catalog.shard_check import check_shards, shard_damage, shard_fault
from catalog.storage import Storage

SHARD = "shards/a.tar"
PART = "images/a.parquet"
IMAGES = (b"first image", b"second")


def fault_of(data: bytes) -> str | None:
    """Stand for a decoder: an image is sound if it is one of ours."""
    return None if data in IMAGES else "truncated"


@pytest.fixture
def storage(tmp_path: Path) -> Storage:
    """Return a dataset with one shard of two images, and the part that locates them; of an older release."""
    (tmp_path / "shards").mkdir()
    (tmp_path / "images").mkdir()
    with tarfile.open(tmp_path / SHARD, "w") as tar:
        for number, data in enumerate(IMAGES):
            info = tarfile.TarInfo(f"{number}.jpg")
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    with tarfile.open(tmp_path / SHARD) as tar:
        places = [(SHARD, member.offset_data, member.size) for member in tar]
    columns = dict(zip(PLACE_NAMES, map(list, zip(*places, strict=True)), strict=True))
    pq.write_table(pa.table({"sample_id": [0, 1], **columns}), tmp_path / PART)
    return Storage.open(tmp_path, create=False)


def test_a_sound_shard_has_no_fault(storage: Storage) -> None:
    assert shard_fault(storage, SHARD, [PART], fault_of) is None
    assert shard_damage(storage, PART, SHARD, fault_of) is None
    assert check_shards(storage, [PART], 1, fault_of) is None


def test_an_image_that_cannot_be_decoded_is_named(storage: Storage) -> None:
    path = Path(storage.uri, SHARD)
    path.write_bytes(path.read_bytes().replace(b"second", b"sec\0nd"))
    damage = check_shards(storage, [PART], 0, fault_of)
    assert str(damage) == f"{SHARD}: unreadable: the picture of sample 1 cannot be decoded: truncated"


@pytest.mark.parametrize(
    ("damaged", "fault"),
    [
        (lambda data: data[:2048], "it ends early"),
        (lambda data: b"x" * len(data), "it is no whole tar"),
        (lambda data: data[1024:], "the picture of sample 0 is not where images/a.parquet says"),
    ],
)
def test_a_shard_that_is_not_whole(storage: Storage, damaged: Callable[[bytes], bytes], fault: str) -> None:
    path = Path(storage.uri, SHARD)
    path.write_bytes(damaged(path.read_bytes()))
    assert (shard_fault(storage, SHARD, [PART], fault_of) or "").startswith(fault)


def test_a_missing_shard_is_damage(storage: Storage) -> None:
    Path(storage.uri, SHARD).unlink()
    damage = shard_damage(storage, PART, SHARD, fault_of)
    assert damage is not None
    assert (damage.path, damage.kind) == (SHARD, "missing")
