"""Errors: their messages are one line, and only a damaged file is reported as damaged."""

import errno
import pickle
from pathlib import Path

import duckdb
import pyarrow.parquet as pq
import pytest

from catalog.errors import (
    DamagedError,
    EspalierError,
    HeldError,
    PartError,
    StoredImageError,
    UserError,
    damage_in_sql,
    first_line,
    nearest,
    reading,
)


def test_a_close_name_is_suggested() -> None:
    assert nearest("imgaes", ["images", "source"]) == "; did you mean 'images'?"


def test_without_a_close_name_the_known_names_are_listed() -> None:
    assert nearest("zzz", ["source", "images"]) == "; there is: images, source"
    assert nearest("zzz", []) == "; there is none"
    assert nearest("zzz", [f"table_{n:03}" for n in range(45)]).endswith("table_039 and 5 more")


def test_the_first_line_of_an_error_is_cut_and_never_empty() -> None:
    assert first_line(ValueError("\n\n  first  \nsecond")) == "first"
    assert first_line(ValueError("x" * 500)) == "x" * 300
    assert first_line(ValueError()) == "ValueError"


def test_a_missing_file_is_damage_that_names_the_command_to_repair_it(tmp_path: Path) -> None:
    place = str(tmp_path / "birds")
    message = "it does not exist; `espalier verify birds --repair`"
    with pytest.raises(DamagedError, match=message), reading(place, "a/b"):
        Path(place, "a/b").read_bytes()


def test_a_file_that_is_not_parquet_is_damage(tmp_path: Path) -> None:
    (tmp_path / "x.parquet").write_bytes(b"not a Parquet file")
    with pytest.raises(DamagedError, match=r"x\.parquet is damaged"), reading(str(tmp_path), "x.parquet"):
        pq.read_table(tmp_path / "x.parquet")


@pytest.mark.parametrize(
    "error", [PermissionError(errno.EACCES, "denied"), OSError(errno.EMFILE, "too many"), KeyError("x"), UserError("x")]
)
def test_an_error_that_is_not_damage_is_raised_unchanged(error: Exception) -> None:
    with pytest.raises(type(error)) as raised, reading("place", "path"):
        raise error
    assert raised.value is error


def test_a_damaged_parquet_file_is_found_in_the_error_of_duckdb(tmp_path: Path) -> None:
    path = tmp_path / "birds" / "source" / "x.parquet"
    path.parent.mkdir(parents=True)
    path.write_bytes(b"not a Parquet file")
    with pytest.raises(duckdb.Error) as raised:
        duckdb.connect().execute(f"from read_parquet('{path}')").fetchall()
    damage = damage_in_sql(raised.value)
    assert damage is not None
    assert f"{tmp_path}/birds/source/x.parquet is damaged" in str(damage)


def test_an_error_in_a_statement_is_not_damage() -> None:
    with pytest.raises(duckdb.Error) as raised:
        duckdb.sql("select nothing_of_this_name")
    assert damage_in_sql(raised.value) is None


def test_errors_keep_their_facts_when_a_worker_sends_them() -> None:
    part = pickle.loads(pickle.dumps(PartError("it failed", "the traceback")))
    held = pickle.loads(pickle.dumps(HeldError("it is held", {"rows": 3})))
    image = pickle.loads(pickle.dumps(StoredImageError(7, "truncated")))
    assert (str(part), part.traceback) == ("it failed", "the traceback")
    assert (str(held), held.facts) == ("it is held", {"rows": 3})
    assert (image.sample_id, image.reason) == (7, "truncated")


def test_a_user_error_is_also_a_value_error() -> None:
    assert issubclass(UserError, ValueError)
    assert issubclass(UserError, EspalierError)
    assert not issubclass(DamagedError, UserError)
