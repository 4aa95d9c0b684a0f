import datetime
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import boto3
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from moto.server import ThreadedMotoServer
from pydantic import TypeAdapter, ValidationError

from catalog.errors import NotFoundError, RecipeError, UserError
from tasks.sources import AnySource, Parquet
from tasks.sources._columns import KNOWN


def write(path: Path, rows_per_group: int | None = None, **columns: Any) -> str:
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


def test_missing_column_says_what_there_is(tmp_path: Path) -> None:
    path = write(tmp_path / "a.parquet", link=["x"], TEXT=["y"])
    with pytest.raises(RecipeError, match=r"a\.parquet has no column that is known to hold a URL.*`url:`.*TEXT, link"):
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


def test_identity_is_content_not_place(tmp_path: Path, plan: Any) -> None:
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


def test_other_columns_in_the_first_file_change_every_identity(tmp_path: Path, plan: Any) -> None:
    write(tmp_path / "b.parquet", url=urls(2), w=[1, 2])
    source = Parquet(path=str(tmp_path))
    before = plan(source)
    step = source.open("cpu", {})
    write(tmp_path / "a.parquet", url=urls(2), w=["1", "2"])
    after = plan(source)
    assert before[0].uri == after[1].uri
    assert before[0].identity != after[1].identity
    with pytest.raises(UserError, match="columns changed since the plan"):
        list(step(iter([after[1].table()])))


def test_later_files_follow_the_first(tmp_path: Path, rows_of: Any) -> None:
    write(tmp_path / "a.parquet", URL=["u1"], width=pa.array([1], pa.int64()), tag=["t"])
    write(tmp_path / "b.parquet", width=pa.array([2], pa.int32()), url=["u2"], extra=[1])
    rows = rows_of(Parquet(path=str(tmp_path))).to_pylist()
    assert rows == [
        {"url": "u1", "caption": None, "label": None, "width": 1, "tag": "t"},
        {"url": "u2", "caption": None, "label": None, "width": 2, "tag": None},
    ]


def test_impossible_casts_name_file_and_column(tmp_path: Path, plan: Any) -> None:
    write(tmp_path / "a.parquet", url=["u1"], width=[1])
    bad = write(tmp_path / "b.parquet", url=["u2"], width=[[1, 2]])
    with pytest.raises(UserError, match=r"b\.parquet: column 'width' is list<.*cannot become int64"):
        plan(Parquet(path=str(tmp_path)))
    write(Path(bad), url=["u2"], width=["wide"])  # by type it could: only the value shows
    source = Parquet(path=str(tmp_path))
    step = source.open("cpu", {})
    with pytest.raises(UserError, match=r"b\.parquet: column 'width' is string.*cannot become int64"):
        list(step(iter([plan(source)[1].table()])))
    write(Path(bad), link=["u2"])
    with pytest.raises(UserError, match=r"b\.parquet has no column 'url'"):
        plan(source)


def test_types_that_not_every_reader_has(tmp_path: Path, rows_of: Any) -> None:
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


def test_bad_text_becomes_good_text(tmp_path: Path, rows_of: Any) -> None:
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
    with pytest.raises(NotFoundError, match="not there"):
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
        return rows_of(Parquet(path=paths)).column("url").to_pylist()  # type: ignore[no-any-return]

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
    with pytest.raises(UserError, match="changed since the plan: it ends at row 5, not 20"):
        list(source.open("cpu", {})(iter([chunk.table()])))


def test_recipe_words() -> None:
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
    with pytest.raises(NotFoundError, match="s3://corpus/none is not there, or is a folder without"):
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
