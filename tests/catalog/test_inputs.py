"""Inputs join tables by sample_id and leave out what is out, from files as from memory."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from catalog.errors import NotFoundError
from catalog.inputs import Inputs
from catalog.parts import PartWriter, part_path, written_schema
from catalog.pieces import Piece, Pieces
from catalog.schema import IMAGES, SAMPLE_BITS, SAMPLE_ID, field, vector
from catalog.storage import Storage

IDS = [0, 1, 2, 1 << SAMPLE_BITS, (1 << SAMPLE_BITS) + 1]
SOURCE = pa.table({"sample_id": IDS, "caption": list("abcde")})
IMAGE_ROWS = pa.table(
    {
        "sample_id": IDS,
        "status": ["success", "failed", "success", "success", "success"],
        "image": pa.array([b"0", None, b"2", b"3", b"4"], pa.large_binary()),
    }
)
DECIDED = pa.table({"sample_id": [0, 2, *IDS[3:]], "keep": [True, True, False, True]})
VECTORS = pa.table(
    {"sample_id": IDS[::2], "clip": pa.array([[1, 0], None, [0, 1]], pa.list_(pa.float16(), 2))},
)


def in_memory() -> Inputs:
    return Inputs.of(source=SOURCE, images=IMAGE_ROWS, decisions=DECIDED, embeddings=VECTORS)


def in_files(tmp_path: Path) -> Inputs:
    """The same rows, as two parts each, with the images in shards."""
    storage = Storage.open(tmp_path, create=True)
    image = field("image", pa.large_binary(), "", role="image")
    schemas = {
        "source": SOURCE.schema,
        "images": pa.schema([SAMPLE_ID, IMAGES.field("status"), IMAGES.field("format"), IMAGES.field("reason"), image]),
        "decisions": DECIDED.schema,
        "embeddings": pa.schema([SAMPLE_ID, vector("clip", 2, "")]),
    }
    rows = {
        "source": SOURCE,
        "images": IMAGE_ROWS.append_column("format", pa.array(["jpg"] * 5)).append_column(
            "reason", pa.nulls(5, pa.string())
        ),
        "decisions": DECIDED,
        "embeddings": VECTORS,
    }
    tables = {}
    for name, table in rows.items():
        number = np.asarray(table["sample_id"]) >> SAMPLE_BITS
        for n in (0, 1):
            with PartWriter(storage, name, f"{name}{n}", schemas[name], n) as writer:
                writer.write(table.filter(pa.array(number == n)))
        pieces = tuple(Piece(part_path(name, f"{name}{n}"), n) for n in (0, 1))
        tables[name] = Pieces(written_schema(schemas[name]), pieces)
    return Inputs(tables, [tables["images"], tables["decisions"]], storage)


@pytest.fixture(params=["memory", "files"])
def inputs(request: pytest.FixtureRequest, tmp_path: Path) -> Inputs:
    return in_memory() if request.param == "memory" else in_files(tmp_path)


def test_only_what_is_alive(inputs: Inputs) -> None:
    assert inputs.ids().tolist() == [0, 2, IDS[4]]
    assert inputs.rows() == 3


def test_tables_are_joined_in_order(inputs: Inputs) -> None:
    rows = inputs.table({"source": ["caption"], "images": ["image"], "embeddings": ["clip"]}).to_pylist()
    assert rows == [
        {"sample_id": 0, "caption": "a", "image": b"0", "clip": [1, 0]},
        {"sample_id": 2, "caption": "c", "image": b"2", "clip": None},
        {"sample_id": IDS[4], "caption": "e", "image": b"4", "clip": [0, 1]},
    ]


def test_a_row_that_another_table_lacks_is_null(inputs: Inputs) -> None:
    rows = inputs.table({"source": ["caption"], "decisions": ["keep"]}).to_pylist()
    assert [r["keep"] for r in rows] == [True, True, True]
    joined = Inputs.of(source=SOURCE, embeddings=VECTORS).table({"source": [], "embeddings": ["clip"]})
    assert joined.column("clip").to_pylist() == [[1, 0], None, None, None, [0, 1]]


def test_batches_are_cut(inputs: Inputs) -> None:
    assert [b.num_rows for b in inputs.batches({"source": ["caption"]}, rows=1)] == [1, 1, 1]


def test_a_file_is_read_as_it_is_used_and_cut_across_its_row_groups(tmp_path: Path) -> None:
    storage = Storage.open(tmp_path, create=True)
    rows = pa.table({"sample_id": np.arange(100), "clip": pa.array([[i, 1] for i in range(100)], VECTORS["clip"].type)})
    schema = pa.schema([SAMPLE_ID, vector("clip", 2, "")])
    with PartWriter(storage, "embeddings", "e0", schema, 0) as writer:
        for start in range(0, 100, 30):
            writer.write(rows.slice(start, 30))
    pieces = Pieces(written_schema(schema), (Piece(part_path("embeddings", "e0"), 0),))
    verdicts = pa.table({"sample_id": [3, 50, 51], "keep": [False, False, False]})
    inputs = Inputs({"embeddings": pieces}, [Pieces.of(verdicts)], storage)
    alive = [i for i in range(100) if i not in (3, 50, 51)]
    batches = list(inputs.batches({"embeddings": ["clip"]}, rows=40))
    assert [b.num_rows for b in batches] == [39, 38, 20]
    assert pa.concat_tables(batches).equals(rows.take(pa.array(alive)).cast(batches[0].schema))
    assert pa.concat_tables(batches).equals(inputs.table({"embeddings": ["clip"]}))
    ids, vectors = map(np.concatenate, zip(*inputs.vectors("embeddings", "clip", rows=7), strict=True))
    assert ids.tolist() == vectors[:, 0].tolist() == alive
    everything = list(Inputs({"embeddings": pieces}, (), storage).batches({"embeddings": ["clip"]}, rows=40))
    assert [b.num_rows for b in everything] == [40, 40, 20]


def test_vectors_skip_rows_without_one(inputs: Inputs) -> None:
    ids, matrix = (np.concatenate(x) for x in zip(*inputs.vectors("embeddings", "clip"), strict=True))
    assert ids.tolist() == [0, IDS[4]]
    assert matrix.dtype == np.float16
    assert matrix.tolist() == [[1, 0], [0, 1]]


def test_whole_sql_and_images_see_every_row(inputs: Inputs) -> None:
    assert inputs.whole("source").num_rows == 5
    assert inputs.sql("select count(*) as n from source join alive using (sample_id)").to_pylist() == [{"n": 3}]
    assert inputs.images([0, IDS[3], 1]) == {0: b"0", IDS[3]: b"3"}


def test_split_gives_parts_that_add_up(tmp_path: Path) -> None:
    parts = in_files(tmp_path).split("source")
    assert [p.ids().tolist() for p in parts] == [[0, 2], [IDS[4]]]


def test_what_is_not_there(inputs: Inputs) -> None:
    with pytest.raises(NotFoundError, match="no table 'imagse' among the inputs; did you mean 'images'"):
        inputs.table({"imagse": []})
    with pytest.raises(NotFoundError, match="table 'source' has no column 'captoin'; did you mean 'caption'"):
        inputs.table({"source": ["captoin"]})


def test_an_empty_table() -> None:
    empty = Inputs.of(source=SOURCE.slice(0, 0))
    assert empty.table({"source": ["caption"]}).num_rows == 0
    assert empty.rows() == 0


def of_two_datasets() -> Inputs:
    """Three rows of our own, of which the second failed, and a version of another dataset that kept its last two."""
    tables = {
        "images": IMAGE_ROWS.slice(0, 3),
        "real.source": pa.table({"sample_id": [0, 1, 2], "caption": list("xyz")}),
        "real.images": pa.table({"sample_id": [0, 1, 2], "image": pa.array([b"x", b"y", b"z"], pa.large_binary())}),
        "real.centroids": pa.table({"cluster": [0, 1]}),
    }
    pieces = {name: Pieces.of(table) for name, table in tables.items()}
    return Inputs(pieces, [pieces["images"]], None, {"real": Pieces.of(pa.table({"sample_id": [1, 2]}))})


def test_rows_of_another_dataset_are_alive_where_its_version_kept_them() -> None:
    inputs = of_two_datasets()
    assert inputs.ids().tolist() == [0, 2]
    columns = {"real.source": ["caption"], "real.images": ["image"]}
    assert inputs.table(columns).to_pydict() == {"sample_id": [1, 2], "caption": ["y", "z"], "image": [b"y", b"z"]}
    assert inputs.whole("real.source").column("caption").to_pylist() == ["y", "z"]
    assert inputs.whole("real.centroids").num_rows == 2
    assert inputs.images([1, 2], "real.images") == {1: b"y", 2: b"z"}
    assert inputs.sql("select caption from real.source order by 1").to_pydict() == {"caption": ["y", "z"]}
    assert inputs.sql("select count(*) as n from real.centroids, images").to_pydict() == {"n": [6]}


def test_rows_of_two_datasets_are_not_joined() -> None:
    with pytest.raises(ValueError, match=r"'images' and 'real.source' are of different datasets"):
        next(of_two_datasets().batches({"images": ["status"], "real.source": ["caption"]}))


def test_a_split_of_another_dataset_has_nothing_of_ours() -> None:
    (part,) = of_two_datasets().split("real.images")
    assert part.tables() == ("real.images", "real.source", "real.centroids")
    assert part.ids().tolist() == [1, 2]
