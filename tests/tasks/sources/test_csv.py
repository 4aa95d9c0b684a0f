import bz2
import csv
import gzip
import io
from typing import Any, ClassVar

import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from catalog.errors import RecipeError, UserError
from tasks.sources import Csv, _columns


def texts(rows: Any) -> list[tuple[Any, ...]]:
    return list(zip(*(rows.column(n).to_pylist() for n in rows.column_names), strict=True))


@pytest.mark.parametrize(
    ("name", "pack"),
    [("a.csv", bytes), ("a.csv.gz", gzip.compress), ("a.CSV.GZ", gzip.compress), ("a.csv.bz2", bz2.compress)],
)
def test_plain_and_compressed(lines: Any, rows_of: Any, name: str, pack: Any) -> None:
    content = 'URL,TEXT,width\nu1,"a, ""quoted""\ncaption",3\nu2,b,\n'
    rows = rows_of(Csv(path=lines(name, pack(content.encode()))))
    assert rows.to_pylist() == [
        {"url": "u1", "caption": 'a, "quoted"\ncaption', "label": None, "width": 3},
        {"url": "u2", "caption": "b", "label": None, "width": None},
    ]


def test_tsv_without_header_or_quoting(lines: Any, rows_of: Any) -> None:
    path = lines("cc3m.tsv", 'a 5" screen\tu1\n"not closed\tu2\nc\tu3\n')  # Conceptual Captions: text, then url
    source = Csv(path=path, names=("caption", "url"), quoting=False)
    rows = rows_of(source)
    assert rows.column("caption").to_pylist() == ['a 5" screen', '"not closed', "c"]
    assert rows.column("url").to_pylist() == ["u1", "u2", "u3"]


def test_quotes_within_a_field_are_text(lines: Any, rows_of: Any) -> None:
    rows = rows_of(Csv(path=lines("a.csv", 'url,caption\nu1,a 5" screen\nu2,"b"\n')))
    assert rows.column("caption").to_pylist() == ['a 5" screen', "b"]


def test_broken_records_are_kept_as_nulls(lines: Any, rows_of: Any) -> None:
    rows = rows_of(Csv(path=lines("a.csv", "url,caption\nu1,a\nu2\n\nu3,b,c,d\nu4,d\n")))
    assert texts(rows.select(["url", "caption"])) == [("u1", "a"), (None, None), (None, None), ("u4", "d")]
    assert texts(rows.select(["row_fault", "row_detail"])) == [
        (None, None),
        ("bad_row", "1 fields, expected 2: u2"),
        ("bad_row", "4 fields, expected 2: u3,b,c,d"),
        (None, None),
    ]


@pytest.mark.parametrize("limit", [100, 16 << 20])
@pytest.mark.parametrize("ending", ["", "\n"])
@pytest.mark.parametrize(("name", "between"), [("a.csv", ","), ("a.tsv", "\t")])
def test_an_unclosed_quote_affects_only_its_line(
    lines: Any, rows_of: Any, limit: int, ending: str, name: str, between: str
) -> None:
    class Bounded(Csv):
        max_field_chars: ClassVar[int] = limit

    records = [["url", "caption"], ["u1", "a"], ["u2", '"open'], *([f"u{i}", "fine"] for i in range(3, 100))]
    rows = rows_of(Bounded(path=lines(name, "\n".join(between.join(r) for r in records) + ending)))
    assert rows.column("url").to_pylist() == ["u1", None, *(f"u{i}" for i in range(3, 100))]
    assert rows.column("row_fault").to_pylist() == [None, "bad_row", *[None] * 97]
    assert rows.column("row_detail")[1].as_py() == f'a quote that never closes: u2{between}"open'


def test_a_field_above_the_limit_counts_as_an_unclosed_quote(lines: Any, rows_of: Any) -> None:
    class Bounded(Csv):
        max_field_chars: ClassVar[int] = 100

    content = "\n".join(["url,caption", f'u1,"{"x" * 100}"', f'u2,"{"x" * 101}"', "u3,fine"])
    rows = rows_of(Bounded(path=lines("a.csv", content)))
    assert rows.column("url").to_pylist() == ["u1", None, "u3"]
    assert rows.column("row_fault").to_pylist() == [None, "bad_row", None]


@pytest.mark.parametrize("ending", ["", "\n"])
def test_an_unclosed_quote_in_the_last_line_includes_no_other_line(lines: Any, rows_of: Any, ending: str) -> None:
    rows = rows_of(Csv(path=lines("a.csv", 'url,caption\nu1,"two\nlines"\nu2,"open' + ending)))
    assert rows.column("url").to_pylist() == ["u1", "u2"]
    assert [str(c).strip() for c in rows.column("caption").to_pylist()] == ["two\nlines", "open"]


def test_bad_text(lines: Any, rows_of: Any) -> None:
    huge = b"x" * 3_000_000
    content = b"\xef\xbb\xbfurl,caption\nu1,caf\xe9\nu2,a\x00b\nu3," + huge + b"\nu4,\xf0\x9f\x98\x80\n"
    rows = rows_of(Csv(path=lines("a.csv", content)))
    assert rows.column("caption").to_pylist() == ["caf�", "ab", huge.decode(), "\U0001f600"]
    for codec in ("utf-16", "utf-16-le", "utf-16-be"):
        bom = "" if codec == "utf-16" else "\ufeff"
        content = f"{bom}url,caption\r\nu1,caf\u00e9 \U0001f600\r\n".encode(codec)
        rows = rows_of(Csv(path=lines(f"{codec}.csv", content)))
        assert rows.column("caption").to_pylist() == ["caf\u00e9 \U0001f600"]


def test_types_are_guessed_and_values_that_do_not_fit_are_null_and_counted(
    lines: Any, rows_of: Any, notes_of: Any
) -> None:
    class Sampling(Csv):
        sample_rows: ClassVar[int] = 2

    first = "url,n,x,flag,zip,word\n" + "u,12,1.5e3,true,00123,a\nu,-3,2,False,45,\n"
    a = lines("a.csv", first)
    later = "u,12.5,nan,maybe,7,9\nu,99999999999999999999,-.5,TRUE,,x\n"
    rows = rows_of(Sampling(path=lines("b.csv", first + later)))
    assert [str(rows.schema.field(n).type) for n in ("n", "x", "flag", "zip", "word")] == [
        "int64", "double", "bool", "string", "string",
    ]  # fmt: skip
    assert rows.column("n").to_pylist() == [12, -3, None, None]
    assert rows.column("x").to_pylist()[:2] == [1500.0, 2.0]
    assert rows.column("x").to_pylist()[3] == -0.5
    assert rows.column("flag").to_pylist() == [True, False, None, True]
    assert rows.column("zip").to_pylist() == ["00123", "45", "7", None]
    assert [note.partition(" (")[0] for note in notes_of(Sampling(path=lines("b.csv", first + later)))] == [
        "values of column 'n' that are not int64 and became null: 2",
        "values of column 'flag' that are not bool and became null: 1",
    ]
    chosen = rows_of(Csv(path=a, types={"n": "text", "zip": "integer"}))
    assert chosen.column("n").to_pylist() == ["12", "-3"]
    assert chosen.column("zip").to_pylist() == [None, 45]
    with pytest.raises(UserError, match="has no column 'm'"):
        rows_of(Csv(path=a, types={"m": "text"}))


def test_types_widen_from_file_to_file(lines: Any, rows_of: Any, notes_of: Any) -> None:
    a = lines("a.csv", "url,n,k,late,flag\nu,12,1,,true\n")
    b = lines("b.csv", " URL , N,K,other,flag\nv,12.5,x,1,7\n")
    source = Csv(path=(a, b))
    rows = rows_of(source)
    assert rows.to_pylist() == [
        {"url": "u", "caption": None, "label": None, "n": 12.0, "k": "1", "late": None, "flag": "true", "other": None},
        {"url": "v", "caption": None, "label": None, "n": 12.5, "k": "x", "late": None, "flag": "7", "other": 1},
    ]
    assert notes_of(source) == [
        f"types of column 'n' in different files, read as double: 2 (e.g. int64 ({a}), double ({b}))",
        f"types of column 'k' in different files, read as string: 2 (e.g. int64 ({a}), string ({b}))",
        f"types of column 'flag' in different files, read as string: 2 (e.g. bool ({a}), int64 ({b}))",
        f"files without column 'late', which is null in their rows: 1 (e.g. {b})",
        f"files without column 'other', which is null in their rows: 1 (e.g. {a})",
    ]


def test_the_codec_is_recognised_by_the_first_bytes(lines: Any, rows_of: Any, plan: Any) -> None:
    content = b"url,caption\nu1,a\n"
    for name, data in (
        ("a.csv", gzip.compress(content)),
        ("b.csv", bz2.compress(content)),
        ("c.CSV.gz", bz2.compress(content)),
    ):
        assert rows_of(Csv(path=lines(name, data))).column("url").to_pylist() == ["u1"]
    for name, data, found in (
        ("p.csv", b"PAR1" + bytes(99), "a Parquet file"),
        ("z.csv", b"PK\3\4" + bytes(99), "a zip file"),
        ("j.csv.gz", gzip.compress(b"\xff\xd8\xff" + bytes(99)), "a JPEG picture"),
    ):
        with pytest.raises(UserError, match=f"is {found}; expected text"):
            plan(Csv(path=lines(name, data)))


@pytest.mark.parametrize("column", ["caption", "text", "TITLE", " Alt_Text "])
def test_captions_that_look_like_numbers_are_text(lines: Any, rows_of: Any, column: str) -> None:
    for values in (["7", "2012"], ["true", "false"], ["1.50", "nan"], ["007", "8"]):
        rows = rows_of(Csv(path=lines("a.csv", f"url,{column}\n" + "".join(f"u,{v}\n" for v in values))))
        assert rows.column("caption").to_pylist() == values


def test_hive_partitions_are_columns(lines: Any, rows_of: Any, tmp_path: Any) -> None:
    lines("d/year=2024/month=01/a.csv", "url,n\nu1,1\n")
    lines("d/year=2025/month=__HIVE_DEFAULT_PARTITION__/a.csv", "url,n\nu2,2\n")
    lines("d/year=2026/n=7/a%3D.csv", "url,n\nu3,3\n")
    rows = rows_of(Csv(path=str(tmp_path / "d"))).to_pylist()
    assert [(r["url"], r["year"], r["month"], r["n"]) for r in rows] == [
        ("u1", 2024, "01", 1), ("u2", 2025, None, 2), ("u3", 2026, None, 3),
    ]  # fmt: skip
    rows = rows_of(Csv(path=f"{tmp_path}/d/year=*/**/a.csv")).to_pylist()
    assert [(r["url"], r["year"]) for r in rows] == [("u1", 2024), ("u2", 2025)]


def test_chunks_in_any_order(lines: Any, plan: Any, rows_of: Any) -> None:
    content = "url,caption\n" + "".join(f'u{i},"line\n{i}"\n' for i in range(103))
    source = Csv(path=lines("a.csv.gz", gzip.compress(content.encode())), rows_per_part=10)
    assert rows_of(source).column("url").to_pylist() == [f"u{i}" for i in range(103)]
    chunks = plan(source)
    assert [c.rows for c in chunks] == [10] * 10 + [3]
    step = source.open("cpu", {})
    for chunk in (chunks[7], chunks[2], chunks[10], chunks[3]):
        found = [u for t in step(iter([chunk.table()])) for u in t.column("url").to_pylist()]
        assert found == [f"u{i}" for i in range(chunk.start, chunk.start + chunk.rows)]


def test_a_new_file_adds_only_its_own_chunks(lines: Any, plan: Any, tmp_path: Any) -> None:
    lines("d/b.csv", "url,w\nu,1\n")
    source = Csv(path=str(tmp_path / "d"))
    before = plan(source)
    lines("d/a.csv", "url,w\nv,2\nw,3\n")
    assert plan(source)[1:] == before


def test_empty_and_damaged_files(lines: Any, plan: Any) -> None:
    with pytest.raises(UserError, match="the source is empty"):
        plan(Csv(path=lines("a.csv", "")))
    with pytest.raises(UserError, match="the source is empty"):
        plan(Csv(path=lines("a.csv", "url,caption\n")))
    with pytest.raises(UserError, match="two columns 'url'"):
        plan(Csv(path=lines("a.csv", "url,url\na,b\n")))
    with pytest.raises(RecipeError, match=r"no column 'UR' .*did you mean 'URL'"):
        plan(Csv(path=lines("a.csv", "URL,x\na,b\n"), url="UR"))
    packed = gzip.compress(b"url,caption\n" + bytes(range(48, 58)) * 100_000)
    with pytest.raises(UserError, match=r"b\.csv\.gz is damaged"):
        plan(Csv(path=lines("b.csv.gz", packed[:-20])))
    with pytest.raises(UserError, match=r"b\.csv\.gz is damaged"):
        plan(Csv(path=lines("b.csv.gz", b"url,caption\n")))


_TEXT = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=12)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(table=st.lists(st.tuples(_TEXT.map(lambda t: "u" + t), _TEXT), min_size=1, max_size=8))
def test_written_csv_round_trips(lines: Any, rows_of: Any, table: list[tuple[str, str]]) -> None:
    out = io.StringIO(newline="")
    csv.writer(out).writerows([("url", "caption"), *table])
    rows = rows_of(Csv(path=lines("a.csv", out.getvalue()), rows_per_part=3))
    assert texts(rows.select(["url", "caption"])) == [(u, c or None) for u, c in table]


@settings(max_examples=200, deadline=None)
@given(text=st.from_regex(r"-?[0-9.+]{1,20}([eE][+-]?[0-9]{1,4})?|-?[iInNaAfF]{3}|[tTfF][a-zA-Z]{3,4}", fullmatch=True))
def test_a_text_that_looks_like_a_value_parses(text: str) -> None:
    column = pa.chunked_array([[text, None, "word"]])
    for kind, type_ in _columns.TYPES.items():
        found = _columns.cast(column, type_)[0].to_pylist()
        assert found[1] is None
        if found[0] is not None and kind in {"integer", "number"}:
            value = int(text) if kind == "integer" else float(text)
            assert found[0] == value or value != value
