"""Text of any encoding, in every reader: decoded, or replaced and counted with the first row."""

import gzip
import io
import tarfile
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from catalog.errors import UserError
from tasks.sources import Note
from tasks.sources._notes import Notes
from tasks.sources._text import BROKEN, NULS, TWICE, Flaws
from tasks.sources.csv import Csv
from tasks.sources.folder import LONG, MAX_CAPTION_BYTES, Folder
from tasks.sources.jsonl import Jsonl
from tasks.sources.parquet import Parquet
from tasks.sources.webdataset import Webdataset
from tests.pictures import jpeg

GOOD = "caf\u00e9 \U0001f600"
LATIN = "caf\u00e9".encode("latin-1")
WHOLE_FILES = {
    GOOD.encode(): GOOD,
    GOOD.encode("utf-8-sig"): GOOD,
    GOOD.encode("utf-16"): GOOD,
    b"\xfe\xff" + GOOD.encode("utf-16-be"): GOOD,
}
"""Content of a text file -> the caption."""


def folder(path: Path, captions: list[bytes]) -> Any:
    for i, caption in enumerate(captions):
        (path / f"{i}.jpg").write_bytes(jpeg(16, 16, i))
        (path / f"{i}.txt").write_bytes(caption)
    return Folder(path=str(path))


def webdataset(path: Path, captions: list[bytes], suffix: str = "txt") -> Any:
    with tarfile.open(path / "a.tar", "w") as tar:
        for i, caption in enumerate(captions):
            for name, data in ((f"{i}.jpg", jpeg(16, 16, i)), (f"{i}.{suffix}", caption)):
                member = tarfile.TarInfo(name)
                member.size = len(data)
                tar.addfile(member, io.BytesIO(data))
    return Webdataset(path=str(path))


def webdataset_json(path: Path, captions: list[bytes]) -> Any:
    return webdataset(path, [b'{"caption": "%s"}' % c for c in captions], "json")


def csv(path: Path, captions: list[bytes]) -> Any:
    (path / "a.csv").write_bytes(b"url,caption\n" + b"".join(b"u,%s\n" % c for c in captions))
    return Csv(path=str(path))


def jsonl(path: Path, captions: list[bytes]) -> Any:
    (path / "a.jsonl").write_bytes(b"".join(b'{"url": "u", "caption": "%s"}\n' % c for c in captions))
    return Jsonl(path=str(path))


def json_array(path: Path, captions: list[bytes]) -> Any:
    rows = b",\n".join(b'{"url": "u", "caption": "%s"}' % c for c in captions)
    (path / "a.json").write_bytes(b"[" + rows + b"]")
    return Jsonl(path=str(path))


def json_lists(path: Path, captions: list[bytes]) -> Any:
    texts = b", ".join(b'"%s"' % c for c in captions)
    urls = b", ".join([b'"u"'] * len(captions))
    (path / "a.json").write_bytes(b'{"url": [%s], "caption": [%s]}' % (urls, texts))
    return Jsonl(path=str(path))


def json_values(path: Path, captions: list[bytes]) -> Any:
    (path / "a.json").write_bytes(b"".join(b'{\n "url": "u",\n "caption": "%s"\n}\n' % c for c in captions))
    return Jsonl(path=str(path))


def parquet(path: Path, captions: list[bytes]) -> Any:
    texts = pa.array(captions, pa.binary()).cast(pa.string(), safe=False)
    pq.write_table(pa.table({"url": ["u"] * len(captions), "caption": texts}), path / "a.parquet")
    return Parquet(path=str(path))


def parquet_binary(path: Path, captions: list[bytes]) -> Any:
    table = pa.table({"url": ["u"] * len(captions), "caption": pa.array(captions, pa.binary())})
    pq.write_table(table, path / "a.parquet")
    return Parquet(path=str(path))


def parquet_large_binary(path: Path, captions: list[bytes]) -> Any:
    table = pa.table({"url": ["u"] * len(captions), "caption": pa.array(captions, pa.large_binary())})
    pq.write_table(table, path / "a.parquet")
    return Parquet(path=str(path))


def parquet_lists(path: Path, captions: list[bytes], kind: pa.DataType | None = None) -> Any:
    lists = pa.array([[c] for c in captions], pa.list_(kind or pa.binary()))
    pq.write_table(pa.table({"url": ["u"] * len(captions), "caption": lists}), path / "a.parquet")
    return Parquet(path=str(path))


READERS = [folder, webdataset, webdataset_json, csv, jsonl, json_array, json_lists, json_values]
READERS += [parquet, parquet_binary, parquet_large_binary, parquet_lists]


def read(source: Any) -> tuple[list[str | None], list[Note]]:
    """Return the captions, and the notes on the rows."""
    captions, notes = [], Notes()
    step = source.open("cpu", {})
    for chunk in source.survey(lambda uri: uri).chunks:
        for piece in step(iter([chunk.table()])):
            notes.add_all(piece.schema)
            captions += piece.column("caption").to_pylist()
    return captions, list(notes.all())


@pytest.mark.parametrize("reader", READERS)
def test_invalid_utf8_is_counted_with_its_first_row(reader: Any, tmp_path: Path) -> None:
    captions, notes = read(reader(tmp_path, [GOOD.encode(), LATIN, b"a \xff\xfe b", b"plain"]))
    assert captions == [GOOD, "caf\ufffd", "a \ufffd\ufffd b", "plain"]
    (note,) = notes
    assert (note.number, note.what) == (2, BROKEN)
    place = f"{tmp_path}/1.txt" if reader is folder else "near row 1"
    assert note.example.endswith(place)
    assert note.example.startswith(str(tmp_path))


@pytest.mark.parametrize("reader", READERS)
def test_valid_utf8_is_not_counted(reader: Any, tmp_path: Path) -> None:
    assert read(reader(tmp_path, [GOOD.encode(), b"plain"])) == ([GOOD, "plain"], [])


@pytest.mark.parametrize("reader", [folder, webdataset])
def test_a_text_file_may_be_utf16_and_have_a_mark(reader: Any, tmp_path: Path) -> None:
    captions, notes = read(reader(tmp_path, list(WHOLE_FILES)))
    assert captions == list(WHOLE_FILES.values())
    assert not notes


@pytest.mark.parametrize("reader", [folder, webdataset])
def test_utf16_without_a_mark_is_counted(reader: Any, tmp_path: Path) -> None:
    captions, notes = read(reader(tmp_path, [b"a", "plain".encode("utf-16-le"), GOOD.encode("utf-16-le")]))
    assert captions[:2] == ["a", "plain"]  # UTF-8, too, but for its NUL characters
    assert {note.what: note.number for note in notes} == {NULS: 2, BROKEN: 1}


@pytest.mark.parametrize("name", ["a.csv", "a.csv.gz"])
@pytest.mark.parametrize("codec", ["utf-8-sig", "utf-16"])
def test_a_table_may_be_utf16_and_have_a_mark(name: str, codec: str, tmp_path: Path) -> None:
    data = f'url,caption\nu,{GOOD}\nu,"{GOOD * 30_000}"\n'.encode(codec)
    (tmp_path / name).write_bytes(gzip.compress(data) if name.endswith("gz") else data)
    assert read(Csv(path=str(tmp_path))) == ([GOOD, GOOD * 30_000], [])


def test_invalid_utf16_is_counted(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_bytes("url,caption\nu,a\nu,b".encode("utf-16") + b"\x3d\xd8" + b"\n\0u\0,\0c\0x")
    captions, notes = read(Csv(path=str(tmp_path)))
    assert captions == ["a", "b\ufffd\ufffd\ufffd", "c\ufffd"]
    assert [(note.number, note.what) for note in notes] == [(2, BROKEN)]


def test_headers_and_malformed_lines_may_hold_any_bytes(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_bytes(b"url,caf\xe9,n\nu,a,1\nu,b\xe9\n")
    source = Csv(path=str(tmp_path))
    (chunk,) = source.survey(lambda uri: uri).chunks
    (piece,) = source.open("cpu", {})(iter([chunk.table()]))
    assert piece.column("caf\ufffd").to_pylist() == ["a", None]
    assert piece.column("row_detail").to_pylist() == [None, "2 fields, expected 3: u,b\ufffd"]
    assert BROKEN in [note.what for note in Notes.of(piece.schema).all()]


def test_text_in_lists_and_structs_becomes_valid() -> None:
    kind = pa.list_(pa.struct([("a", pa.string()), ("b", pa.map_(pa.string(), pa.binary()))]))
    raw = pa.list_(pa.struct([("a", pa.binary()), ("b", pa.map_(pa.binary(), pa.binary()))]))
    rows = [[{"a": b"x", "b": [(b"k", b"\xff")]}], None, [{"a": LATIN, "b": None}], [{"a": None, "b": [(LATIN, None)]}]]
    flaws = Flaws(4)
    found = flaws.clean(pa.array(rows, raw).cast(kind, safe=False))
    found.validate(full=True)
    assert found.to_pylist()[0] == [{"a": "x", "b": [("k", b"\xff")]}]
    assert found.to_pylist()[2][0]["a"] == "caf\ufffd"
    assert flaws.first(BROKEN) == (2, 2)


def test_a_long_caption_is_cut_at_a_character_and_counted(tmp_path: Path) -> None:
    captions, notes = read(folder(tmp_path, [b"x" + "\u00e9".encode() * (MAX_CAPTION_BYTES // 2 + 9)]))
    assert captions == ["x" + "\u00e9" * (MAX_CAPTION_BYTES // 2 - 1)]
    assert notes == [Note(1, LONG, f"{tmp_path}/0.txt")]


@pytest.mark.parametrize("form", ["lines", "array", "values", "webdataset"])
def test_the_first_value_of_a_duplicate_key_is_used_and_counted(form: str, tmp_path: Path) -> None:
    rows = [b'{"url": "u", "caption": "a"}', b'{"url": "u", "caption": "b", "caption": 1, "url": "v"}']
    if form == "webdataset":
        source = webdataset(tmp_path, rows, "json")
    else:
        spaced = [row.replace(b"{", b"{\n") for row in rows]
        data = {"lines": b"\n".join(rows), "array": b"[%s, %s]" % (*rows,), "values": b"\n".join(spaced)}[form]
        (tmp_path / "a.jsonl").write_bytes(data)
        source = Jsonl(path=str(tmp_path))
    captions, notes = read(source)
    assert captions == ["a", "b"]
    (note,) = notes
    assert (note.number, note.what) == (1, TWICE)
    assert note.example.endswith("near row 1")


@pytest.mark.parametrize("space", [b"", b"\n"])
def test_an_object_of_lists_with_a_key_twice_is_refused(space: bytes, tmp_path: Path) -> None:
    (tmp_path / "a.json").write_bytes(b'{%b"url": ["u"], "caption": ["a"], "caption": ["b"]}' % space)
    with pytest.raises(UserError, match=r"a\.json is one object of lists with the key 'caption' twice"):
        read(Jsonl(path=str(tmp_path)))
