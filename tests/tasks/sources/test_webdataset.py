import gzip
import io
import json
import random
import tarfile
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from webdataset.tariterators import group_by_keys, tar_file_iterator

from catalog.errors import NotFoundError, UserError
from tasks.sources import Webdataset
from tasks.sources import webdataset as module


def write_tar(path: Path, members: list[tuple[str, bytes]], form: int = tarfile.PAX_FORMAT) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w", format=form) as archive:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return str(path)


def img2dataset(n: int) -> list[tuple[str, bytes]]:
    """Members of a tar as img2dataset writes it."""
    members = []
    for i in range(n):
        about = {
            "caption": f"caption {i}",
            "url": f"http://a/{i}",
            "width": 10 + i,
            "exif": "{}",
            "similarity": 0.5 + i,
        }
        members += [
            (f"{i:09}.jpg", b"\xff\xd8image %d" % i),
            (f"{i:09}.json", json.dumps(about).encode()),
            (f"{i:09}.txt", f"caption {i}".encode()),
        ]
    return members


def stored(row: dict[str, Any]) -> bytes:
    with Path(row["local_path"]).open("rb") as file:
        file.seek(row["local_offset"])
        return file.read(row["local_size"])


@pytest.mark.parametrize("form", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_img2dataset_tars(tmp_path: Path, rows_of: Any, form: int) -> None:
    for shard in range(2):
        write_tar(tmp_path / f"{shard:05}.tar", img2dataset(25), form)
    rows = rows_of(Webdataset(path=str(tmp_path), rows_per_part=10)).to_pylist()
    assert len(rows) == 50
    for i, row in enumerate(rows):
        assert stored(row) == b"\xff\xd8image %d" % (i % 25)
        assert row["caption"] == f"caption {i % 25}"
        assert row["source_url"] == f"http://a/{i % 25}"
        assert row["width"] == 10 + i % 25
        assert row["similarity"] == 0.5 + i % 25
        assert row["url"] == f"{tmp_path}/{i // 25:05}.tar#{i % 25:09}.jpg"


def test_the_same_samples_as_the_webdataset_library(tmp_path: Path, rows_of: Any) -> None:
    long_name = "deep/" * 30 + "é" * 60
    members = [
        ("x/a.jpg", b"1"), ("x/a.txt", b"one"), ("x/b.seg.png", b"2"), ("x/b.PNG", b"3"), ("x/b.cls", b"7\n"),
        ("y/a.webp", b"4"), ("noextension", b"5"), ("__key__.json", b"{}"), ("__meta__/a.jpg", b"0"),
        (f"{long_name}.jpg", b"6"), ("x/a.jpg", b"again"), ("only.txt", b"text"),
    ]  # fmt: skip
    path = write_tar(tmp_path / "a.tar", members)
    rows = rows_of(Webdataset(path=path)).to_pylist()
    with Path(path).open("rb") as file:
        theirs = list(group_by_keys({**s, "__url__": path} for s in tar_file_iterator(file)))
    images = [next((s[e] for e in ("jpg", "png", "webp") if e in s), None) for s in theirs]
    assert [stored(r) if r["local_path"] else None for r in rows] == images
    assert [r["caption"] for r in rows] == [s["txt"].decode() if "txt" in s else None for s in theirs]
    assert [r["label"] for r in rows] == [s["cls"].decode().strip() if "cls" in s else None for s in theirs]
    assert rows[-1]["local_path"] is None
    assert rows[-1]["url"] == f"{path}#only"


def test_text_beside_json(tmp_path: Path, rows_of: Any) -> None:
    members = [
        ("a.jpg", b"1"), ("a.json", b'{"caption": "from json", "label": 3, "local_path": "/etc/passwd"}'),
        ("b.jpg", b"2"), ("b.json", b'{"caption": "from json"}'), ("b.txt", b"caf\xe9\x00"),
        ("c.jpg", b"3"), ("c.json", b"{broken"), ("d.jpg", b"4"),
    ]  # fmt: skip
    rows = rows_of(Webdataset(path=write_tar(tmp_path / "a.tar", members))).to_pylist()
    assert [r["caption"] for r in rows] == ["from json", "caf�", None, None]
    assert [r["label"] for r in rows] == ["3", None, None, None]
    assert [r["source_local_path"] for r in rows] == ["/etc/passwd", None, None, None]
    assert all(r["local_path"] == str(tmp_path / "a.tar") for r in rows)


def test_a_tar_that_ends_in_the_middle_gives_the_samples_before(tmp_path: Path, rows_of: Any) -> None:
    members = [(f"{i}.jpg", bytes([i]) * 1000) for i in range(10)]
    path = Path(write_tar(tmp_path / "a.tar", members))
    whole = path.read_bytes()
    for cut, left in ((6 * 1536 + 512 + 500, 6), (6 * 1536 + 100, 6), (6 * 1536, 6), (1536, 1)):
        path.write_bytes(whole[:cut])
        rows = rows_of(Webdataset(path=str(path), rows_per_part=4)).to_pylist()
        assert [stored(r) for r in rows] == [data for _, data in members[:left]]


@pytest.mark.parametrize("form", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_members_are_those_that_tarfile_finds(tmp_path: Path, form: int) -> None:
    draw = random.Random(form)
    path = tmp_path / "a.tar"
    with tarfile.open(path, "w", format=form) as archive:
        for i in range(300):
            stem = draw.choice(["", "a/", "é" * 20 + "/", "deep/" * draw.randrange(18, 24)])
            info = tarfile.TarInfo(f"{stem}{i}{'x' * draw.randrange(60)}.jpg")
            info.mtime = draw.choice([0, 1_700_000_000])
            info.type = draw.choice([tarfile.REGTYPE] * 6 + [tarfile.AREGTYPE, tarfile.DIRTYPE, tarfile.SYMTYPE])
            info.size = draw.choice([0, 1, 511, 512, 513, 5000]) if info.isreg() else 0
            archive.addfile(info, io.BytesIO(bytes(info.size)))
    with tarfile.open(path) as archive:
        expected = [(m.name, m.offset_data, m.size) for m in archive if m.isreg()]
    with pa.OSFile(str(path)) as file:
        assert list(module._files(file, "a.tar")) == expected


def test_links_and_folders_are_no_samples(tmp_path: Path, rows_of: Any) -> None:
    path = tmp_path / "a.tar"
    with tarfile.open(path, "w") as archive:
        link = tarfile.TarInfo("evil.jpg")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        archive.addfile(link)
        folder = tarfile.TarInfo("folder.jpg")
        folder.type = tarfile.DIRTYPE
        archive.addfile(folder)
        good = tarfile.TarInfo("../../good.jpg")
        good.size = 1
        archive.addfile(good, io.BytesIO(b"1"))
    rows = rows_of(Webdataset(path=str(path))).to_pylist()
    assert [(r["local_path"], stored(r)) for r in rows] == [(str(path), b"1")]


def test_nothing_and_not_a_tar(tmp_path: Path, plan: Any) -> None:
    empty = write_tar(tmp_path / "a.tar", [])
    with pytest.raises(UserError, match="the source is empty"):
        plan(Webdataset(path=empty))
    (tmp_path / "b.tar").write_bytes(b"no tar at all" * 100)
    with pytest.raises(UserError, match=r"b\.tar is not a tar file"):
        plan(Webdataset(path=str(tmp_path / "b.tar")))
    (tmp_path / "c.tar").write_bytes(gzip.compress(Path(empty).read_bytes()))
    with pytest.raises(UserError, match=r"c\.tar is compressed"):
        plan(Webdataset(path=str(tmp_path / "c.tar")))
    with pytest.raises(NotFoundError, match="not there"):
        plan(Webdataset(path=str(tmp_path / "d.tar")))


def test_growth(tmp_path: Path, plan: Any) -> None:
    write_tar(tmp_path / "b.tar", img2dataset(5))
    source = Webdataset(path=str(tmp_path), rows_per_part=2)
    before = plan(source)
    assert [(c.start, c.rows) for c in before] == [(0, 2), (2, 2), (4, 1)]
    write_tar(tmp_path / "a.tar", img2dataset(1))
    assert plan(source)[1:] == before
