"""Schemas: the roles of columns, and local paths as a column holds them."""

import os

import pyarrow as pa
import pytest

from catalog.schema import (
    CLUSTERS,
    DECISIONS,
    IMAGES,
    SAMPLE_ID,
    SOURCE,
    field,
    local_file,
    local_name,
    role,
    score,
    vector,
    without_absent,
)


def test_a_field_has_its_role_and_its_meaning() -> None:
    image = field("image", pa.large_binary(), "the bytes", "image", limit="5")
    assert role(image) == "image"
    assert image.metadata == {b"about": b"the bytes", b"role": b"image", b"limit": b"5"}
    assert role(SAMPLE_ID) == ""
    assert role(pa.field("plain", pa.int64())) == ""


def test_a_vector_is_a_float16_list_of_fixed_size() -> None:
    column = vector("clip", 512, "an embedding")
    assert column.type == pa.list_(pa.float16(), 512)
    assert role(column) == "vector"


def test_a_score_names_its_scorer_and_version() -> None:
    column = score("aesthetic", "laion", 2, "how good it looks")
    assert column.type == pa.float32()
    assert role(column) == "score"
    assert (column.metadata[b"scorer"], column.metadata[b"version"]) == (b"laion", b"2")


@pytest.mark.parametrize("path", ["/data/a b.jpg", "/data/é.jpg", os.fsdecode(b"/data/\xff%41.jpg")])
def test_a_local_path_is_valid_utf8_and_comes_back(path: str) -> None:
    name = local_name(path)
    assert name.encode()
    assert local_file(name) == path


def test_only_a_path_that_is_not_utf8_is_encoded() -> None:
    assert local_name("/data/a%20b.jpg") == "/data/a%20b.jpg"
    assert local_name(os.fsdecode(b"/data/\xff.jpg")) == "bytes:/data/%FF.jpg"


def test_an_annotation_that_no_part_has_is_left_out() -> None:
    old = [name for name in DECISIONS.names if name != "numbers"]
    assert without_absent(DECISIONS, [old, old]).names == old


def test_an_annotation_that_one_part_has_remains() -> None:
    old = [name for name in DECISIONS.names if name != "numbers"]
    assert without_absent(DECISIONS, [old, DECISIONS.names]).equals(DECISIONS)
    assert without_absent(DECISIONS, []).equals(DECISIONS)


def test_another_column_remains_even_if_no_part_has_it() -> None:
    assert without_absent(SOURCE, [["sample_id"]]).equals(SOURCE)


@pytest.mark.parametrize("schema", [SOURCE, IMAGES, DECISIONS, CLUSTERS])
def test_tables_about_samples_begin_with_sample_id_and_describe_each_column(schema: pa.Schema) -> None:
    assert schema.field(0).equals(SAMPLE_ID)
    assert all(column.metadata[b"about"] for column in schema)
