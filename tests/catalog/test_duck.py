"""DuckDB as we open it: it reaches nothing, and nothing that it runs takes longer or more than it may."""

import subprocess
import sys
from pathlib import Path

import duckdb
import pytest

from catalog.database import query, streamed
from catalog.dataset import Catalog
from catalog.duck import Limits, half_of_memory_mb, limited, lock, open_database
from catalog.errors import QueryError

OUTSIDE = [
    ("select * from read_text('/etc/hostname')", "file system operations are disabled"),
    ("copy (select 1) to '/tmp/evil.csv'", "file system operations are disabled"),
    ("attach '/tmp/evil.db'", "file system operations are disabled"),
    ("install httpfs", "file system operations are disabled"),
    ("load httpfs", "Loading external extensions is disabled"),
    ("set lock_configuration = false", "the configuration has been locked"),
    ("set enable_external_access = true", "the configuration has been locked"),
    ("set memory_limit = '1TB'", "the configuration has been locked"),
    ("from secret_of_the_test", "Table with name secret_of_the_test does not exist"),
]
"""Statements that would reach outside, and why each is refused."""


@pytest.mark.parametrize(("statement", "why"), OUTSIDE)
def test_a_database_reaches_nothing(statement: str, why: str) -> None:
    secret_of_the_test = duckdb.sql("select 1")
    with open_database() as connection, pytest.raises(duckdb.Error, match=why):
        connection.execute(statement).fetchall()
    assert secret_of_the_test is not None


def test_what_is_locked_reads_what_it_was_given_and_no_more(tmp_path: Path) -> None:
    for name in ("a/x.csv", "b/x.csv"):
        (tmp_path / name).parent.mkdir()
        (tmp_path / name).write_text("n\n1\n")
    with open_database(outside=True) as connection:
        lock(connection, folders=[f"{tmp_path}/a/"])
        assert connection.execute(f"select n from '{tmp_path}/a/x.csv'").fetchall() == [(1,)]
        with pytest.raises(duckdb.PermissionException, match="file system operations are disabled"):
            connection.execute(f"select n from '{tmp_path}/b/x.csv'").fetchall()
    with open_database(outside=True) as connection:
        lock(connection, files=[f"{tmp_path}/b/x.csv"])
        assert connection.execute(f"select n from '{tmp_path}/b/x.csv'").fetchall() == [(1,)]
        with pytest.raises(duckdb.PermissionException, match="file system operations are disabled"):
            connection.execute(f"select n from '{tmp_path}/a/x.csv'").fetchall()


@pytest.mark.parametrize(("statement", "why"), OUTSIDE[4:8])
def test_every_connection_is_opened_by_one_factory(statement: str, why: str) -> None:
    """Nothing else in the product calls duckdb.connect, so all that is true here is true of all of them."""
    root = Path(__file__).parents[2]
    files = [path for folder in ("catalog", "tasks", "flows") for path in (root / folder).rglob("*.py")]
    callers = [path.name for path in files if "duckdb.connect(" in path.read_text()]
    assert callers == ["duck.py"]
    with open_database(threads=1, utc=True, max_depth=50) as connection, pytest.raises(duckdb.Error, match=why):
        connection.execute(statement).fetchall()


LONG = "select count(*) from range(1000000000000) t(x) where (x % 1000003) * (x % 1000033) % 7 = 3"


def test_a_query_ends_with_its_time(tmp_path: Path) -> None:
    hint = "; --timeout raises it"
    message = r"took longer than 0\.5 s and was stopped; --timeout raises it"
    limits = Limits(0.5, None, hint)
    with pytest.raises(QueryError, match=message), streamed(Catalog(tmp_path), LONG, None, limits) as rows:
        list(rows.batches)
    with open_database() as connection, pytest.raises(QueryError, match=r"took longer than 0\.5 s"):
        query(connection, LONG, 0.5)
    with streamed(Catalog(tmp_path), "select 1 as a", None, Limits(60, 500)) as rows:
        assert [batch.to_pylist() for batch in rows.batches] == [[{"a": 1}]]


def test_a_query_ends_with_its_memory(tmp_path: Path) -> None:
    large = "select len(list(x)) from range(1000000000) t(x)"
    limits = Limits(100, 100, "; raise it")
    message = r"needs more memory than its 100 MB; raise it"
    with pytest.raises(QueryError, match=message), streamed(Catalog(tmp_path), large, None, limits) as rows:
        list(rows.batches)


def test_what_is_too_large_for_memory_goes_to_disk(tmp_path: Path) -> None:
    with open_database(threads=1, memory_mb=60, scratch=tmp_path / "spill") as connection:
        text = "select sum(n) from (select x % 1500000 as g, count(*) as n from range(3000000) t(x) group by g)"
        with limited(connection, Limits(200, 60)):
            assert connection.execute(text).fetchall() == [(3_000_000,)]


STUCK = """
import os, sys
from catalog.duck import Limits, limited, on_stuck, open_database
import catalog.duck
catalog.duck.GRACE_S = 0.3
def give_up(message):
    print(message, flush=True)
    os._exit(7)
on_stuck(give_up)
with open_database() as connection, limited(connection, Limits({limits})):
    connection.execute({statement!r}).fetchall()
print("done")
os._exit(0)
"""


@pytest.mark.parametrize(
    ("statement", "limits", "message"),
    [
        ("select levenshtein(repeat('a', 900000), repeat('b', 900000))", "0.5", "took longer than 0.5 s"),
        ("select list_sum(range(400000000))", "100, 64", "took more than 64 MB of memory"),
    ],
)
def test_a_function_that_cannot_be_interrupted_ends_the_process(statement: str, limits: str, message: str) -> None:
    code = STUCK.format(limits=limits, statement=statement)
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300, check=False)
    assert found.returncode == 7, found.stderr
    assert message in found.stdout


def test_half_of_memory() -> None:
    assert 256 <= half_of_memory_mb() < 1 << 24
