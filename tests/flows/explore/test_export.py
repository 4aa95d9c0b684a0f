"""Files of `espalier sql -o`: every row and value, as DuckDB's own COPY and Arrow have them; whole or not there."""

import base64
import csv
import io
import json
import math
import os
import threading
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from catalog.dataset import Catalog
from catalog.duck import Limits
from catalog.errors import QueryError, UserError
from catalog.parts import PartWriter
from catalog.schema import SAMPLE_ID, vector
from catalog.version import TableState, VersionFacts
from flows.explore.export import ENDINGS, format_of, target, write_query
from flows.explore.formats import Format

PLAIN = """
select i::int as i, i * 1.5 as d, (i / 7)::double as f, (i / 7)::float as f32, 'a"b,' || i || chr(10) || 'é' as t,
  case when i % 3 > 0 then i end as n, i % 2 = 0 as b, date '2020-02-28' + i::int as day, '' as nothing,
  case when i % 2 = 0 then '' end as some, i::utinyint as u
from range(50) r(i) order by i
"""
STRANGE = """
select 'nan'::double as nan, '-inf'::float as inf, [1.5::float, 'nan'::float, null] as l,
  {'a': 1, 'b': [1.5::double]} as s,
  map {'k': 'inf'::double} as m, [0.1, -2]::float[2] as vector, '\\x00\\xff'::blob as blob,
  timestamp '2020-01-01 10:00:00.123' as ts, timestamptz '2020-01-01 10:00:00+02' as tz, 1.10::decimal(9, 2) as dec,
  (2::hugeint ** 100)::hugeint as big, interval 1 day as iv, uuid '00000000-0000-0000-0000-00000000000a' as id,
  null as nothing, '{"x": 1}'::json as js, 'b'::enum('a', 'b') as e, ['\\xff'::blob] as blobs,
  [{'t': date '2020-01-01'}] as deep,
  time '10:00' as t, 1 as a, 2 as a, [[1, 2], null]::int[][] as nested, row(1, 'x') as unnamed, '101'::bit as bits,
  {'a': 'nan'::double, 'b': null} as holes, 1 as "quo""te'd", [null, {'v': 'inf'::float}] as inner
"""


@pytest.fixture
def catalog(tmp_path: Path) -> Catalog:
    (tmp_path / "catalog").mkdir()
    return Catalog(tmp_path / "catalog")


def written(catalog: Catalog, text: str, name: str, folder: Path, limits: Limits | None = None) -> Path:
    path = folder / name
    write_query(catalog, text, None, limits or Limits(), format_of(str(path), None), str(path), 100)
    return path


def test_a_csv_is_what_duckdb_copies(catalog: Catalog, tmp_path: Path) -> None:
    path = written(catalog, PLAIN, "x.csv", tmp_path)
    duckdb.execute(f"copy ({PLAIN}) to '{tmp_path}/peer.csv' (header, force_quote (t))")
    types = "columns={'i': 'int', 'd': 'decimal(12, 1)', 'f': 'double', 'f32': 'float', 't': 'text', 'n': 'bigint', "
    types += "'b': 'bool', 'day': 'date', 'nothing': 'text', 'some': 'text', 'u': 'utinyint'}"
    ours, peer = (
        duckdb.default_connection()
        .sql(f"from read_csv('{file}', header=true, auto_detect=false, {types}, quote='\"', escape='\"')")
        .fetchall()
        for file in (path, tmp_path / "peer.csv")
    )
    expected = duckdb.default_connection().sql(PLAIN).fetchall()
    assert len(ours) == len(expected) == 50
    assert [row[:7] + row[10:] for row in ours] == [row[:7] + row[10:] for row in peer]
    assert [row[:7] for row in ours] == [row[:7] for row in expected]
    lines = list(csv.reader(io.StringIO(path.read_text())))
    assert [line[4] for line in lines[1:]] == [row[4] for row in expected]  # quotes, commas and ends of lines
    assert '"",,1\n' in path.read_text()  # an empty text, and none


def test_a_parquet_file_is_what_duckdb_copies(catalog: Catalog, tmp_path: Path) -> None:
    path = written(catalog, PLAIN, "x.parquet", tmp_path)
    duckdb.execute(f"copy ({PLAIN}) to '{tmp_path}/peer.parquet'")
    ours, peer = (
        duckdb.default_connection().sql(f"from read_parquet('{file}')") for file in (path, tmp_path / "peer.parquet")
    )
    assert ours.types == peer.types
    assert ours.fetchall() == peer.fetchall()
    big = written(catalog, "select i, 'x' || i as t from range(250000) r(i)", "big.parquet", tmp_path)
    assert pq.read_metadata(big).num_rows == 250_000
    assert pq.read_metadata(big).num_row_groups == 3


@pytest.mark.parametrize("ending", ["json", "jsonl", "ndjson"])
def test_json_is_what_arrow_holds(catalog: Catalog, tmp_path: Path, ending: str) -> None:
    text = written(catalog, PLAIN, f"x.{ending}", tmp_path).read_text()
    rows = json.loads(text) if ending == "json" else [json.loads(line) for line in text.splitlines()]
    expected = [
        dict(zip(duckdb.default_connection().sql(PLAIN).columns, row, strict=True))
        for row in duckdb.default_connection().sql(PLAIN).fetchall()
    ]
    for row in expected:
        row |= {"day": str(row["day"]), "d": float(row["d"])}
    assert rows == expected
    for query, count in (("select 1 as a where false", 0), ("select 1 as a", 1)):
        text = written(catalog, query, f"y.{ending}", tmp_path).read_text()
        assert len(json.loads(text) if ending == "json" else text.splitlines()) == count


def strict(text: str) -> Any:
    """Return what JSON says, as the standard has it: no NaN, no infinity; decimals as their text."""

    def refuse(word: str) -> None:
        raise AssertionError(word)

    return json.loads(text, parse_constant=refuse)


def test_values_that_json_and_csv_have_no_word_for(catalog: Catalog, tmp_path: Path) -> None:
    text = written(catalog, STRANGE, "x.jsonl", tmp_path).read_text()
    (row,) = [strict(line) for line in text.splitlines()]
    deep: dict[str, Any] = {
        "l": [1.5, None, None],
        "s": {"a": 1, "b": [1.5]},
        "m": {"k": None},
        "blobs": [base64.b64encode(b"\xff").decode()],
    }
    deep |= {
        "deep": [{"t": "2020-01-01"}],
        "nested": [[1, 2], None],
        "unnamed": [1, "x"],
        "holes": {"a": None, "b": None},
    }
    deep |= {"inner": [None, {"v": None}]}
    flat: dict[str, Any] = {
        "nan": None,
        "inf": None,
        "blob": base64.b64encode(b"\0\xff").decode(),
        "ts": "2020-01-01T10:00:00.123",
    }
    flat |= {
        "tz": "2020-01-01T08:00:00Z",
        "dec": 1.1,
        "big": 2**100,
        "iv": "1 day",
        "nothing": None,
        "js": {"x": 1},
        "e": "b",
    }
    flat |= {
        "id": "00000000-0000-0000-0000-00000000000a",
        "t": "10:00:00",
        "a": 1,
        "a_1": 2,
        "quo\"te'd": 1,
        "bits": "101",
    }
    vector = row.pop("vector")
    assert [math.isclose(a, b, rel_tol=1e-7) for a, b in zip(vector, [0.1, -2], strict=True)] == [True, True]
    assert row == deep | flat
    (names, values) = list(csv.reader(io.StringIO(written(catalog, STRANGE, "x.csv", tmp_path).read_text())))
    found = dict(zip(names, values, strict=True))
    assert {name: strict(found[name]) for name in deep} == deep
    assert strict(found["vector"]) == vector
    assert (found["nan"], found["inf"], found["nothing"]) == ("nan", "-inf", "")
    assert [found[n] for n in ("blob", "ts", "tz", "dec", "iv", "e", "id")] == [
        *(flat[n] for n in ("blob", "ts", "tz")),
        "1.10",
        "1 day",
        "b",
        flat["id"],
    ]
    assert int(found["big"]) == 2**100


def test_half_vectors_of_a_table(catalog: Catalog, tmp_path: Path) -> None:
    """float16 lists, as `embeddings` has them, read through DuckDB."""
    schema = pa.schema([SAMPLE_ID, vector("clip", 4, "of the image")])
    dataset = catalog.dataset("birds")
    halves = np.arange(8, dtype=np.float16) / 3
    with (writer := PartWriter(dataset.storage, "embeddings", f"{0:032x}", schema, 0)):
        vectors = pa.FixedSizeListArray.from_arrays(pa.array(halves), 4)
        writer.write(pa.table([pa.array([0, 1]), vectors], schema=schema))
    dataset.publish({"embeddings": TableState(schema, [writer.part()])}, VersionFacts("x", "y", "z"))
    text = written(catalog, "select * from birds.embeddings order by 1", "x.csv", tmp_path).read_text()
    rows = list(csv.reader(io.StringIO(text)))[1:]
    found = np.array([json.loads(row[1]) for row in rows], np.float16)
    assert found.tolist() == halves.reshape(2, 4).tolist()


def test_a_file_is_whole_or_not_there(catalog: Catalog, tmp_path: Path) -> None:
    path = written(catalog, "select 1 as a", "x.csv", tmp_path)
    before = path.read_bytes()
    path.chmod(0o640)
    for query in ("select nothing", "select case when i = 90000 then error('no') else i end from range(100000) r(i)"):
        with pytest.raises(QueryError):
            written(catalog, query, "x.csv", tmp_path)
        assert path.read_bytes() == before
    assert sorted(p.name for p in tmp_path.iterdir()) == ["catalog", "x.csv"]
    link = tmp_path / "link.csv"
    link.symlink_to(path)
    written(catalog, "select 2 as a", "link.csv", tmp_path)
    assert link.is_symlink()
    assert path.read_text().splitlines() == ['"a"', "2"]
    assert path.stat().st_mode & 0o777 == 0o640


def test_what_cannot_be_written_is_a_mistake(catalog: Catalog, tmp_path: Path) -> None:
    for output, words in [
        (tmp_path / "none" / "x.csv", "No such file"),
        (tmp_path, "it is a folder"),
        (tmp_path / ("x" * 300 + ".csv"), "too long"),
        (Path("a\0.csv"), "null byte"),
    ]:
        with pytest.raises(UserError, match=words), target(str(output)) as file:
            file.write(b"x")


def test_a_pipe_is_written_as_it_is(catalog: Catalog, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.csv")
    read: list[str] = []
    reader = threading.Thread(target=lambda: read.append((tmp_path / "pipe.csv").read_text()))
    reader.start()
    written(catalog, "select 7 as a", "pipe.csv", tmp_path)
    reader.join(60)
    assert read[0].splitlines() == ['"a"', "7"]


def test_the_format_is_chosen_or_of_the_ending() -> None:
    assert format_of(None, None) is Format.TABLE
    assert format_of("a.CSV", None) is Format.CSV
    assert format_of("a.csv", Format.JSON) is Format.JSON
    assert format_of("/dev/stdout", Format.CSV) is Format.CSV
    with pytest.raises(UserError, match=r"'\.xls'.*known are \.csv, \.json, .*--format") as caught:
        format_of("a.xls", None)
    assert all(ending in str(caught.value) for ending in ENDINGS)
    with pytest.raises(UserError) as caught:
        format_of("a.xlsx", None)
    assert str(caught.value).count(".parquet") == 1
    with pytest.raises(UserError, match="no ending"):
        format_of("a", None)


def test_a_table_in_a_file_has_all_rows(catalog: Catalog, tmp_path: Path) -> None:
    text = written(catalog, "select i from range(12345) r(i)", "x.txt", tmp_path).read_text()
    assert len(text.splitlines()) == 12345 + 3
    assert text.endswith("(12,345 rows)\n")


def test_a_million_rows_take_little_memory(catalog: Catalog, tmp_path: Path) -> None:
    """The rows are 400 MB as Arrow; DuckDB may have 100, and the process no more than half a GB beside."""
    limits = Limits(120, 100)
    query = "select i, repeat('x', 400) as t from range(1000000) r(i)"
    for name in ("x.csv", "x.parquet"):
        assert written(catalog, query, name, tmp_path, limits).stat().st_size
