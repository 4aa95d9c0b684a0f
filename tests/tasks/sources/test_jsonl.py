import gzip
import json
from typing import Any, ClassVar

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from catalog.errors import RecipeError, UserError
from tasks.sources import Jsonl
from tasks.sources import _json_forms as forms
from tasks.sources._json_forms import Limits


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
    assert rows.column("row_fault").to_pylist() == [None, *["bad_row"] * 5, None, None]
    assert rows.column("row_detail").to_pylist()[1:6] == ["{broken", "[1, 2]", "7", '"url"', '{"url": "u2"']


def test_a_line_without_end(lines: Any, rows_of: Any) -> None:
    class Bounded(Jsonl):
        limits: ClassVar[Limits] = Limits(object_bytes=64)

    content = dump({"url": "u1"}, {"url": "x" * 1000}, {"url": "u3"}) + '{"url": "' + "y" * 500
    assert rows_of(Bounded(path=lines("a.jsonl", content))).column("url").to_pylist() == ["u1", None, "u3", None]


def test_values_of_another_kind(lines: Any, rows_of: Any) -> None:
    """Types widen between files: nothing is rounded, and nothing is lost."""
    first = dump({"url": "u", "n": 1, "x": 1.5, "mixed": 1, "deep": {"a": [1, "é"]}, "big": 2**70, "flag": False})
    odd = dump({"url": 5, "n": 1.7, "x": 2, "mixed": "b", "deep": [1], "big": 1, "flag": "true"}, {"n": "3", "x": "4"})
    rows = rows_of(Jsonl(path=(lines("a.jsonl", first), lines("b.jsonl", odd))))
    assert rows.column("url").to_pylist() == ["u", "5", None]
    assert rows.column("n").to_pylist() == ["1", "1.7", "3"]
    assert rows.column("x").to_pylist() == ["1.5", "2", "4"]
    assert rows.column("flag").to_pylist() == ["false", "true", None]
    assert [json.loads(t) if t else t for t in rows.column("deep").to_pylist()] == [{"a": [1, "é"]}, [1], None]
    assert rows.column("big").to_pylist() == [str(2**70), "1", None]


def test_values_of_types_that_the_first_objects_lack(lines: Any, rows_of: Any, notes_of: Any) -> None:
    class Sampling(Jsonl):
        sample_objects: ClassVar[int] = 1

    first = {"url": "u", "n": 1, "x": 1.5, "flag": False}
    odd = [{"url": 5, "n": 1.7, "x": 2, "flag": "true"}, {"n": "3", "x": "4"}, {"url": "u", "n": None, "x": None}]
    source = Sampling(path=lines("a.jsonl", dump(first, *odd)))
    rows = rows_of(source)
    assert rows.column("url").to_pylist() == ["u", "5", None, "u"]
    assert rows.column("n").to_pylist() == [1, None, None, None]  # never rounded, never guessed
    assert rows.column("x").to_pylist() == [1.5, 2.0, None, None]
    assert rows.column("flag").to_pylist() == [False, None, None, None]
    assert [note.partition(" (")[0] for note in notes_of(source)] == [
        "values of column 'n' that are not int64 and became null: 2",
        "values of column 'x' that are not double and became null: 1",
        "values of column 'flag' that are not bool and became null: 1",
    ]


ROWS: list[dict[str, Any]] = [
    {"url": "u1", "caption": 'a, "b"', "n": 1},
    {"url": "u2", "caption": "é]}\n[{", "n": None},
    {"url": "u3", "x": {"y": [1]}},
]
LISTS = {"image_urls": ["u1", "u2", "u3"], "captions": ["a", "b", None]}
FORMS = {
    "array": json.dumps(ROWS),
    "array on many lines": json.dumps(ROWS, indent=2, ensure_ascii=False),
    "array with space": f" \n\t[\r\n {json.dumps(ROWS)[1:-1]} ] \n",
    "a value a line, with commas": "[\n" + ",\n".join(map(json.dumps, ROWS)) + "\n]\n",
    "values on many lines": "\n".join(json.dumps(row, indent=1) for row in ROWS) + "\n",
    "lines": dump(*ROWS),
    "lines without a last end": dump(*ROWS)[:-1],
}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("pack", [bytes, gzip.compress])
def test_the_forms_of_json(lines: Any, rows_of: Any, plan: Any, form: str, pack: Any) -> None:
    source = Jsonl(path=lines("a.json", pack(FORMS[form].encode())), rows_per_part=2)
    rows = rows_of(source).to_pylist()
    assert [(r["url"], r["caption"]) for r in rows] == [(r["url"], r.get("caption")) for r in ROWS]
    assert [r["n"] for r in rows] == [1, None, None]
    assert [json.loads(r["x"]) if r["x"] else None for r in rows] == [None, None, {"y": [1]}]
    assert [c.rows for c in plan(source)] == [2, 1]


@pytest.mark.parametrize("indent", [None, 1])
def test_one_object_of_lists(lines: Any, rows_of: Any, plan: Any, indent: int | None) -> None:
    rows = rows_of(Jsonl(path=lines("sbu.json", json.dumps(LISTS, indent=indent)))).to_pylist()
    assert [(r["url"], r["caption"]) for r in rows] == [("u1", "a"), ("u2", "b"), ("u3", None)]
    with pytest.raises(UserError, match=r"differ in length \(image_urls 3, captions 1\)"):
        plan(Jsonl(path=lines("b.json", json.dumps(LISTS | {"captions": ["a"]}, indent=indent))))
    assert rows_of(Jsonl(path=lines("one.json", json.dumps(ROWS[0], indent=indent)))).num_rows == 1


@pytest.mark.parametrize("sizes", [(64, 300, 1 << 20), (16 << 20, 512 << 20, 7)])
def test_long_objects_and_short_reads(lines: Any, rows_of: Any, sizes: tuple[int, int, int]) -> None:
    class Bounded(Jsonl):
        limits: ClassVar[Limits] = Limits(*sizes)

    for form in FORMS.values():
        rows = rows_of(Bounded(path=lines("a.json", form))).to_pylist()
        assert [r["url"] for r in rows] == ["u1", "u2", "u3"]
    many = {"image_urls": [f"u{i}" for i in range(20)]}
    assert rows_of(Bounded(path=lines("b.json", json.dumps(many)))).num_rows == 20


def test_malformed_arrays(lines: Any, plan: Any, rows_of: Any) -> None:
    for text in ('[{"url": "u"}, {"url"', '[{"url": "u"}, {"url": "v"}', '[{"url": "u"}, {broken}]'):
        with pytest.raises(UserError, match=r"a\.json: no JSON value from character"):
            plan(Jsonl(path=lines("a.json", text)))
    for text, found in (("7\n8\n", "'7'"), ("<html>\n<body>", "'<html>'"), ("[1, 2]\n[3]\n", r"'\[1, 2\]'")):
        with pytest.raises(UserError, match=f"has no JSON object in its first 2 rows; found {found}"):
            plan(Jsonl(path=lines("a.json", text)))
    with pytest.raises(UserError, match="the source is empty"):
        plan(Jsonl(path=lines("a.json", "[]")))
    rows = rows_of(Jsonl(path=lines("a.json", '[{"url": "u"}, 7, null, [1], {"url": "v"}]')))
    assert rows.column("url").to_pylist() == ["u", None, None, None, "v"]
    assert rows.column("row_fault").to_pylist() == [None, "bad_row", "bad_row", "bad_row", None]


def test_an_array_is_streamed(lines: Any) -> None:
    """A million rows take no more memory than a few."""
    import tracemalloc

    row = json.dumps({"url": "u" * 50, "caption": "c" * 50})
    path = lines("a.json", "[" + ",".join([row] * 100_000) + "]")
    from tasks.sources._files import open_text

    tracemalloc.start()
    with open_text(path) as file:
        assert sum(1 for _ in forms.objects(path, file)) == 100_000
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 12 << 20


def test_captions_that_are_lists(lines: Any, rows_of: Any) -> None:
    captions = [["a cat", " two cats"], ["a dog"], [], None, "plain", [None, " ", 7, True], [["x"]]]
    path = lines("a.jsonl", dump(*({"url": f"u{i}", "captions": c} for i, c in enumerate(captions))))
    rows = rows_of(Jsonl(path=path)).column("caption").to_pylist()
    assert rows == ["a cat", "a dog", None, None, "plain", "7", '["x"]']
    joined = rows_of(Jsonl(path=path, caption_from="join")).column("caption").to_pylist()
    assert joined == ["a cat  two cats", "a dog", None, None, "plain", "7 true", '["x"]']
    drawn = rows_of(Jsonl(path=path, caption_from="random", rows_per_part=2)).column("caption").to_pylist()
    assert drawn == rows_of(Jsonl(path=path, caption_from="random")).column("caption").to_pylist()
    choices: list[set[str | None]] = [
        {"a cat", " two cats"},
        {"a dog"},
        {None},
        {None},
        {"plain"},
        {"7", "true"},
        {'["x"]'},
    ]
    assert [caption in some for caption, some in zip(drawn, choices, strict=True)] == [True] * 7
    others = rows_of(Jsonl(path=lines("b.jsonl", dump({"url": "u", "caption": "c", "tags": ["a", "b"]}))))
    assert others.column("tags").to_pylist() == ['["a","b"]']  # what is no caption keeps its JSON text


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


def test_missing_url_and_empty_file(lines: Any, plan: Any) -> None:
    with pytest.raises(RecipeError, match=r"no column with a known name for the URL.*link"):
        plan(Jsonl(path=lines("a.jsonl", dump({"link": "u"}))))
    for content in ("", "\n\n"):
        with pytest.raises(UserError, match="the source is empty"):
            plan(Jsonl(path=lines("a.jsonl", content)))
    with pytest.raises(UserError, match="has no JSON object in its first 1 rows; found 'broken'"):
        plan(Jsonl(path=lines("a.jsonl", "broken\n")))
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


def test_whole_numbers_that_float64_cannot_represent_are_never_rounded(lines: Any, rows_of: Any) -> None:
    """They are text if the types are inferred from them, else null, and counted."""
    first = rows_of(Jsonl(path=lines("a.jsonl", dump(*({"url": "u", "v": v} for v in (2**53 + 1, 0.5, 7))))))
    assert first.column("v").to_pylist() == ["9007199254740993", "0.5", "7"]
    whole = rows_of(Jsonl(path=lines("a.jsonl", dump(*({"url": "u", "v": v} for v in (2**53 + 1, 7))))))
    assert whole.column("v").to_pylist() == [2**53 + 1, 7]
    many = ({"url": "u", "v": v} for v in (*[0.5] * 1000, 2**53 + 1, 2**53))
    later = rows_of(Jsonl(path=lines("a.jsonl", dump(*many))))
    assert later.column("v").to_pylist()[-2:] == [None, float(2**53)]


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(values=st.lists(_VALUES, min_size=1, max_size=6))
def test_values_round_trip(lines: Any, rows_of: Any, values: list[Any]) -> None:
    rows = rows_of(Jsonl(path=lines("a.jsonl", dump(*({"url": "u", "v": v} for v in values)))))
    found = rows.column("v").to_pylist()
    kinds = {type(v) for v in values if v is not None}
    for value, got in zip(values, found, strict=True):
        if value is None:
            assert got is None
        elif kinds == {type(value)} or (kinds == {int, float} and all(float(v) == v for v in values if v is not None)):
            clean = value.replace("\0", "") if isinstance(value, str) else value
            assert got == clean
        else:
            assert isinstance(got, str)
