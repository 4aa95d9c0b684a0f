import gzip
import json
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from catalog.errors import RecipeError, UserError
from tasks.sources import Jsonl
from tasks.sources import jsonl as module


def dump(*objects: Any) -> str:
    return "".join(json.dumps(o) + "\n" for o in objects)


@pytest.mark.parametrize(("name", "pack"), [("a.jsonl", bytes), ("a.ndjson.gz", gzip.compress), ("a.json", bytes)])
def test_plain_and_compressed(lines: Any, rows_of: Any, name: str, pack: Any) -> None:
    content = dump({"url": "u1", "text": "é\n", "width": 3, "ok": True}, {"url": "u2", "similarity": 0.5, "text": None})
    assert rows_of(Jsonl(path=lines(name, pack(content.encode())))).to_pylist() == [
        {"url": "u1", "caption": "é\n", "label": None, "width": 3, "ok": True, "similarity": None},
        {"url": "u2", "caption": None, "label": None, "width": None, "ok": None, "similarity": 0.5},
    ]


def test_broken_lines_are_kept_as_nulls(lines: Any, rows_of: Any) -> None:
    content = b'{"url": "u1", "n": 1}\n{broken\n\n[1, 2]\n7\n"url"\n{"url": "u2"\n\r\n{"url": "u3", "n": 2}\r\n{"n": 3}'
    rows = rows_of(Jsonl(path=lines("a.jsonl", content)))
    assert rows.column("url").to_pylist() == ["u1", None, None, None, None, None, "u3", None]
    assert rows.column("n").to_pylist() == [1, None, None, None, None, None, 2, 3]


def test_a_line_without_end(lines: Any, rows_of: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_OBJECT_BYTES", 64)
    content = dump({"url": "u1"}, {"url": "x" * 1000}, {"url": "u3"}) + '{"url": "' + "y" * 500
    assert rows_of(Jsonl(path=lines("a.jsonl", content))).column("url").to_pylist() == ["u1", None, "u3", None]


def test_values_of_another_kind(lines: Any, rows_of: Any) -> None:
    first = dump({"url": "u", "n": 1, "x": 1.5, "mixed": 1, "deep": {"a": [1, "é"]}, "big": 2**70, "flag": False})
    odd = dump({"url": 5, "n": 1.7, "x": 2, "mixed": "b", "deep": [1], "big": 1, "flag": "true"}, {"n": "3", "x": "4"})
    rows = rows_of(Jsonl(path=(lines("a.jsonl", first), lines("b.jsonl", odd))))
    assert rows.column("url").to_pylist() == ["u", "5", None]
    assert rows.column("n").to_pylist() == [1, None, None]  # never rounded, never guessed
    assert rows.column("x").to_pylist() == [1.5, 2.0, None]
    assert rows.column("flag").to_pylist() == [False, None, None]
    assert [json.loads(t) if t else t for t in rows.column("deep").to_pylist()] == [{"a": [1, "é"]}, [1], None]
    assert rows.column("big").to_pylist() == [str(2**70), "1", None]


def test_bad_text(lines: Any, rows_of: Any) -> None:
    content = b'\xef\xbb\xbf{"url":"u1","caption":"caf\xe9"}\n{"url":"u2","caption":"a\\u0000b"}\n' + (
        b'{"url":"u3","caption":"\\ud83d\\ude00"}\n{"url":"u4","caption":"\\ud83d"}\n'
    )
    rows = rows_of(Jsonl(path=lines("a.jsonl", content)))
    assert rows.column("caption").to_pylist() == ["caf�", "ab", "\U0001f600", None]


def test_odd_keys(lines: Any, rows_of: Any) -> None:
    odd = {
        "url": "u",
        "a.b": "1x",
        "a/b~c": "2x",
        "it's": "3x",
        'say "x"': "4x",
        "é": "5x",
        "URL": "other",
        "$": "6x",
        "0": "7x",
    }
    row = rows_of(Jsonl(path=lines("a.jsonl", dump(odd)))).to_pylist()[0]
    renamed = {("source_URL" if k == "URL" else k): v for k, v in odd.items()}
    assert row == renamed | {"caption": None, "label": None}


def test_missing_url_and_nothing(lines: Any, plan: Any) -> None:
    with pytest.raises(RecipeError, match=r"no column that is known to hold a URL.*link"):
        plan(Jsonl(path=lines("a.jsonl", dump({"link": "u"}))))
    for content in ("", "\n\n", "broken\n"):
        with pytest.raises(UserError, match="the source is empty"):
            plan(Jsonl(path=lines("a.jsonl", content)))
    with pytest.raises(UserError, match=r"a\.jsonl\.gz is damaged"):
        plan(Jsonl(path=lines("a.jsonl.gz", gzip.compress(dump({"url": "u"}).encode())[:-12])))


def test_chunks_and_growth(lines: Any, plan: Any, rows_of: Any, tmp_path: Any) -> None:
    lines("d/b.jsonl", dump(*({"url": f"u{i}"} for i in range(25))))
    source = Jsonl(path=str(tmp_path / "d"), rows_per_part=10)
    assert rows_of(source).column("url").to_pylist() == [f"u{i}" for i in range(25)]
    before = plan(source)
    lines("d/a.jsonl", dump({"url": "new"}))
    assert plan(source)[1:] == before


_VALUES = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(2**63), 2**63 - 1),
    st.floats(allow_nan=False),
    st.text(st.characters(exclude_categories=["Cs"])),
)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(values=st.lists(_VALUES, min_size=1, max_size=6))
def test_values_come_back(lines: Any, rows_of: Any, values: list[Any]) -> None:
    rows = rows_of(Jsonl(path=lines("a.jsonl", dump(*({"url": "u", "v": v} for v in values)))))
    found = rows.column("v").to_pylist()
    kinds = {type(v) for v in values if v is not None}
    for value, got in zip(values, found, strict=True):
        if value is None:
            assert got is None
        elif kinds == {type(value)} or kinds == {int, float}:
            clean = value.replace("\0", "") if isinstance(value, str) else value
            assert got == clean
        else:
            assert isinstance(got, str)
