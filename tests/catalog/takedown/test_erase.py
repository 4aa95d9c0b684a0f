"""Erasing rows: a plan first, then steps that may be repeated. Files keep their names, other rows their content."""

import json
from collections.abc import Callable, Mapping

import numpy as np
import pyarrow as pa
import pytest

from catalog import delta
from catalog.dataset import Dataset
from catalog.parts import PartFile, PartWriter, describe_part
from catalog.pieces import read_parquet
from catalog.schema import DECISIONS, IMAGES, SOURCE, TAKEN_URL, field
from catalog.shards import ShardReader
from catalog.takedown.erase import (
    ErasurePlan,
    erase_parts,
    erase_shards,
    order_for,
    remaining,
    settle,
    sweep,
)
from catalog.takedown.ledger import REASON, Ledger
from catalog.takedown.reach import Names
from catalog.takedown.scrub import Scrubber, words_of
from catalog.version import TableState, VersionFacts

WritePart = Callable[..., PartFile]
MADE = pa.schema(
    [
        *(IMAGES.field(n) for n in ("sample_id", "status", "reason", "format")),
        field("image", pa.large_binary(), "", "image"),
    ]
)
NAMES = Names(urls=frozenset(["http://h/1"]))


@pytest.fixture
def birds(local_dataset: Dataset, write_part: WritePart) -> Dataset:
    """Three rows with images in one shard, the decisions about them, a table of no samples, and one version."""
    rows = [{"sample_id": i, "url": f"http://h/{i}", "caption": f"bird {i}"} for i in range(3)]
    source = write_part(local_dataset, "source", 0, rows)
    with PartWriter(local_dataset.storage, "images", "ab" * 16, MADE) as images:
        made = [{"sample_id": i, "status": "success", "format": "jpg", "image": b"x%d" % i * 400} for i in range(3)]
        images.write(pa.Table.from_pylist(made, schema=MADE))
    judged = write_part(local_dataset, "decisions", 0, [{"sample_id": i, "stage": "s", "keep": True} for i in range(3)])
    schema = pa.schema([("fact", pa.string())])
    facts = write_part(local_dataset, "facts", 0, [{"fact": "three birds"}], schema)
    tables = {
        "source": TableState(SOURCE, [source]),
        "images": TableState(read_parquet(local_dataset.storage, images.path).schema, [images.part()]),
        "decisions": TableState(DECISIONS, [judged]),
        "facts": TableState(schema, [facts]),
    }
    local_dataset.publish(tables, VersionFacts("", "0" * 64, ""))
    return local_dataset


def contents(dataset: Dataset) -> Mapping[str, bytes]:
    return {path: dataset.storage.read(path) for path in dataset.storage.list()}


def test_a_plan_lists_parts_ranges_and_versions_and_changes_nothing(birds: Dataset) -> None:
    before = contents(birds)
    order = order_for(birds, np.array([1]))
    assert contents(birds) == before
    assert (order.rows, order.tables) == ({"source": 1, "images": 1, "decisions": 1}, ["decisions", "images", "source"])
    assert (order.versions, order.damaged, order.ids.tolist()) == ([1], [], [1])
    ((shard, ((begin, end),)),) = order.spans.items()
    assert b"x1" * 400 in birds.storage.read_range(shard, begin, end - begin)
    assert ErasurePlan.of_json(json.loads(json.dumps(order.to_json()))) == order
    nothing = order_for(birds, np.array([99]))
    assert (nothing.rows, nothing.parts, nothing.spans, nothing.versions) == ({}, [], {}, [])


def test_a_plan_names_shards_that_were_damaged_before(birds: Dataset) -> None:
    """Their recorded digests remain, so that `verify` still finds the damage after the erasure."""
    (shard,) = order_for(birds, np.array([1])).spans
    data = bytearray(birds.storage.read(shard))
    data[-600] ^= 1
    birds.storage.put(shard, bytes(data))
    order = order_for(birds, np.array([1]))
    assert order.damaged == [shard]
    (part,) = [path for path in order.parts if path.startswith("images/")]
    recorded = describe_part(birds.storage, part).files[shard]
    erase_shards(birds, order)
    erase_parts(birds, order, Scrubber(words_of(birds, order.ids), Ledger()))
    assert describe_part(birds.storage, part).files[shard] == recorded


def test_erased_rows_leave_every_table_and_the_shard(birds: Dataset) -> None:
    order = order_for(birds, np.array([1]))
    ledger = Ledger()
    ledger = ledger.ordered(ledger.digests(NAMES), None)
    (shard,) = order.spans
    assert remaining(birds, order, ledger) == sorted(
        [shard, *(p for p in order.parts if p[:6] in ("source", "decisi"))]
    )
    untouched = birds.storage.read(next(p for p in contents(birds) if p.startswith("facts/") and p.endswith("parquet")))
    scrubber = Scrubber(words_of(birds, order.ids), ledger)
    birds.storage.put("shards/00009-ff.tar", b"named by no row")
    birds.storage.put("_work/scratch", b"http://h/1")
    for _ in range(2):  # each step may be repeated
        erase_shards(birds, order)
        erase_parts(birds, order, scrubber)
        sweep(birds)
        settle(birds, order)
    assert remaining(birds, order, ledger) == []
    rows = {path.partition("/")[0]: read_parquet(birds.storage, path) for path in order.parts}
    assert rows["source"].select(["sample_id", "url", "caption"]).to_pylist()[1:] == [
        {"sample_id": 1, "url": TAKEN_URL, "caption": None},
        {"sample_id": 2, "url": "http://h/2", "caption": "bird 2"},
    ]
    assert rows["images"]["reason"].to_pylist() == [None, REASON, None]
    assert rows["decisions"]["sample_id"].to_pylist() == [0, 2]
    assert ShardReader(birds.storage).read(rows["images"]) == [b"x0" * 400, None, b"x2" * 400]
    left = contents(birds)
    assert untouched in left.values()
    assert not {"shards/00009-ff.tar", "_work/scratch"} & left.keys()
    assert not any(b"x1" * 400 in data or b"http://h/1" in data for data in left.values())
    assert birds.version().tables["decisions"].rows == 2
    sizes = {part.path: part.bytes for table in order.tables for part in delta.files(birds.storage, table)}
    assert sizes == {path: len(left[path]) for path in order.parts}
    for path, record in describe_part(
        birds.storage, next(p for p in order.parts if p.startswith("images/"))
    ).files.items():
        assert record["bytes"] == len(left[path])


def test_a_shard_without_remaining_samples_is_removed(birds: Dataset) -> None:
    order = order_for(birds, np.array([0, 1, 2]))
    scrubber = Scrubber(words_of(birds, order.ids), Ledger())
    erase_shards(birds, order)
    erase_parts(birds, order, scrubber)
    sweep(birds)
    assert [path for path in birds.storage.list() if path.startswith("shards/")] == []
    (part,) = [path for path in order.parts if path.startswith("images/")]
    assert describe_part(birds.storage, part).files == {}
    assert read_parquet(birds.storage, part)["sample_id"].to_pylist() == [0, 1, 2]
