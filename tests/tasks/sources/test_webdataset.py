import gzip
import io
import json
import random
import subprocess
import tarfile
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from webdataset.tariterators import group_by_keys, tar_file_iterator

from catalog.errors import NotFoundError, UserError
from tasks.sources import Notes, Webdataset, _tar
from tasks.sources._samples import samples, scattered
from tasks.sources._tar import opened


def write_tar(path: Path, members: list[tuple[str, bytes]], form: int = tarfile.PAX_FORMAT) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w", format=form) as archive:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return str(path)


def img2dataset(n: int) -> list[tuple[str, bytes]]:
    """Return the members of a tar in img2dataset's layout."""
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
        ("y/a.webp", b"4"), ("__key__.json", b"{}"), ("__meta__/a.jpg", b"0"), (f"{long_name}.jpg", b"6"),
        ("only.txt", b"text"),
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
    assert [r["row_fault"] for r in rows] == [None if image else "no_image_member" for image in images]


def test_text_next_to_json(tmp_path: Path, rows_of: Any) -> None:
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
        assert [m[:3] for m in _tar.members(file, "a.tar", Notes())] == expected


PICTURE = b"\xff\xd8\xff a picture "


def keyed(rows: Any) -> list[tuple[str, bytes | None, str | None, str | None]]:
    """Return member or key, stored bytes, caption and fault of every row."""
    return [
        (r["url"].partition("#")[2], stored(r) if r["local_path"] else None, r["caption"], r.get("row_fault"))
        for r in rows.to_pylist()
    ]


def test_members_in_any_place(tmp_path: Path, rows_of: Any, plan: Any) -> None:
    jpg, txt = [(f"{i}.jpg", b"%d" % i) for i in range(5)], [(f"{i}.txt", b"c%d" % i) for i in range(5)]
    expected = [(f"{i}.jpg", b"%d" % i, f"c{i}", None) for i in range(5)]
    for members in (jpg + txt, txt + jpg, [*txt[::-1], *jpg]):
        source = Webdataset(path=write_tar(tmp_path / "a.tar", members), rows_per_part=2)
        assert sorted(keyed(rows_of(source))) == expected
        assert [c.rows for c in plan(source)] == [2, 2, 1]
    mixed = [jpg[0], txt[0], jpg[1], jpg[2], txt[2], txt[1]]
    assert keyed(rows_of(Webdataset(path=write_tar(tmp_path / "b.tar", mixed)))) == [
        expected[0], expected[2], expected[1],
    ]  # fmt: skip


def test_captions_before_pictures_and_several_pictures(tmp_path: Path, rows_of: Any, notes_of: Any) -> None:
    members = [
        ("0.txt", b"zero"), ("0.jpg", b"0"),
        ("1.json", b'{"caption": "one"}'), ("1.png", b"1p"), ("1.jpg", b"1j"), ("1.seg.png", b"1s"),
        ("2.left.jpg", b"2l"), ("2.right.jpg", b"2r"), ("2.right.txt", b"right"), ("2.txt", b"two"),
        ("22.05.jpg", b"5"), ("22.05.txt", b"May"), ("22.06.jpg", b"6"), ("22.06.txt", b"June"), ("22.07.jpg", b"7"),
        ("23.05.jpg", b"8"), ("23.06.txt", b"of another picture"),
        ("002.image.jpg", b"9"), ("002.txt", b"two-part"), ("24.jpg", b"10"), ("24.en.txt", b"English"),
    ]  # fmt: skip
    source = Webdataset(path=write_tar(tmp_path / "a.tar", members))
    rows = rows_of(source)
    assert [(url, data, caption) for url, data, caption, _ in keyed(rows)] == [
        ("0.jpg", b"0", "zero"), ("1.jpg", b"1j", "one"), ("2.left.jpg", b"2l", "two"), ("2.right.jpg", b"2r", "right"),
        ("22.05.jpg", b"5", "May"), ("22.06.jpg", b"6", "June"), ("22.07.jpg", b"7", None), ("23.05.jpg", b"8", None),
        ("002.image.jpg", b"9", "two-part"), ("24.jpg", b"10", "English"),
    ]  # fmt: skip
    assert notes_of(source) == [
        "files of samples that are not read (further pictures, masks, other endings): 3 (e.g. 1.png)"
    ]


def test_pictures_are_recognised_by_their_bytes(tmp_path: Path, rows_of: Any, notes_of: Any) -> None:
    members = [
        ("0.img", PICTURE), ("0.cap", b"dalle"), ("1.bin", b"no picture"), ("2", PICTURE), ("3.avif", b"by its ending"),
        ("4.x", b""), ("4.y", PICTURE), ("5.json", b'{"caption": "alone"}'),
    ]  # fmt: skip
    source = Webdataset(path=write_tar(tmp_path / "a.tar", members))
    assert keyed(rows_of(source)) == [
        ("0.img", PICTURE, "dalle", None), ("1", None, None, "no_image_member"), ("2", PICTURE, None, None),
        ("3.avif", b"by its ending", None, None), ("4.y", PICTURE, None, None), ("5", None, "alone", "no_image_member"),
    ]  # fmt: skip
    assert rows_of(source).column("row_detail").to_pylist()[1] == "it has 1.bin"
    path = tmp_path / "a.tar"
    assert notes_of(source) == [
        "files of samples that are not read (further pictures, masks, other endings): 2 (e.g. 1.bin)",
        f"samples without a picture (no_image_member): 2 (e.g. {path}#1)",
    ]


def test_keys_that_repeat(tmp_path: Path, rows_of: Any, notes_of: Any) -> None:
    """Unambiguous members are paired; an ambiguous picture has no caption, and a reason."""
    a, b, one, two = ("7.jpg", b"A"), ("7.jpg", b"B"), ("7.txt", b"one"), ("7.txt", b"two")
    between = ("8.jpg", b"8")
    cases: list[tuple[list[tuple[str, bytes]], list[tuple[bytes, str | None, str | None]]]] = [
        ([a, one, b, two], [(b"A", "one", None), (b"B", "two", None)]),
        ([one, a, two, b], [(b"A", "one", None), (b"B", "two", None)]),
        ([a, one, between, b, two], [(b"A", "one", None), (b"B", "two", None)]),
        ([a, one, b], [(b"A", None, "duplicate_key"), (b"B", None, "duplicate_key")]),
        ([a, b, one, two], [(b"A", None, "duplicate_key"), (b"B", None, "duplicate_key")]),
        ([a, one, two, b], [(b"A", None, "duplicate_key"), (b"B", None, "duplicate_key")]),
        ([a, between, b], [(b"A", None, "duplicate_key"), (b"B", None, "duplicate_key")]),
        ([one, two, a], [(b"A", None, "duplicate_key")]),
    ]
    for members, expected in cases:
        source = Webdataset(path=write_tar(tmp_path / "a.tar", members))
        found = [row[1:] for row in keyed(rows_of(source)) if row[0] != "8.jpg"]
        assert found == expected, members
        faults = sum(fault is not None for _, _, fault in expected)
        assert any(f"(duplicate_key): {faults} (e.g. {tmp_path}/a.tar#7)" in note for note in notes_of(source)) == (
            faults > 0
        )


def test_members_of_no_sample_are_counted(tmp_path: Path, rows_of: Any, notes_of: Any) -> None:
    mac = b"\0\5\x16\7"
    members = [
        m
        for i in range(2)
        for m in ((f"d/._{i}.jpg", mac), (f"d/{i}.jpg", b"%d" % i), (f"d/._{i}.txt", mac), (f"d/{i}.txt", b"c%d" % i))
    ]
    members += [("__MACOSX/d/0.jpg", mac), ("d/.DS_Store", mac), ("__index__", b"{}")]
    source = Webdataset(path=write_tar(tmp_path / "a.tar", members))
    assert keyed(rows_of(source)) == [("d/0.jpg", b"0", "c0", None), ("d/1.jpg", b"1", "c1", None)]
    assert notes_of(source) == [
        f"hidden files in tars (such as macOS' ._ files) skipped: 6 (e.g. {tmp_path}/a.tar#d/._0.jpg)",
        f"files in tars that describe the tar (__...__) skipped: 1 (e.g. {tmp_path}/a.tar#__index__)",
    ]


@pytest.mark.parametrize("seed", range(25))
def test_no_picture_gets_the_caption_of_another(tmp_path: Path, rows_of: Any, plan: Any, seed: int) -> None:
    """Random tars, with members permuted, duplicated and among junk, against a model that knows the true pairs.

    A picture's bytes and its texts carry the sample's number: what a row joins must be of one sample.
    """
    draw = random.Random(seed)
    members: list[tuple[str, bytes]] = []
    owner_of: dict[str, set[int]] = {}
    for i in range(draw.randrange(1, 30)):
        key = draw.choice([f"{i:03}", f"d/{i}", f"{draw.randrange(5)}", f"a.b/{i}"])
        owner_of.setdefault(key, set()).add(i)
        image = draw.choice(["jpg", "JPG", "png", "img", "x.webp", None])
        mine = [(f"{key}.{image}", PICTURE + b"%d" % i)] if image else []
        mine += [(f"{key}.txt", b"caption %d" % i)] if draw.random() < 0.7 else []
        mine += [(f"{key}.json", json.dumps({"of": i, "caption": f"json {i}"}).encode())] if draw.random() < 0.5 else []
        mine += [(f"{key}.cls", b"%d" % i)] if draw.random() < 0.3 else []
        members += mine
    members += [draw.choice(members) for _ in range(draw.choice([0, 0, 3]) if members else 0)]
    junk = [("._0.jpg", b"\0"), ("__m__", b"x"), (".hidden.txt", b"caption 99"), ("README", b"text"), ("dir/", b"")]
    members += [draw.choice(junk[:4]) for _ in range(draw.randrange(4))]
    how = draw.choice(["whole", "shuffled", "blocks"])
    if how == "shuffled":
        draw.shuffle(members)
    elif how == "blocks":
        members.sort(key=lambda m: m[0].rpartition(".")[2])
    path = write_tar(
        tmp_path / "a.tar", members, draw.choice([tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
    )
    try:
        rows = rows_of(Webdataset(path=path, rows_per_part=draw.choice([1, 3, 100]))).to_pylist()
    except UserError as error:
        if "the source is empty" not in str(error):
            raise
        return
    pictures: list[int] = []
    names = [name.lower() for name, _ in members]
    doubled = {name.partition(".")[0] for name in names if names.count(name) > 1}
    for row in rows:
        said = {int(text.split()[-1]) for text in (row["caption"], row["label"]) if text}
        said |= {row["of"]} if row.get("of") is not None else set()
        if row["local_path"]:
            pictures.append(int(stored(row).removeprefix(PICTURE)))
            key, owners = next((k, o) for k, o in owner_of.items() if pictures[-1] in o)
            assert said <= owners, row
            # Two samples of one key, without a file of one name, are one sample to the format; and where they have one,
            # but come in any order, whole runs of them may come about by chance.
            if len(owners) == 1 or (how != "shuffled" and key.partition(".")[0] in doubled):
                assert said <= {pictures[-1]}, row
        assert row["local_path"] or row["row_fault"] == "no_image_member"
    alone = {i for owners in owner_of.values() if len(owners) == 1 for i in owners}
    there = {int(data.removeprefix(PICTURE)) for _, data in members if data.startswith(PICTURE)}
    assert set(pictures) <= there
    assert set(pictures) & alone == there & alone


def test_links_and_folders_are_no_samples(tmp_path: Path, rows_of: Any, notes_of: Any) -> None:
    path = tmp_path / "a.tar"
    with tarfile.open(path, "w") as archive:
        for name, type_ in (
            ("evil.jpg", tarfile.SYMTYPE), ("hard.jpg", tarfile.LNKTYPE), ("folder.jpg", tarfile.DIRTYPE),
            ("pipe.jpg", tarfile.FIFOTYPE), ("null.jpg", tarfile.CHRTYPE), ("disk.jpg", tarfile.BLKTYPE),
        ):  # fmt: skip
            info = tarfile.TarInfo(name)
            info.type, info.linkname = type_, "/etc/passwd"
            archive.addfile(info)
        good = tarfile.TarInfo("../../good.jpg")
        good.size = 1
        archive.addfile(good, io.BytesIO(b"1"))
    source = Webdataset(path=str(path))
    assert [(r["local_path"], stored(r)) for r in rows_of(source).to_pylist()] == [(str(path), b"1")]
    assert notes_of(source) == [
        f"links in tars: 2 (e.g. {path}#evil.jpg)",
        f"devices and pipes in tars: 3 (e.g. {path}#pipe.jpg)",
    ]


def header(name: str, size: bytes, type_: bytes = b"0") -> bytes:
    """Return a ustar header with a checksum that fits, whatever is in it."""
    block = bytearray(512)
    block[:100] = name.encode().ljust(100, b"\0")
    block[100:108] = b"0000644\0"
    block[124:136] = size.ljust(12, b"\0")
    block[136:148] = b"00000000000\0"
    block[156:157] = type_
    block[257:265] = b"ustar\x0000"
    block[148:156] = b"        "
    block[148:156] = b"%06o\0 " % sum(block)
    return bytes(block)


def pax(records: bytes, type_: bytes = b"x", size: int | None = None) -> bytes:
    """Return a PAX header with the given records."""
    padded = records.ljust(-(-len(records) // 512) * 512, b"\0")
    return header("pax", b"%011o" % (len(records) if size is None else size), type_) + padded


def base256(size: int) -> bytes:
    return (b"\x80" if size >= 0 else b"\xff") + (size % (1 << 88)).to_bytes(11, "big")


FIRST = header("0.jpg", b"%011o" % 5) + b"first".ljust(512, b"\0")
LAST = header("9.jpg", b"%011o" % 4) + b"last".ljust(512, b"\0") + bytes(1024)
HOSTILE = {
    "negative, octal": header("1.jpg", b"-0000001000"),
    "negative, back to itself": header("1.jpg", b"-0000000777"),
    "negative, base 256": header("1.jpg", base256(-512)),
    "negative, far back": header("1.jpg", base256(-(1 << 40))),
    "absurd, octal": header("1.jpg", b"77777777777"),
    "absurd, base 256": header("1.jpg", base256(1 << 80)),
    "no number": header("1.jpg", b"size"),
    "underscores": header("1.jpg", b"0_0000_0001"),
    "pax: absurd": pax(b"30 size=99999999999999999999\n") + header("1.jpg", b"%011o" % 1),
    "pax: negative": pax(b"17 size=-1000000\n") + header("1.jpg", b"%011o" % 1),
    "pax: no number": pax(b"12 size=abc\n") + header("1.jpg", b"%011o" % 1),
    "pax: record of length 0": pax(b"0 size=1\n") + header("1.jpg", b"%011o" % 1),
    "pax: cut": pax(b"99999 path=x") + header("1.jpg", b"%011o" % 1),
    "pax: huge": pax(b"", size=1 << 30),
    "pax: sparse of nothing": pax(b"22 GNU.sparse.major=1\n22 GNU.sparse.minor=0\n")
    + header("1.jpg", b"%011o" % 3)
    + b"xx\n".ljust(512, b"\0"),
    "pax: sparse map": pax(b"27 GNU.sparse.map=1,a,2,b\n") + header("1.jpg", b"%011o" % 3),
    "pax: chain": pax(b"10 a=bcde\n") * 2000,
    "pax: global chain": pax(b"10 a=bcde\n", b"g") * 2000,
    "pax: charset": pax(b"22 hdrcharset=\xff\xfe\xfd\n") + header("1.jpg", b"%011o" % 1),
    "gnu: long name of nothing": header("l", b"%011o" % 0, b"L"),
    "gnu: huge long name": header("l", b"%011o" % (1 << 31), b"L"),
    "gnu: sparse": header("1.jpg", b"%011o" % 3, b"S"),
    "unknown type": header("1.jpg", base256(-1), b"Q"),
    "wrong checksum": header("1.jpg", b"%011o" % 1)[:-1] + b"x",
}  # fmt: skip


@pytest.mark.parametrize("name", HOSTILE)
@pytest.mark.timeout(20)
def test_hostile_headers_end_the_tar_and_nothing_else(tmp_path: Path, rows_of: Any, notes_of: Any, name: str) -> None:
    path = tmp_path / "a.tar"
    path.write_bytes(FIRST + HOSTILE[name] + LAST)
    source = Webdataset(path=str(path))
    rows = [(stored(r) if r["local_path"] else None) for r in rows_of(source).to_pylist()]
    assert rows[0] == b"first"
    damaged = [note for note in notes_of(source) if "damaged tars" in note]
    assert damaged or b"last" in rows or any("a.tar#" in note for note in notes_of(source))  # never silently
    path.write_bytes(HOSTILE[name] + LAST)
    try:
        rows_of(source)
    except UserError as error:
        assert "is not a tar file" in str(error) or "the source is empty" in str(error)  # noqa: PT017


@pytest.mark.parametrize("seed", range(60))
@pytest.mark.timeout(20)
def test_flipped_bytes_never_hang_or_crash(tmp_path: Path, rows_of: Any, seed: int) -> None:
    draw = random.Random(seed)
    form = draw.choice([tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
    path = Path(
        write_tar(
            tmp_path / "a.tar", [("é" * 35 + f"{i}.{e}", b"1" * 300) for i in range(4) for e in ("jpg", "txt")], form
        )
    )
    data = bytearray(path.read_bytes())
    for _ in range(draw.choice([1, 3, 30])):
        data[draw.randrange(len(data))] = draw.randrange(256)
    path.write_bytes(data)
    try:
        rows = rows_of(Webdataset(path=str(path))).to_pylist()
    except UserError:
        return
    for row in rows:
        if row["local_path"]:
            assert row["local_offset"] + row["local_size"] <= len(data)


def test_sparse_files_are_not_pictures(tmp_path: Path, rows_of: Any) -> None:
    """The bytes of GNU's sparse members in the tar are not those of the file."""
    (tmp_path / "sparse").mkdir()
    with (tmp_path / "sparse" / "1.jpg").open("wb") as file:
        file.seek(1 << 20)
        file.write(b"end")
    (tmp_path / "sparse" / "2.jpg").write_bytes(b"2")
    for form in ("gnu", "posix"):
        path = tmp_path / f"{form}.tar"
        command = ["tar", f"--format={form}", "-S", "-cf", str(path), "-C", str(tmp_path / "sparse"), "1.jpg", "2.jpg"]
        subprocess.run(command, check=True)
        with tarfile.open(path) as archive:
            if not any(m.sparse for m in archive):
                pytest.skip("this file system has no files with holes")
        rows = rows_of(Webdataset(path=str(path)))
        found = {key.rpartition("/")[2]: (data, fault) for key, data, _, fault in keyed(rows)}
        assert {data for data, _ in found.values()} == {None, b"2"}
        assert {fault for _, fault in found.values()} == {None, "sparse_member"}


def test_too_many_members_apart(tmp_path: Path) -> None:
    members = [(f"{i}.{e}", b"") for e in ("jpg", "txt") for i in range(4)]
    path = write_tar(tmp_path / "a.tar", members)
    with opened(path) as file:
        apart = scattered(file, path, Notes())
        assert len(list(samples(file, path, apart, Notes(), max_late=8))) == 4
        message = "more than 7 files are not next to others of their sample; sort it by name"
        with pytest.raises(UserError, match=message):
            list(samples(file, path, apart, Notes(), max_late=7))


def test_json_keys_that_only_later_tars_have(tmp_path: Path, rows_of: Any) -> None:
    def sample(i: int, about: Any) -> list[tuple[str, bytes]]:
        return [(f"{i}.jpg", b"x"), (f"{i}.json", json.dumps(about).encode())]

    write_tar(tmp_path / "0.tar", sample(0, {"a": 1, "captions": ["one", "two"], "similarity": None}))
    write_tar(tmp_path / "1.tar", sample(1, {"b": "x", "caption": "three", "similarity": 0.5, "a": 1.5}))
    rows = rows_of(Webdataset(path=str(tmp_path))).to_pylist()
    assert [(r["a"], r["b"], r["similarity"]) for r in rows] == [(1.0, None, None), (1.5, "x", 0.5)]


def test_empty_files_and_files_that_are_not_tars(tmp_path: Path, plan: Any) -> None:
    empty = write_tar(tmp_path / "a.tar", [])
    with pytest.raises(UserError, match="the source is empty"):
        plan(Webdataset(path=empty))
    (tmp_path / "b.tar").write_bytes(b"no tar at all" * 100)
    with pytest.raises(UserError, match=r"b\.tar is not a tar file"):
        plan(Webdataset(path=str(tmp_path / "b.tar")))
    (tmp_path / "c.tar").write_bytes(gzip.compress(Path(empty).read_bytes()))
    with pytest.raises(UserError, match=r"c\.tar is compressed"):
        plan(Webdataset(path=str(tmp_path / "c.tar")))
    with pytest.raises(NotFoundError, match="does not exist"):
        plan(Webdataset(path=str(tmp_path / "d.tar")))


def test_growth(tmp_path: Path, plan: Any) -> None:
    write_tar(tmp_path / "b.tar", img2dataset(5))
    source = Webdataset(path=str(tmp_path), rows_per_part=2)
    before = plan(source)
    assert [(c.start, c.rows) for c in before] == [(0, 2), (2, 2), (4, 1)]
    write_tar(tmp_path / "a.tar", img2dataset(1))
    assert plan(source)[1:] == before


def test_a_tar_appended_to_another_is_counted(tmp_path: Path, notes_of: Any) -> None:
    first = Path(write_tar(tmp_path / "a.tar", img2dataset(1)))
    second = Path(write_tar(tmp_path / "b.tar", img2dataset(2)))
    assert not any("after their end mark" in note for note in notes_of(Webdataset(path=str(tmp_path / "*.tar"))))
    first.write_bytes(first.read_bytes() + second.read_bytes())
    notes = notes_of(Webdataset(path=str(tmp_path / "*.tar")))
    assert [n for n in notes if "tars with bytes after their end mark" in n and "a.tar from byte" in n and ": 1 " in n]
