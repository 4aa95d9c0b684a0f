"""What runs leave on this machine: no word of an erased row stays in Prefect's database, its log, or Ray's logs."""

import sqlite3
import tempfile
from contextlib import closing
from pathlib import Path

import pytest

from catalog.errors import BuildError
from catalog.takedown.scrub import Words
from flows.govern.traces import overwrite

WORDS = Words(frozenset(["http://host.example/a.jpg"]), frozenset(), frozenset(['Jane Doe\'s "house", Köln']))

OTHER = "other http://host.example/b.jpg"


@pytest.fixture
def state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("ESPALIER_STATE", str(tmp_path))
    monkeypatch.setenv("PREFECT_HOME", str(tmp_path / "prefect"))
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "tmp"))
    (tmp_path / "prefect").mkdir()
    return tmp_path


def everything(folder: Path) -> bytes:
    return b"".join(path.read_bytes() for path in folder.rglob("*") if path.is_file())


def fill(path: Path, rows: int) -> sqlite3.Connection:
    """Make a database in the mode of Prefect's, with an open writer that has not moved its log into it."""
    database = sqlite3.connect(path, isolation_level=None)
    database.execute("pragma journal_mode = wal")
    database.execute("create table flow_run (id integer, parameters json, name text, data blob)")
    for row in range(rows):
        text = '{"recipe": "where: url <> \'http://host.example/a.jpg\' -- Jane Doe\'s \\"house\\", K\\u00f6ln"}'
        database.execute(
            "insert into flow_run values (?, ?, ?, ?)", (row, text, "other http://host.example/b.jpg", b"x")
        )
    database.execute("delete from flow_run where id = 0")
    return database


def test_a_database_that_is_in_use(state: Path) -> None:
    path = state / "prefect" / "prefect.db"
    with closing(fill(path, 300)) as in_use:
        assert b"a.jpg" in everything(state)
        assert any(found.startswith(str(path)) for found in overwrite(WORDS))
        left = everything(state)
        assert not [word for word in (b"a.jpg", b"Jane", b"K\\u00f6ln") if word in left]
        assert in_use.execute("select count(*), min(name) from flow_run").fetchone() == (
            299, OTHER,
        )  # fmt: skip
        assert in_use.execute("pragma integrity_check").fetchone() == ("ok",)
    assert overwrite(WORDS) == []


def test_logs_keep_their_size(state: Path) -> None:
    log = state / "server.log"
    ray = state / "tmp" / "espalier-ray" / "session_1" / "logs" / "worker.err"
    ray.parent.mkdir(parents=True)
    for path in (log, ray):
        path.write_bytes(b'\xff one http://host.example/a.jpg two "Jane Doe\'s \\"house\\", K\xc3\xb6ln"\n' * 3)
    size = log.stat().st_size
    assert set(overwrite(WORDS)) == {str(log), str(ray)}
    for path in (log, ray):
        data = path.read_bytes()
        assert len(data) == size
        assert data.count(b"\xff one *") == 3
        assert b"Jane" not in data
        assert b"a.jpg" not in data


def test_words_across_two_pieces_are_found(state: Path) -> None:
    (state / "server.log").write_bytes(b"x" * 10 + b"http://host.example/a.jpg" + b"y" * 40)
    overwrite(WORDS, piece_bytes=16)
    assert (state / "server.log").read_bytes() == b"x" * 10 + b"*" * 25 + b"y" * 40


def test_a_locked_database_is_an_error(state: Path) -> None:
    with closing(fill(state / "prefect" / "prefect.db", 3)) as in_use:
        in_use.execute("begin immediate")
        with pytest.raises(BuildError, match=r"cannot erase words in .*locked; stop the process that uses it"):
            overwrite(WORDS, wait_s=0.1)


def test_nothing_to_look_for(state: Path) -> None:
    assert overwrite(Words(captions=frozenset(["fox"]))) == []
