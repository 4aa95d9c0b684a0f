"""Parts: named by their fingerprint, written atomically with their shard, and described by their footer."""

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from catalog.errors import DamagedError
from catalog.parts import PartWriter, describe_part, fingerprint_of, number_rows, part_path, written_schema
from catalog.pieces import read_parquet
from catalog.schema import IMAGES, PLACE, SAMPLE_BITS, SAMPLE_ID, field, vector
from catalog.seal import Seal, read_seal
from catalog.shards import ShardReader
from catalog.storage import Storage

SOURCE = pa.table({"sample_id": range(5), "caption": list("abcde")})
STAGE = pa.schema(
    [
        SAMPLE_ID,
        *(IMAGES.field(name) for name in ("status", "reason", "format")),
        field("url", pa.string(), "", role="sidecar"),
        field("image", pa.large_binary(), "", role="image"),
    ]
)
"""What a stage that makes images yields."""


def images(*rows: tuple[int, bytes | None]) -> pa.Table:
    """Return rows of images: those without bytes failed."""
    made: list[dict[str, Any]] = [
        {
            "sample_id": i,
            "status": "success" if data else "failed",
            "format": "jpg",
            "url": f"http://h/{i}",
            "image": data,
        }
        for i, data in rows
    ]
    return pa.Table.from_pylist(made, schema=STAGE)


@pytest.fixture
def storage(tmp_path: Path) -> Storage:
    return Storage.open(tmp_path / "birds", create=True)


def test_a_fingerprint_depends_on_the_facts_and_not_on_the_order_of_their_keys() -> None:
    assert fingerprint_of({"b": 1, "a": 2}) == fingerprint_of({"a": 2, "b": 1})
    assert fingerprint_of({"a": 1}) != fingerprint_of({"a": 2})
    assert fingerprint_of("a", "b") != fingerprint_of("b", "a")
    canonical = '["download",{"a":"\u00e9","b":null}]'
    assert fingerprint_of("download", {"b": None, "a": "\u00e9"}) == hashlib.sha256(canonical.encode()).hexdigest()[:32]
    assert part_path("images", "ab") == "images/ab.parquet"


def test_the_schema_of_a_table_has_the_location_of_images_and_no_sidecars() -> None:
    assert written_schema(STAGE).names == ["sample_id", "status", "reason", "format", *(f.name for f in PLACE)]
    assert written_schema(SOURCE.schema) == SOURCE.schema
    assert written_schema(pa.schema([])) == pa.schema([])


def test_a_failed_writer_leaves_nothing(storage: Storage) -> None:
    def broken() -> None:
        with PartWriter(storage, "t", "f", SOURCE.schema) as writer:
            writer.write(SOURCE)
            raise RuntimeError("the stage broke")

    with pytest.raises(RuntimeError, match="the stage broke"):
        broken()
    assert storage.list() == {}


def test_a_part_says_what_it_holds(storage: Storage) -> None:
    with PartWriter(storage, "t", "f", SOURCE.schema) as writer:
        writer.write(SOURCE)
        writer.notes["clamped"] = 3
    assert describe_part(storage, writer.path) == writer.part()
    assert describe_part(storage, writer.path).notes == {"clamped": 3}
    assert storage.list() == {"t/f.parquet": writer.part().bytes}


def test_wrong_columns_do_not_get_in(storage: Storage) -> None:
    with pytest.raises(KeyError, match="caption"), PartWriter(storage, "t", "f", SOURCE.schema) as writer:
        writer.write(SOURCE.drop_columns(["caption"]))


def test_a_part_with_images_records_its_shard_and_its_seal(storage: Storage) -> None:
    with PartWriter(storage, "images", "ab" * 16, STAGE, 3) as writer:
        writer.write(images((1, b"one"), (2, None)))
        writer.write(images((5, b"five")))
    part = describe_part(storage, writer.path)
    *_, seal = read_seal(storage, writer.path, part.bytes)
    assert isinstance(seal, Seal)
    assert part.sha256 == writer.part().sha256 == seal.recorded == seal.found
    stem = "shards/00003-abababababababab"
    assert sorted(part.files) == [f"{stem}.parquet", f"{stem}.tar", f"{stem}_stats.json"]
    for path, record in part.files.items():
        data = storage.read(path)
        assert (len(data), hashlib.sha256(data).hexdigest()) == (record["bytes"], record["sha256"])
    rows = read_parquet(storage, writer.path)
    assert "url" not in rows.column_names
    assert ShardReader(storage).read(rows) == [b"one", None, b"five"]
    storage.put(writer.path, storage.read(writer.path)[:-9])
    with pytest.raises(DamagedError, match=f"{writer.path} is damaged"):
        describe_part(storage, writer.path)


def test_a_retry_is_merged_with_the_earlier_rows(storage: Storage) -> None:
    """In order, with the shards that rows still name; image bytes of the earlier attempt are not copied."""
    with PartWriter(storage, "images", "aa" * 16, STAGE) as first:
        first.write(images((0, b"zero"), (1, None), (2, b"two")))
    before = read_parquet(storage, first.path)
    unused = {"shards/00000-cccccccccccccccc.tar": {"bytes": 1, "sha256": "cc"}}
    with PartWriter(storage, "images", "bb" * 16, STAGE) as again:
        kept = before.filter(pa.array([True, False, True]))
        again.write_merged(kept, iter([images((1, b"one"))]), {**first.part().files, **unused})
    rows = read_parquet(storage, again.path)
    assert rows["sample_id"].to_pylist() == [0, 1, 2]
    assert ShardReader(storage).read(rows) == [b"zero", b"one", b"two"]
    old, new = (f"shards/00000-{name * 8}.tar" for name in ("aa", "bb"))
    assert rows["shard"].to_pylist() == [old, new, old]
    tars = {path for path in describe_part(storage, again.path).files if path.endswith(".tar")}
    assert tars == {old, new}


def test_a_part_may_have_no_row(storage: Storage) -> None:
    with PartWriter(storage, "source", "ab", SOURCE.schema) as writer:
        pass
    assert describe_part(storage, writer.path).rows == 0
    assert read_parquet(storage, writer.path).schema.names == SOURCE.column_names


def test_row_groups_end_where_the_writer_says_and_vectors_have_no_dictionary(storage: Storage) -> None:
    schema = pa.schema([SAMPLE_ID, vector("clip", 2, "")])
    rows = pa.table({"sample_id": range(4), "clip": [[1, 2]] * 4}).cast(schema)
    with PartWriter(storage, "embeddings", "ab", schema) as writer:
        writer.write(rows.slice(0, 3))
        writer.end_group()
        writer.end_group()
        writer.write(rows.slice(3))
    with pq.ParquetFile(storage.local(writer.path)) as file:
        groups = [file.metadata.row_group(i) for i in range(file.num_row_groups)]
        assert [group.num_rows for group in groups] == [3, 1]
        assert {group.column(1).compression for group in groups} == {"ZSTD"}
        assert [group.column(1).has_dictionary_page for group in groups] == [False, False]


def test_rows_of_a_source_are_numbered_by_part_and_position() -> None:
    numbered = number_rows(SOURCE.drop_columns(["sample_id"]).slice(0, 2), 3, 10)
    assert numbered.column_names == ["sample_id", "caption"]
    assert numbered["sample_id"].to_pylist() == [(3 << SAMPLE_BITS) + 10, (3 << SAMPLE_BITS) + 11]
    nothing = number_rows(SOURCE.drop_columns(["sample_id"]).slice(0, 0), 3, 0)
    assert np.asarray(nothing["sample_id"]).dtype == np.int64
