"""Commits of a Delta log: what is added and removed up to a commit, as far as the lines can be read."""

import json

import pytest

from catalog.commits import Log, actions_of


def commit(*actions: object) -> bytes:
    return "\n".join(json.dumps(action) for action in actions).encode()


def test_parts_are_those_that_were_added_and_not_removed() -> None:
    first = commit({"add": {"path": "a.parquet", "size": 1}}, {"add": {"path": "b.parquet", "size": 2}})
    second = commit({"remove": {"path": "a.parquet"}}, {"add": {"path": "c.parquet", "size": 3}})
    log = Log("source", {0: first, 1: second}, frozenset(), frozenset({2}))
    assert sorted(log.adds(0)) == ["source/a.parquet", "source/b.parquet"]
    assert {path: add["size"] for path, add in log.adds(1).items()} == {"source/b.parquet": 2, "source/c.parquet": 3}
    assert log.last == 2
    assert Log("source", {}, frozenset(), frozenset()).last == -1


@pytest.mark.parametrize(
    ("damaged", "why"),
    [
        (b"", "it is empty"),
        (b'{"add"', "Expecting ':' delimiter"),
        (b"[1]", "a line is not an object"),
        (b"\xff\xff", "can.t decode"),
    ],
)
def test_a_damaged_commit_is_skipped_or_an_error(damaged: bytes, why: str) -> None:
    assert actions_of(damaged) == []
    with pytest.raises(ValueError, match=why):
        actions_of(damaged, strict=True)


def test_sound_lines_beside_a_damaged_one_are_read() -> None:
    assert actions_of(commit({"add": {"path": "a"}}) + b'\n{"rem') == [{"add": {"path": "a"}}]
