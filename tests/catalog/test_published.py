"""A published version as others read it: its samples, the types of its parts, and a digest of all that matters."""

from pathlib import Path

import pyarrow as pa
import pytest

from catalog.dataset import Catalog, Dataset
from catalog.errors import NotFoundError, UserError
from catalog.parts import PartWriter
from catalog.pieces import read_parquet
from catalog.published import PublishedVersion, pieces_of
from catalog.schema import SAMPLE_BITS, SAMPLE_ID, vector
from catalog.takedown.ledger import Ledger
from catalog.version import TableState, VersionFacts

VECTORS = pa.schema([SAMPLE_ID, vector("clip", 2, "")])
SAMPLES = pa.schema([SAMPLE_ID])
IDS = [0, 1, 5 << SAMPLE_BITS]


def publish(dataset: Dataset, name: str, kept: list[int], samples: str = "samples") -> int:
    """Publish a version with a table of vectors in two parts, and one of samples."""
    parts = []
    for number, ids in ((5, IDS[2:]), (0, IDS[:2])):
        with PartWriter(dataset.storage, "embeddings", f"{name}{number}", VECTORS) as writer:
            writer.write(pa.table({"sample_id": ids, "clip": [[1.0, 0.0]] * len(ids)}, schema=VECTORS))
        parts.append(writer.part())
    with PartWriter(dataset.storage, samples, name, SAMPLES) as writer:
        writer.write(pa.table({"sample_id": kept}, schema=SAMPLES))
    tables = {"embeddings": TableState(VECTORS, parts), samples: TableState(SAMPLES, [writer.part()])}
    return dataset.publish(tables, VersionFacts("", name, "test")).number


@pytest.fixture
def catalog(tmp_path: Path) -> Catalog:
    return Catalog(tmp_path, create=True)


def test_its_tables_have_the_types_of_the_parts_and_are_in_part_order(catalog: Catalog) -> None:
    dataset = catalog.dataset("real")
    publish(dataset, "a", IDS)
    version = PublishedVersion.resolve(catalog, "theirs", "real")
    assert version.schemas()["embeddings"].field("clip").type == pa.list_(pa.float16(), 2)
    pieces = version.pieces("embeddings")
    assert [piece.number for piece in pieces.pieces] == [0, 5]
    assert [piece.read(None, ["sample_id"]).num_rows for piece in pieces.pieces] == [2, 1]
    assert pieces == pieces_of(dataset, version.version, "embeddings")
    assert read_parquet(dataset.storage, pieces.pieces[0].path).num_rows == 2


def test_the_last_version_is_the_default_and_is_recorded(catalog: Catalog) -> None:
    for name in "ab":
        publish(catalog.dataset("real"), name, IDS[:1])
    found = PublishedVersion.resolve(catalog, "theirs", "real").input
    assert {"as": "theirs", "dataset": "real", "version": 2, "rows": 1, "uri": "real@2"}.items() <= found.items()
    assert PublishedVersion.resolve(catalog, "theirs", "real@1").input["version"] == 1


def test_the_digest_changes_with_all_that_a_reader_sees(catalog: Catalog) -> None:
    dataset = catalog.dataset("real")
    publish(dataset, "a", IDS)
    publish(dataset, "b", IDS)
    publish(catalog.dataset("other"), "a", IDS)
    first = PublishedVersion.resolve(catalog, "x", "real@1")
    digests = [first.digest("embeddings"), first.digest("samples")]
    digests += [PublishedVersion.resolve(catalog, "x", label).digest("embeddings") for label in ("real@2", "other")]
    assert PublishedVersion.resolve(catalog, "y", "real@1").digest("embeddings") == digests[0]
    path = first.pieces("embeddings").pieces[0].path
    Ledger().done({"files": [path]}).save(dataset.storage)
    digests.append(first.digest("embeddings"))
    assert len(set(digests)) == 5


def test_mistakes(catalog: Catalog) -> None:
    publish(catalog.dataset("real"), "a", IDS)
    version = PublishedVersion.resolve(catalog, "theirs", "real")
    with pytest.raises(NotFoundError, match="real@1 has no table 'embedings'; did you mean 'embeddings'"):
        version.pieces("embedings")
    publish(catalog.dataset("half"), "a", IDS, samples="sample")
    with pytest.raises(UserError, match="from: theirs: half@1 published no samples"):
        PublishedVersion.resolve(catalog, "theirs", "half")
    publish(catalog.dataset("none"), "a", [])
    with pytest.raises(UserError, match="from: theirs: none@1 published no samples"):
        PublishedVersion.resolve(catalog, "theirs", "none")
    ledger = Ledger().ordered({}, {"rows": []})
    ledger.save(catalog.dataset("real").storage)
    with pytest.raises(UserError, match="a takedown of 'real' was interrupted"):
        PublishedVersion.resolve(catalog, "theirs", "real")
