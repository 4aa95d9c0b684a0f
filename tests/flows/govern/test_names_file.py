"""Files that name rows: what is known by its header counts, nothing is guessed, and a mistake is one line."""

import os
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from catalog.errors import UserError
from catalog.takedown.reach import Names
from flows.govern.names_file import read_names

DIGEST = "ab" * 32


@pytest.mark.parametrize(
    ("name", "text", "expected"),
    [
        ("urls.csv", "url\nhttp://a/b,c.jpg\n\n http://d \n", Names(frozenset(["http://a/b,c.jpg", "http://d"]))),
        ("named.csv", '\ufeffcaption,URL\n"x, y",http://a\nz,17\n', Names(frozenset(["http://a", "17"]))),
        ("ids.txt", "sample_id\n5\n6\n", Names(sample_ids=frozenset([5, 6]))),
        (
            "both.tsv",
            f"sha256\tsample_id\n{DIGEST.upper()}\t7\n",
            Names(frozenset(), frozenset([DIGEST]), frozenset([7])),
        ),
        ("quoted.csv", 'url\n"http://a/b,c"\n', Names(frozenset(["http://a/b,c"]))),
        ("crlf.csv", "url\r\nhttp://a\r\n", Names(frozenset(["http://a"]))),
    ],
)
def test_known_columns(tmp_path: Path, name: str, text: str, expected: Names) -> None:
    (tmp_path / name).write_text(text, newline="")
    assert read_names(str(tmp_path / name)) == expected


def test_parquet(tmp_path: Path) -> None:
    rows = pa.table({"url": ["http://a", None], "sample_id": [3, None], "link": ["http://b", "http://c"]})
    pq.write_table(rows, tmp_path / "x.parquet")
    assert read_names(str(tmp_path / "x.parquet")) == Names(frozenset(["http://a"]), frozenset(), frozenset([3]))
    assert read_names(str(tmp_path / "x.parquet"), ["url=link"]) == Names(frozenset(["http://b", "http://c"]))


def test_a_column_that_is_named(tmp_path: Path) -> None:
    (tmp_path / "x.csv").write_text("a=b,id\nhttp://a,9\n")
    expected = Names(frozenset(["http://a"]), frozenset(), frozenset([9]))
    assert read_names(str(tmp_path / "x.csv"), ["url=a=b", "sample_id=id"]) == expected


@pytest.mark.parametrize(
    ("name", "text", "columns", "said"),
    [
        ("lines.txt", "http://a/b\nhttp://c\n", (), "has no header: write what the column holds"),
        ("digest.txt", f"{DIGEST}\n", (), "has no header"),
        ("numbers.txt", "17\n18\n", (), "has no header"),
        ("a.csv", "a,b\n1,x\n", (), "has no column url, sample_id or sha256"),
        (
            "urls.csv",
            "urls,title\na.jpg,x\n",
            (),
            "did you mean 'urls'?; name one with --column, like --column url=NAME",
        ),
        ("empty.txt", "\n", (), "has no column url"),
        ("none.csv", "url\n\n", (), "names no row"),
        ("id.csv", "sample_id\nx7\n", (), "'x7' is not a sample_id; expected a number"),
        ("large.csv", f"sample_id\n{1 << 63}\n", (), "'9223372036854775808' is not a sample_id: it is too large"),
        ("long.csv", "sample_id\n" + "9" * 5000, (), "is not a sample_id: it is too large"),
        ("sha.csv", "sha256\nabc\n", (), "'abc' is not a SHA-256; expected 64 hex digits"),
        ("ragged.csv", "url,title\nhttp://a/b,c,x\n", (), "row 2 has 3 fields and the header 2; quote its text"),
        ("bytes.parquet", "PAR", (), "cannot read"),
        ("x.csv", "link\nhttp://a\n", ("url=lnk",), "has no column 'lnk'; did you mean 'link'?"),
        ("x.csv", "link\nhttp://a\n", ("link",), "--column is 'link', expected what it holds and its name: url=NAME"),
        ("x.csv", "a,b\nhttp://a,x\n", ("url=a", "url=b"), "names two columns for url"),
    ],
)
def test_what_is_no_list_of_rows(tmp_path: Path, name: str, text: str, columns: tuple[str, ...], said: str) -> None:
    """And is not taken for URLs that are remembered for good."""
    (tmp_path / name).write_text(text)
    with pytest.raises(UserError) as caught:
        read_names(str(tmp_path / name), columns)
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="cannot read"):
        read_names(str(tmp_path / "nowhere.csv"))
    pq.write_table(pa.table({"link": ["http://a"]}), tmp_path / "y.parquet")
    with pytest.raises(UserError, match="no column url, sample_id or sha256"):
        read_names(str(tmp_path / "y.parquet"))


def test_what_never_ends_is_not_read_whole(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="cannot read '/dev/zero': it is a device, expected a file"):
        read_names("/dev/zero")
    path = tmp_path / "a.csv"
    read = partial(read_names, max_bytes=1000, max_header_bytes=500)
    path.write_text("url\n" + "x\n" * 498)  # 1,000 bytes
    assert read(str(path)) == Names(frozenset({"x"}))
    path.write_text("url\n" + "x\n" * 499)
    with pytest.raises(UserError, match="longer than"):
        read(str(path))
    path.write_text("x" * 501)
    with pytest.raises(UserError, match="has a first line of more than 500 bytes"):
        read(str(path))


def test_lines_of_any_system(tmp_path: Path) -> None:
    for end in ("\n", "\r\n", "\r"):
        path = tmp_path / "a.csv"
        path.write_bytes(f"url{end}x{end}y{end}".encode())
        assert read_names(str(path)) == Names(frozenset({"x", "y"}))


def test_a_pipe_without_a_writer_is_refused(tmp_path: Path) -> None:
    for name in ("pipe", "pipe.parquet"):
        os.mkfifo(tmp_path / name)
        with pytest.raises(UserError, match="it is a pipe"):
            read_names(str(tmp_path / name))


def test_a_column_twice_is_refused_where_it_counts(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text("url,n,n\nx,1,2\n")
    assert read_names(str(path)) == Names(frozenset({"x"}))
    for text, columns in (("url,url\nx,y\n", ()), ("n,n\nx,y\n", ("url=n",))):
        path.write_text(text)
        with pytest.raises(UserError, match="has two columns"):
            read_names(str(path), columns)


def test_a_pipe_is_read_once(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    with ThreadPoolExecutor(1) as pool:
        written = pool.submit(pipe.write_text, "url\nx\n")
        assert read_names(str(pipe)) == Names(frozenset({"x"}))
        assert written.result() == 6
