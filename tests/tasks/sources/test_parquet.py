import datetime
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import boto3
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from moto.server import ThreadedMotoServer
from pydantic import TypeAdapter, ValidationError

from catalog.errors import NotFoundError, RecipeError, UserError
from tasks.sources import AnySource, Parquet
from tasks.sources._columns import KNOWN


def write(path: Path, rows_per_group: int | None = None, /, **columns: Any) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table(columns), path, row_group_size=rows_per_group)
    return str(path)


def urls(n: int, prefix: str = "http://a/") -> list[str]:
    return [f"{prefix}{i}.jpg" for i in range(n)]


@pytest.mark.parametrize(
    ("columns", "url", "caption"),
    [
        (["SAMPLE_ID", "URL", "TEXT", "HEIGHT", "WIDTH", "LICENSE", "NSFW", "similarity"], "URL", "TEXT"),  # LAION-400M
        (["URL", "TEXT", "WIDTH", "HEIGHT", "similarity", "punsafe", "pwatermark", "hash"], "URL", "TEXT"),  # LAION-2B
        (["uid", "url", "text", "original_width", "clip_b32_similarity_score", "sha256"], "url", "text"),  # DataComp
        (["url", "caption", "key", "status", "error_message", "width", "sha256"], "url", "caption"),  # img2dataset
        (["id", "url", "text", "width", "height", "image_phash", "watermark_score"], "url", "text"),  # COYO
        (["image_url", "caption"], "image_url", "caption"),  # Conceptual Captions
        (["image_urls", "captions"], "image_urls", "captions"),  # SBU
        (["url", "re_caption", "org_caption"], "url", "re_caption"),  # Recap-DataComp
    ],
)
def test_known_column_names(tmp_path: Path, rows_of: Any, columns: list[str], url: str, caption: str) -> None:
    path = write(tmp_path / "a.parquet", **{name: [f"{name} 0", f"{name} 1"] for name in columns})
    rows = rows_of(Parquet(path=path))
    assert rows.column("url").to_pylist() == [f"{url} 0", f"{url} 1"]
    assert rows.column("caption").to_pylist() == [f"{caption} 0", f"{caption} 1"]
    kept = [("source_" + n if n.casefold() == "sample_id" else n) for n in columns if n not in {url, caption}]
    assert rows.column_names == ["url", "caption", "label", *kept]


def test_chosen_columns_and_collisions(tmp_path: Path, rows_of: Any) -> None:
    path = write(
        tmp_path / "a.parquet",
        url=["thumb"], image_url=["full"], Caption=["x"], alt=["chosen"], label=[7], local_path=["/etc/passwd"],
        source_url=["taken"],
    )  # fmt: skip
    rows = rows_of(Parquet(path=path, url="image_url", caption="alt")).to_pylist()
    assert rows == [
        {
            "url": "full", "caption": "chosen", "label": "7", "source_url": "thumb", "source_Caption": "x",
            "source_local_path": "/etc/passwd", "source_source_url": "taken",
        }
    ]  # fmt: skip


def test_a_missing_column_lists_the_available_ones(tmp_path: Path) -> None:
    path = write(tmp_path / "a.parquet", link=["x"], TEXT=["y"])
    with pytest.raises(RecipeError, match=r"a\.parquet has no column with a known name for .*URL.*`url:`.*TEXT, link"):
        Parquet(path=path).output({})
    with pytest.raises(RecipeError, match=r"no column 'lnk' \(url\); did you mean 'link'\?"):
        Parquet(path=path, url="lnk").output({})
    path = write(tmp_path / "b.parquet", url=[1.5])
    with pytest.raises(RecipeError, match=r"column 'url' \(url\) is double; expected text"):
        Parquet(path=path, url="url").output({})


def test_chunks_cover_every_row_once_whatever_the_row_groups(tmp_path: Path, rows_of: Any, plan: Any) -> None:
    for name, n, group in (("a", 25, 7), ("b", 10, 10), ("c", 1, 1), ("d", 40, 40)):
        write(tmp_path / f"{name}.parquet", group, url=urls(n, name), n=list(range(n)))
    source = Parquet(path=str(tmp_path), rows_per_part=6)
    expected = [u for name, n in (("a", 25), ("b", 10), ("c", 1), ("d", 40)) for u in urls(n, name)]
    assert rows_of(source).column("url").to_pylist() == expected
    chunks = plan(source)
    assert all(c.rows <= 6 for c in chunks)
    step = source.open("cpu", {})
    backwards = [pa.concat_tables(step(iter([c.table()]))).column("url").to_pylist() for c in reversed(chunks)]
    assert [u for part in reversed(backwards) for u in part] == expected  # order of the work changes nothing


def test_a_part_larger_than_a_piece_is_streamed(tmp_path: Path, rows_of: Any) -> None:
    path = write(tmp_path / "a.parquet", 30_000, url=urls(70_000))
    rows = rows_of(Parquet(path=path, rows_per_part=1 << 24))
    assert rows.column("url").to_pylist() == urls(70_000)


def test_identity_is_content_not_path(tmp_path: Path, plan: Any) -> None:
    write(tmp_path / "data" / "b.parquet", url=urls(25), w=list(range(25)))
    source = Parquet(path=str(tmp_path / "data"), rows_per_part=10)
    before = plan(source)
    assert [(c.start, c.rows) for c in before] == [(0, 10), (10, 10), (20, 5)]
    os.utime(tmp_path / "data" / "b.parquet", (1, 1))
    assert plan(source) == before
    write(tmp_path / "data" / "a.parquet", url=urls(3, "new"), w=[1, 2, 3])  # sorts first, same columns
    after = plan(source)
    assert after[1:] == before
    assert after[0].rows == 3
    shutil.copytree(tmp_path / "data", tmp_path / "copy")
    moved = Parquet(path=str(tmp_path / "copy"), rows_per_part=10)
    assert [c.identity for c in plan(moved)] == [c.identity for c in after]
    assert moved.parameters() == source.parameters()


def test_columns_of_another_file_change_the_layout_and_no_identity(tmp_path: Path, plan: Any) -> None:
    write(tmp_path / "b.parquet", url=urls(2), w=[1, 2])
    source = Parquet(path=str(tmp_path))
    (before,) = plan(source)
    write(tmp_path / "a.parquet", url=urls(2), w=[1.5, 2])
    _, after = plan(source)
    assert before.uri == after.uri
    assert before.identity == after.identity  # so its part keeps its number
    changed = {k for k, v in source.made_of(before).items() if source.made_of(after)[k] != v}
    assert changed == {"w"}
    write(tmp_path / "c.parquet", url=urls(2), more=["x", "y"])
    assert source.made_of(plan(source)[1]).items() - source.made_of(after).items() == {("more", "None None string")}


def test_columns_of_all_files(tmp_path: Path, rows_of: Any, notes_of: Any) -> None:
    a = write(tmp_path / "a.parquet", URL=["u1"], width=pa.array([1], pa.int64()), tag=["t"])
    b = write(tmp_path / "b.parquet", WIDTH=pa.array([2], pa.int32()), url=["u2"], extra=[1])
    rows = rows_of(Parquet(path=str(tmp_path))).to_pylist()
    assert rows == [
        {"url": "u1", "caption": None, "label": None, "width": 1, "tag": "t", "extra": None},
        {"url": "u2", "caption": None, "label": None, "width": 2, "tag": None, "extra": 1},
    ]
    assert notes_of(Parquet(path=str(tmp_path))) == [
        f"types of column 'width' in different files, read as int64: 2 (e.g. int64 ({a}), int32 ({b}))",
        f"files without column 'tag', which is null in their rows: 1 (e.g. {b})",
        f"files without column 'extra', which is null in their rows: 1 (e.g. {a})",
    ]


def test_names_are_compared_without_space_and_case(tmp_path: Path, rows_of: Any) -> None:
    write(tmp_path / "a.parquet", **{" URL ": ["u1"], "\ufeffText": ["a"], " Width": [1]})
    write(tmp_path / "b.parquet", **{"url": ["u2"], "TEXT\t": ["b"], "width ": [2]})
    assert rows_of(Parquet(path=str(tmp_path))).to_pylist() == [
        {"url": "u1", "caption": "a", "label": None, "Width": 1},
        {"url": "u2", "caption": "b", "label": None, "Width": 2},
    ]
    rows = rows_of(Parquet(path=str(tmp_path), caption="Width", url="Url "))
    assert rows.column("caption").to_pylist() == ["1", "2"]


_TYPES = [
    (pa.null(), pa.float64(), pa.float64()),
    (pa.int64(), pa.float64(), pa.float64()),
    (pa.int8(), pa.int32(), pa.int32()),
    (pa.float32(), pa.float64(), pa.float64()),
    (pa.int64(), pa.string(), pa.string()),
    (pa.bool_(), pa.int64(), pa.string()),
    (pa.string(), pa.binary(), pa.string()),
    (pa.string(), pa.large_string(), pa.string()),
    (pa.dictionary(pa.int8(), pa.string()), pa.string(), pa.string()),
    (pa.uint64(), pa.int64(), pa.decimal128(20, 0)),
    (pa.timestamp("ns"), pa.timestamp("s"), pa.timestamp("us")),
    (pa.timestamp("us"), pa.string(), pa.string()),
    (pa.list_(pa.int64()), pa.list_(pa.float64()), pa.list_(pa.float64())),
    (pa.list_(pa.int64()), pa.large_list(pa.int64()), pa.list_(pa.int64())),
    (pa.struct([("a", pa.int32())]), pa.struct([("a", pa.int64())]), pa.struct([("a", pa.int64())])),
]


@pytest.mark.parametrize(("one", "other", "common"), _TYPES, ids=lambda t: str(t)[:20])
@pytest.mark.parametrize("swapped", [False, True])
def test_types_widen_to_the_common_type(
    tmp_path: Path, rows_of: Any, one: pa.DataType, other: pa.DataType, common: pa.DataType, swapped: bool
) -> None:
    samples = {
        "null": None, "string": "7", "large_string": "7", "binary": b"7", "bool": True, "list": [7],
        "struct": {"a": 7}, "timestamp": datetime.datetime(2024, 1, 2), "dictionary": "7",
    }  # fmt: skip

    def column(type_: pa.DataType) -> pa.Array:
        kind = next((k for k in samples if str(type_).startswith(k)), None)
        value = samples[kind] if kind else 7
        value = [7] if "list" in str(type_) else value
        return pa.array([value, None], type_) if kind != "dictionary" else pa.array(["7", None]).cast(type_)

    files = [("a", one), ("b", other)] if not swapped else [("a", other), ("b", one)]
    for name, type_ in files:
        write(tmp_path / f"{name}.parquet", url=urls(2, name), c=column(type_))
    rows = rows_of(Parquet(path=str(tmp_path)))
    assert rows.schema.field("c").type == common
    for name, type_ in files:
        alone = rows_of(Parquet(path=str(tmp_path / f"{name}.parquet"))).column("c")
        both = rows.filter(pc.starts_with(rows.column("url"), name)).column("c")
        if not pa.types.is_null(type_):
            assert alone.cast(common, safe=False).to_pylist() == both.to_pylist()
        assert both.null_count == (2 if pa.types.is_null(type_) else 1)


def test_values_that_cannot_be_converted_become_null_and_are_counted(
    tmp_path: Path, rows_of: Any, notes_of: Any
) -> None:
    write(tmp_path / "a.parquet", url=urls(3), hash=[2**60 + 1, 2**53, None], width=["640", "wide", None])
    write(tmp_path / "b.parquet", url=urls(2), hash=[0.5, float("nan")], width=["1e2", "007"])
    source = Parquet(path=str(tmp_path), types={"Width": "integer"})
    rows = rows_of(source)
    assert rows.column("hash").to_pylist()[:4] == [None, float(2**53), None, 0.5]
    assert rows.column("width").to_pylist() == [640, None, None, None, None]
    assert [note.partition(" (")[0] for note in notes_of(source)[1:]] == [
        "values of column 'hash' that are not double and became null: 1",
        "values of column 'width' that are not int64 and became null: 3",
    ]
    with pytest.raises(UserError, match="has no column 'height' \\(types\\)"):
        rows_of(Parquet(path=str(tmp_path), types={"height": "text"}))


def test_impossible_casts_name_file_and_column(tmp_path: Path, plan: Any) -> None:
    write(tmp_path / "a.parquet", url=["u1"], width=[1])
    bad = write(tmp_path / "b.parquet", url=["u2"], width=[[1, 2]])
    with pytest.raises(UserError, match=r"b\.parquet: column 'width' is list<.*cannot become int64"):
        plan(Parquet(path=str(tmp_path)))
    write(Path(bad), link=["u2"])
    with pytest.raises(UserError, match=r"b\.parquet has no column with a known name for the URL"):
        plan(Parquet(path=str(tmp_path)))


def test_captions_of_other_types(tmp_path: Path, rows_of: Any) -> None:
    for values, expected in (
        ([["a cat", "two cats"], ["a dog"], [], None, [None, " ", "x"]], ["a cat", "a dog", None, None, "x"]),
        ([7, 2012, None], ["7", "2012", None]),
        ([1.5, 2.0], ["1.5", "2"]),
        ([True, False], ["true", "false"]),
        ([[1, 2], [3]], ["1", "3"]),
    ):
        path = write(tmp_path / "a.parquet", url=urls(len(values)), captions=values)
        assert rows_of(Parquet(path=path)).column("caption").to_pylist() == expected
    path = write(tmp_path / "b.parquet", url=["u"], caption=[{"a": 1}], text=["b"])
    row = rows_of(Parquet(path=path)).to_pylist()[0]
    assert (row["caption"], row["source_caption"]) == ("b", {"a": 1})


def test_a_random_caption_does_not_depend_on_the_chunks(tmp_path: Path, rows_of: Any) -> None:
    captions = [[f"{i}-{j}" for j in range(1 + i % 5)] for i in range(500)]
    path = write(tmp_path / "a.parquet", 70, url=urls(500), caption=captions)
    drawn = [
        rows_of(Parquet(path=path, caption_from="random", rows_per_part=size)).column("caption").to_pylist()
        for size in (7, 100, 10_000)
    ]
    assert drawn[0] == drawn[1] == drawn[2]
    assert all(caption in choices for caption, choices in zip(drawn[0], captions, strict=True))
    shares = [
        sum(c == choices[j] for c, choices in zip(drawn[0], captions, strict=True) if len(choices) == 5)
        for j in range(5)
    ]
    assert min(shares) > 5  # of 100 rows with five captions each is drawn some 20 times
    joined = rows_of(Parquet(path=path, caption_from="join")).column("caption").to_pylist()
    assert joined == [" ".join(choices) for choices in captions]


def test_every_file_is_read_or_counted(tmp_path: Path, rows_of: Any, notes_of: Any) -> None:
    write(tmp_path / "d" / "a.parquet", url=["u1"])
    write(tmp_path / "d" / "empty.parquet", url=pa.array([], pa.string()))
    write(tmp_path / "d" / "_tmp" / "b.parquet", url=["u2"])
    write(tmp_path / "d" / ".c.parquet", url=["u3"])
    write(tmp_path / "d" / "e.parquet.bak", url=["u4"])
    write(tmp_path / "f.parquet", url=["u5"])
    (tmp_path / "d" / "link.parquet").symlink_to(tmp_path / "f.parquet")
    (tmp_path / "d" / "loop").symlink_to(tmp_path / "d")
    os.mkfifo(tmp_path / "d" / "pipe.parquet")
    source = Parquet(path=str(tmp_path / "d"))
    assert rows_of(source).column("url").to_pylist() == ["u1"]
    assert notes_of(source) == [
        f"hidden files or folders skipped: 1 (e.g. {tmp_path}/d/.c.parquet)",
        f"links not followed (`follow_links: true` follows them): 2 (e.g. {tmp_path}/d/link.parquet)",
        f"devices, pipes and sockets skipped: 1 (e.g. {tmp_path}/d/pipe.parquet)",
        f"files whose names begin with _ skipped (table writers' metadata): 1 (e.g. {tmp_path}/d/_tmp/b.parquet)",
        f"files skipped that are not .parquet or .pq files: 1 (e.g. {tmp_path}/d/e.parquet.bak)",
        f"files without a row: 1 (e.g. {tmp_path}/d/empty.parquet)",
    ]
    followed = Parquet(path=str(tmp_path / "d"), follow_links=True)
    assert rows_of(followed).column("url").to_pylist() == ["u1", "u5"]
    assert rows_of(Parquet(path=str(tmp_path / "d" / "link.parquet"))).num_rows == 1  # who names it means it
    (tmp_path / "d" / "a.parquet").unlink()
    (tmp_path / "d" / "empty.parquet").unlink()
    with pytest.raises(NotFoundError, match=r"folder without .*links not followed .*: 2"):
        rows_of(source)


def test_types_that_not_every_reader_supports(tmp_path: Path, rows_of: Any) -> None:
    path = write(
        tmp_path / "a.parquet",
        url=["u"],
        u8=pa.array([255], pa.uint8()),
        u64=pa.array([2**64 - 1], pa.uint64()),
        half=pa.array(np.array([1.5], np.float16)),
        category=pa.array(["x"]).dictionary_encode(),
        nothing=pa.nulls(1),
        at=pa.array([datetime.datetime(2024, 1, 2, 3, 4, 5, 678)], pa.timestamp("ns")),
        clock=pa.array([datetime.time(1, 2, 3)], pa.time64("us")),
        nested=pa.array([{"a": [1], "b": "x"}], pa.struct([("a", pa.list_(pa.uint16())), ("b", pa.large_string())])),
    )
    rows = rows_of(Parquet(path=path))
    types = {f.name: f.type for f in rows.schema}
    assert types["u8"] == pa.int16()
    assert types["u64"] == pa.decimal128(20, 0)
    assert types["half"] == pa.float32()
    assert types["nothing"] == pa.string()
    assert types["at"] == pa.timestamp("us")
    row = rows.to_pylist()[0]
    assert row["label"] == "x"
    assert row["u64"] == 2**64 - 1
    assert row["clock"] == "01:02:03.000000"
    assert row["nested"] == {"a": [1], "b": "x"}

    from deltalake import Schema

    Schema.from_arrow(rows.schema)  # refuses what Delta Lake lacks


def test_invalid_text_becomes_valid_text(tmp_path: Path, rows_of: Any) -> None:
    huge = "x" * 3_000_000
    raw = [b"caf\xe9", b"a\x00b", None, b"", huge.encode(), "\U0001f600".encode()]
    broken = pa.array(raw, pa.binary()).cast(pa.string(), safe=False)
    path = write(tmp_path / "a.parquet", url=urls(6), caption=broken, other=broken)
    rows = rows_of(Parquet(path=path))
    expected = ["caf�", "ab", None, "", huge, "\U0001f600"]
    assert rows.column("caption").to_pylist() == expected
    assert rows.column("other").to_pylist() == expected
    path = write(tmp_path / "b.parquet", url=pa.array(urls(6)).cast(pa.binary()), text=pa.array(raw, pa.binary()))
    assert rows_of(Parquet(path=path)).column("caption").to_pylist() == expected


def test_nothing_to_read(tmp_path: Path, plan: Any) -> None:
    with pytest.raises(NotFoundError, match="does not exist"):
        plan(Parquet(path=str(tmp_path / "no")))
    (tmp_path / "laion.parquet").write_bytes(b"")
    with pytest.raises(NotFoundError, match=r"did you mean 'laion\.parquet'"):
        plan(Parquet(path=str(tmp_path / "lain.parquet")))
    with pytest.raises(UserError, match=r"laion\.parquet is not a readable Parquet file"):
        plan(Parquet(path=str(tmp_path)))
    with pytest.raises(NotFoundError, match="no file matches"):
        plan(Parquet(path=str(tmp_path / "x*.parquet")))
    (tmp_path / "empty").mkdir()
    with pytest.raises(NotFoundError, match=r"folder without \.parquet"):
        plan(Parquet(path=str(tmp_path / "empty")))
    with pytest.raises(UserError, match="unknown scheme 's4'; there is: abfs, abfss, az, gs, s3"):
        plan(Parquet(path="s4://bucket/x"))
    write(tmp_path / "zero" / "a.parquet", url=pa.array([], pa.string()))
    with pytest.raises(UserError, match="the source is empty"):
        plan(Parquet(path=str(tmp_path / "zero")))


def test_empty_files_between_others_make_no_part(tmp_path: Path, rows_of: Any) -> None:
    write(tmp_path / "a.parquet", url=pa.array([], pa.string()))
    write(tmp_path / "b.parquet", url=["u"])
    assert rows_of(Parquet(path=str(tmp_path))).column("url").to_pylist() == ["u"]


def test_truncated_file_is_named_when_planned(tmp_path: Path, plan: Any) -> None:
    path = Path(write(tmp_path / "a.parquet", url=urls(1000)))
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(UserError, match=r"a\.parquet is not a readable Parquet file"):
        plan(Parquet(path=str(path)))


def test_damaged_pages_are_named_when_read(tmp_path: Path, plan: Any) -> None:
    path = Path(write(tmp_path / "a.parquet", url=urls(1000)))
    source = Parquet(path=str(path))
    data = bytearray(path.read_bytes())
    data[4:400] = b"\xff" * 396
    path.write_bytes(data)
    with pytest.raises(UserError, match=r"a\.parquet is not a readable Parquet file"):
        list(source.open("cpu", {})(iter([plan(source)[0].table()])))


def test_paths(tmp_path: Path, rows_of: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("x/a.parquet", "x/y/b.parquet", "z/c.PARQUET", "_tmp/d.parquet", ".e.parquet", "z/[1].parquet"):
        write(tmp_path / name, url=[name])
    (tmp_path / "z" / "note.txt").write_text("no data")

    def found(*paths: str) -> list[str]:
        return rows_of(Parquet(path=paths)).column("url").to_pylist()

    everything = ["x/a.parquet", "x/y/b.parquet", "z/[1].parquet", "z/c.PARQUET"]
    assert found(str(tmp_path)) == everything
    assert found(f"file://{tmp_path}") == everything
    assert found(f"{tmp_path}/x/*.parquet") == ["x/a.parquet"]
    assert found(f"{tmp_path}/**/[ab].parquet") == ["x/a.parquet", "x/y/b.parquet"]
    assert found(f"{tmp_path}/z/[1].parquet") == ["z/[1].parquet"]
    assert found(f"{tmp_path}/z", f"{tmp_path}/x/a.parquet", f"{tmp_path}/x/*") == [
        e for e in everything if "/y/" not in e
    ]
    monkeypatch.chdir(tmp_path)
    assert found("x") == ["x/a.parquet", "x/y/b.parquet"]


def test_file_that_shrinks_after_the_plan(tmp_path: Path, plan: Any) -> None:
    path = tmp_path / "a.parquet"
    source = Parquet(path=write(path, url=urls(20)))
    chunk = plan(source)[0]
    write(path, url=urls(5))
    with pytest.raises(UserError, match="changed after it was planned: it ends at row 5, not 20"):
        list(source.open("cpu", {})(iter([chunk.table()])))


def test_recipe_fields() -> None:
    source = TypeAdapter(AnySource).validate_python({"use": "parquet", "path": ["a", "b"], "url": "URL"})
    assert isinstance(source, Parquet)
    assert source.table == "source"
    assert not source.alive_only
    with pytest.raises(ValidationError, match="rows_per_part"):
        Parquet(path="a", rows_per_part=2**24 + 1)
    with pytest.raises(ValidationError, match="captions"):
        Parquet(path="a", captions="x")  # type: ignore[call-arg]


def test_known_names_are_lower_case() -> None:
    assert all(name == name.casefold() for names in KNOWN.values() for name in names)


@pytest.fixture
def bucket(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    server = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    endpoint = f"http://{host}:{port}"
    for name, value in {
        "AWS_ENDPOINT_URL": endpoint, "AWS_ALLOW_HTTP": "true", "AWS_ACCESS_KEY_ID": "x", "AWS_SECRET_ACCESS_KEY": "x",
        "AWS_REGION": "us-east-1", "AWS_DEFAULT_REGION": "us-east-1",
    }.items():  # fmt: skip
        monkeypatch.setenv(name, value)
    client = boto3.client("s3", endpoint_url=endpoint, region_name="us-east-1")
    client.create_bucket(Bucket="corpus")
    yield client
    client.close()
    server.stop()
    from catalog import storage

    storage._store.cache_clear()  # the next test's server has another port


def test_object_store(tmp_path: Path, rows_of: Any, bucket: Any) -> None:
    for name, n in (
        ("laion/part-0.parquet", 25),
        ("laion/part-1.parquet", 5),
        ("laion/other.txt", 1),
        ("x/c.parquet", 2),
    ):
        bucket.upload_file(write(tmp_path / name, 7, URL=urls(n, name), TEXT=["t"] * n), "corpus", name)

    def etag(uri: str) -> str:
        return str(bucket.head_object(Bucket="corpus", Key=uri.removeprefix("s3://corpus/"))["ETag"])

    expected = urls(25, "laion/part-0.parquet") + urls(5, "laion/part-1.parquet")
    for path in ("s3://corpus/laion/*.parquet", "s3://corpus/laion", "s3://corpus/laion/", "s3://corpus/**/part-[01]*"):
        assert rows_of(Parquet(path=path, rows_per_part=10), etag).column("url").to_pylist() == expected
    single = Parquet(path="s3://corpus/x/c.parquet")
    assert [c.uri for c in single.chunks(etag)] == ["s3://corpus/x/c.parquet"]
    with pytest.raises(NotFoundError, match="s3://corpus/none does not exist, or is a folder without"):
        Parquet(path="s3://corpus/none").chunks(etag)


@pytest.mark.needs_data
def test_real_laion_metadata(rows_of: Any) -> None:
    path = Path(os.environ.get("ESPALIER_SHARED_DATA", "../shared/data")) / "laion_metadata_10k" / "urls.parquet"
    if not path.exists():
        pytest.skip("no shared data")
    found = rows_of(Parquet(path=str(path), rows_per_part=3000))
    truth = pq.read_table(path)
    assert found.num_rows == 10_000
    assert found.column("url").to_pylist() == truth.column("URL").to_pylist()
    assert found.column("caption").to_pylist() == truth.column("TEXT").to_pylist()
