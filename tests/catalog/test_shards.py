"""Shards: tars of images whose locations are recorded, with sidecar files, and the erasure of samples in them."""

import hashlib
import io
import json
import tarfile
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from catalog.errors import DamagedError
from catalog.schema import SAMPLE_BITS
from catalog.shards import (
    ERASED,
    ShardReader,
    ShardWriter,
    erase,
    erase_sidecars,
    moved,
    put_back,
    sample_key,
    shard_path,
    span_of,
    stem,
)
from catalog.storage import Storage

FIRST = 3 << SAMPLE_BITS
PATH = shard_path(3, "ab" * 16)
IMAGES = [b"first image", None, b"y" * 1000]


@pytest.fixture
def storage(tmp_path: Path) -> Storage:
    return Storage.open(tmp_path / "birds", create=True)


def write(storage: Storage) -> tuple[pa.Table, dict[str, dict[str, Any]]]:
    """Write a shard of three rows, one without an image; return their locations and the records of its files."""
    rows = pa.table(
        {
            "sample_id": [FIRST, FIRST + 1, FIRST + 2],
            "status": ["success", "failed", "success"],
            "reason": [None, "http_404", None],
            "format": ["jpg", None, "png"],
            "url": ["http://x/0", "http://x/1", "http://x/2"],
            "caption": ["a bird", "a cat", None],
            "image": pa.array(IMAGES, pa.large_binary()),
        }
    )
    with ShardWriter(storage, PATH) as writer:
        places = writer.add(rows, "image")
    return pa.table(dict(zip(("shard", "byte_offset", "byte_size"), places, strict=True))), writer.finish()


def members(storage: Storage, path: str = PATH) -> dict[str, bytes]:
    with tarfile.open(fileobj=io.BytesIO(storage.read(path))) as tar:
        files = {member.name: tar.extractfile(member) for member in tar}
        return {name: file.read() for name, file in files.items() if file is not None}


def test_names_hold_the_part_number() -> None:
    assert PATH == "shards/00003-abababababababab.tar"
    assert sample_key(FIRST + 2) == "0000300000002"
    assert {stem(f"shards/00003-ab{end}") for end in (".tar", ".parquet", "_stats.json")} == {"shards/00003-ab"}


def test_a_shard_holds_each_image_with_its_caption_and_facts(storage: Storage) -> None:
    write(storage)
    found = members(storage)
    assert list(found) == [f"00003{n}" for n in ("00000000.jpg", "00000000.txt", "00000000.json")] + [
        f"00003{n}" for n in ("00000002.png", "00000002.json")
    ]
    assert found["0000300000000.txt"] == b"a bird"
    assert json.loads(found["0000300000002.json"])["url"] == "http://x/2"


def test_images_are_read_back_by_their_locations(storage: Storage) -> None:
    places, _ = write(storage)
    assert ShardReader(storage).read(places) == IMAGES


def test_the_records_are_the_digests_of_the_files_and_the_bytes_repeat(storage: Storage) -> None:
    _, records = write(storage)
    for path, record in records.items():
        data = storage.read(path)
        assert record == {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    assert write(storage)[1] == records
    assert len(records) == 3


def test_the_sidecar_files_list_failed_rows_too(storage: Storage) -> None:
    write(storage)
    rows = pq.read_table(io.BytesIO(storage.read(f"{stem(PATH)}.parquet")))
    assert rows.column("status").to_pylist() == ["success", "failed_to_download", "success"]
    stats = json.loads(storage.read(f"{stem(PATH)}_stats.json"))
    assert (stats["count"], stats["successes"], stats["status_dict"]["http_404"]) == (3, 2, 1)


def test_a_shard_that_ends_early_is_damaged(storage: Storage) -> None:
    places, _ = write(storage)
    storage.put(PATH, storage.read(PATH)[:600])
    with pytest.raises(DamagedError, match="it ends before byte"):
        ShardReader(storage).read(places)


def test_erasing_a_sample_leaves_the_others_where_they_were(storage: Storage) -> None:
    places, _ = write(storage)
    span = span_of(storage, PATH, places.column("byte_offset")[0].as_py())
    erase(storage, PATH, [span])
    erase(storage, PATH, [span])
    assert list(members(storage)) == [ERASED, "0000300000002.png", "0000300000002.json"]
    assert not any(members(storage)[ERASED])
    assert b"a bird" not in storage.read(PATH)
    assert ShardReader(storage).read(places.slice(2)) == [IMAGES[2]]
    assert span_of(storage, PATH, places.column("byte_offset")[0].as_py()) == span


def test_erased_rows_of_sidecar_files_keep_only_their_key(storage: Storage) -> None:
    write(storage)
    erase_sidecars(storage, PATH, [FIRST], "taken_down")
    first, _, last = pq.read_table(io.BytesIO(storage.read(f"{stem(PATH)}.parquet"))).to_pylist()
    assert first["key"] == "0000300000000"
    assert (first["status"], first["error_message"], first["caption"]) == ("failed_to_download", "taken_down", None)
    assert last["url"] == "http://x/2"
    assert json.loads(storage.read(f"{stem(PATH)}_stats.json"))["successes"] == 1


def test_put_back_restores_the_offsets_of_a_shard_that_lacks_a_sample(storage: Storage) -> None:
    places, _ = write(storage)
    offsets = places.column("byte_offset").to_pylist()
    begin, end = span_of(storage, PATH, offsets[0])
    whole = storage.read(PATH)
    storage.put("shards/shorter.tar", whole[:begin] + whole[end:])
    record = put_back(storage, "shards/shorter.tar", "shards/restored.tar", [(begin, end)])
    restored = storage.read("shards/restored.tar")
    assert restored[end:] == whole[end:]
    assert record == {"bytes": len(whole), "sha256": hashlib.sha256(restored).hexdigest()}
    assert moved(offsets[2] - (end - begin), [(begin, end)]) == offsets[2]
