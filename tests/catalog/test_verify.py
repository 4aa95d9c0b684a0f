"""Damage of every kind, to every file of a small published dataset, is found; nothing else is."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from catalog import log_copies
from catalog.dataset import Catalog
from catalog.errors import DamagedError
from catalog.gc import collect, plan
from catalog.inputs import STORED, stored_error
from catalog.shard_check import check_shards
from catalog.takedown.amend import amend
from catalog.takedown.reach import Names
from catalog.verify import Verifier
from flows.govern.takedown import take_down
from flows.govern.verify import is_settled, lines, verify
from tasks.images import decode_fault
from tests.damage import (
    HARMS,
    build,
    content,
    damaged_copy,
    dataset_of,
    dataset_root,
    delete,
    empty,
    files_of,
    flip,
    named,
    tar_of,
    truncate,
    without_places,
    zeros,
)
from tests.flows.conftest import Web

__all__ = ["damaged_copy"]  # the fixture `web`


def test_a_sound_dataset_is_sound(web: Web) -> None:
    findings = Verifier(dataset_of(web), decode_fault).run()
    assert findings.damages == []
    assert findings.without_digest == 0
    assert findings.files == len(files_of(web))
    one, _ = verify(Catalog(web.catalog), "web@1")
    assert one.is_sound
    assert one.label == "web@1"
    assert next(lines(findings, None)).startswith("web is sound: ")


@pytest.mark.parametrize("harm", HARMS)
def test_each_file_in_turn_is_named(web: Web, harm: Callable[[Path], None]) -> None:
    for path in files_of(web):
        data = path.read_bytes()
        harm(path)
        assert named(web) == [str(path.relative_to(Path(web.catalog, "web")))], harm
        path.write_bytes(data)
    assert named(web) == []


def test_a_flip_anywhere_in_a_file_is_found(web: Web) -> None:
    for path in files_of(web):
        data = path.read_bytes()
        for share in (0.0, 0.25, 0.9, 1.0):
            flip(path, share)
            assert named(web) == [str(path.relative_to(Path(web.catalog, "web")))], share
            path.write_bytes(data)


def test_a_dataset_that_forgot_versions_is_sound(web: Web) -> None:
    build(web, "filter.where=width > 1")
    collect(plan(dataset_of(web), older_than_s=-60.0, keep_versions=1))
    assert [version.number for version in dataset_of(web).versions()] == [2]
    assert named(web) == []


def test_an_empty_or_missing_commit_is_no_commit_of_nothing(web: Web) -> None:
    web.add_file("c", web.pictures(range(20, 22)))
    try:
        build(web)
    finally:
        (web.folder / "urls" / "c.parquet").unlink()
    dataset = dataset_of(web)
    commit = Path(web.catalog, "web/images/_delta_log/00000000000000000001.json")
    data = commit.read_bytes()
    for harm in (empty, delete):
        harm(commit)
        with pytest.raises(DamagedError, match="images/_delta_log is damaged"):
            dataset.files(dataset.version(2), "images")
        with pytest.raises(DamagedError, match="verify web --repair"):
            build(web)  # the commit that follows would take its number
        assert verify(Catalog(web.catalog), "web@1")[0].label == "web@1"
        verify(Catalog(web.catalog), "web", repair=True)
        assert commit.read_bytes() == data


def test_a_commit_that_cannot_be_read_is_not_copied(web: Web) -> None:
    """Nor what follows it: a copy is what damage is found by."""
    dataset = dataset_of(web)
    commit = dataset_root(web) / "images/_delta_log/00000000000000000001.json"
    commit.write_bytes(b'{"add"')
    (commit.parent / "00000000000000000002.json").write_bytes(b'{"commitInfo": {}}\n')
    dataset.copy_logs()
    newest = log_copies.newest(dataset.storage)
    assert newest is not None
    assert newest.until["images"] == 0


def test_a_picture_that_this_decoder_cannot_read_is_no_damage(web: Web, tmp_path: Path) -> None:
    """The shard is what was written: the row has no vector, as it had when its decoder was this one."""
    rows = pa.table({"sample_id": [1], "image": pa.array([b"no picture"], pa.large_binary())})
    assert stored_error(rows, 0, "undecodable") is None
    unchecked = rows.replace_schema_metadata({STORED: b"1"})
    assert isinstance(stored_error(unchecked, 0, "undecodable"), DamagedError)
    parts = [f.path for f in dataset_of(web).files(dataset_of(web).version(), "images")]
    sample = next(r["sample_id"] for r in content(web)["images"] if r["shard"])
    assert check_shards(dataset_of(web).storage, parts, sample, decode_fault) is None


def test_a_takedown_leaves_digests_that_are_right(web: Web) -> None:
    sample = next(r["sample_id"] for r in content(web)["images"] if r["shard"])
    take_down(dataset_of(web), Names(sample_ids=frozenset([sample])))
    assert named(web) == []
    flip(tar_of(web))
    assert named(web) == [tar_of(web).relative_to(dataset_root(web)).as_posix()]


def test_a_takedown_does_not_bless_damage(web: Web) -> None:
    row = next(r for r in content(web)["images"] if r["shard"])
    shard = Path(web.catalog, "web", row["shard"])
    data = bytearray(shard.read_bytes())
    data[-600] ^= 1  # in the padding of the last member: of another row
    shard.write_bytes(data)
    take_down(dataset_of(web), Names(sample_ids=frozenset([row["sample_id"]])))
    assert named(web) == [row["shard"]]


def strip(path: Path) -> None:
    """Make a part one of an older release: without digests."""
    rows = pq.read_table(path)
    pq.write_table(rows, path, compression="zstd", write_page_checksum=True)


def test_a_dataset_of_an_older_release_is_checked_as_far_as_can_be(web: Web) -> None:
    root = dataset_root(web)
    shutil.rmtree(root / "_copies")
    (root / "_state/copies.json").unlink()
    for path in sorted((root / "_state").glob("*.json")):
        value = json.loads(path.read_text())
        value.pop("espalier.sha256")
        path.write_text(json.dumps(value))
    dataset = dataset_of(web)
    for path in root.rglob("*.parquet"):
        if "shards" not in path.parts:
            strip(path)
    for table in (*dataset.tables(), "versions", "runs"):
        amend(dataset.storage, table, [f"{table}/{name}.parquet" for name in dataset.finished(table)])
    findings = Verifier(dataset, decode_fault).run()
    assert findings.is_sound, findings.damages
    assert findings.without_digest > 20
    assert "have no digest" in list(lines(findings, None))[-1]
    shard = next(p for p in root.rglob("*.tar"))
    part = next(p for p in root.glob("images/*.parquet"))
    for path, harm in ((shard, zeros), (shard, truncate), (part, truncate), (part, zeros), (part, delete)):
        data = path.read_bytes()
        harm(path)
        assert named(web) == [path.relative_to(root).as_posix()], harm
        path.write_bytes(data)
    before = content(web)
    zeros(shard)
    findings, mended = verify(Catalog(web.catalog), "web", repair=True)
    assert is_settled(findings, mended)
    build(web)
    now = content(web)
    # Nobody can say that it is the same shard: the pictures are an attempt of their own.
    assert without_places(now) == without_places(before)
