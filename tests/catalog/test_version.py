"""A version is stored in one file, and read back as it was."""

import io
from dataclasses import replace
from datetime import UTC, datetime

import pyarrow as pa
import pyarrow.parquet as pq

from catalog.version import VERSIONS, TableVersion, Version, from_parquet, number_in, to_parquet

VERSION = Version(
    dataset="birds",
    number=12,
    created_at=datetime(2026, 1, 2, tzinfo=UTC),
    tables={"source": TableVersion(3, 10, 2000, 1), "scores": TableVersion(0, 9, 100, 2, uniform=False)},
    recipe="dataset: birds",
    recipe_sha256="0" * 64,
    code_version="1.0",
    inputs=[{"path": "urls"}],
    stages=[{"name": "download", "rows": 10}],
    seed=7,
    held=("no rows",),
)


def test_a_version_is_read_back_as_it_was() -> None:
    assert from_parquet("birds", to_parquet(VERSION)) == VERSION
    assert VERSION.label == "birds@12"
    assert VERSION.bytes == 2100


def test_a_version_is_held_until_it_is_approved() -> None:
    assert VERSION.is_held
    assert not replace(VERSION, approved_at=datetime(2026, 1, 3, tzinfo=UTC)).is_held
    assert not replace(VERSION, held=()).is_held


def test_rows_of_an_older_release_were_never_held() -> None:
    table = pq.read_table(io.BytesIO(to_parquet(VERSION))).drop_columns(["held", "approved_at"])
    file = io.BytesIO()
    pq.write_table(table, file)
    read = from_parquet("birds", file.getvalue())
    assert read is not None
    assert not read.is_held
    assert read.tables == VERSION.tables


def test_another_table_is_no_version() -> None:
    file = io.BytesIO()
    pq.write_table(pa.table({"number": [1]}), file)
    assert from_parquet("birds", file.getvalue()) is None


def test_a_file_is_named_by_the_number_of_its_version() -> None:
    assert number_in("versions/00000012-0badcafe.parquet") == 12
    assert VERSIONS.names[0] == "number"
