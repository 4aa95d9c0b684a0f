import io
import os
import shutil
import socket
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from catalog.errors import NotFoundError, UserError
from catalog.schema import local_file
from tasks.sources import Folder


def picture(path: Path, seed: int = 0) -> bytes:
    path.parent.mkdir(parents=True, exist_ok=True)
    out = io.BytesIO()
    pixels = np.random.default_rng(seed).integers(0, 255, (8, 8, 3), np.uint8)
    Image.fromarray(pixels).save(out, "PNG" if path.suffix.lower() == ".png" else "JPEG")
    path.write_bytes(out.getvalue())
    return out.getvalue()


def test_tree(tmp_path: Path, rows_of: Any) -> None:
    for name in ("cat/b.jpg", "cat/a.PNG", "dog/c.jpeg", "cat/.hidden.jpg", "_own/_d.jpg", "dog/notes.md"):
        picture(tmp_path / name)
    (tmp_path / "cat" / "b.txt").write_bytes(b"\xef\xbb\xbfa cat\0 caf\xe9\n")
    (tmp_path / "cat" / "a.txt").write_text("")
    rows = rows_of(Folder(path=str(tmp_path))).to_pylist()
    assert [Path(r["local_path"]).relative_to(tmp_path).as_posix() for r in rows] == [
        "_own/_d.jpg",
        "cat/a.PNG",
        "cat/b.jpg",
        "dog/c.jpeg",
    ]
    assert [r["caption"] for r in rows] == [None, None, "a cat caf�", None]
    assert [r["label"] for r in rows] == ["_own", "cat", "cat", "dog"]
    assert all(
        r["local_offset"] is None and Path(r["local_path"]).is_file() and r["url"] == r["local_path"] for r in rows
    )
    assert rows_of(Folder(path=str(tmp_path), label="none")).column("label").to_pylist() == [None] * 4


def test_a_new_file_changes_only_later_chunks_of_its_folder(tmp_path: Path, plan: Any, rows_of: Any) -> None:
    for i in range(7):
        picture(tmp_path / "b" / f"{i}.jpg", i)
        picture(tmp_path / "c" / f"{i}.jpg", i)
    source = Folder(path=str(tmp_path), rows_per_part=3)
    before = plan(source)
    assert [(Path(c.uri).name, c.start, c.rows) for c in before] == [
        ("b", 0, 3), ("b", 3, 3), ("b", 6, 1), ("c", 0, 3), ("c", 3, 3), ("c", 6, 1),
    ]  # fmt: skip
    picture(tmp_path / "b" / "8.jpg")
    picture(tmp_path / "a" / "x.jpg")
    after = plan(source)
    assert after[0].uri.endswith("/a")
    assert after[1:3] == before[:2]
    assert after[3] != before[2]
    assert after[4:] == before[3:]
    picture(tmp_path / "c" / "5.jpg", 99)  # other bytes under an old name
    changed = plan(source)
    assert [c for c in after if c not in changed] == [after[5]]
    (tmp_path / "c" / "6.txt").write_text("a caption")
    assert [c for c in changed if c not in plan(source)] == [changed[6]]
    assert rows_of(source).num_rows == 16


def test_a_copy_elsewhere_is_another_source(tmp_path: Path, plan: Any) -> None:
    picture(tmp_path / "a" / "x" / "1.jpg")
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    first, second = (plan(Folder(path=str(tmp_path / name)))[0] for name in "ab")
    assert first.identity != second.identity  # rows say where the bytes are


def test_listing_that_changed_since_the_plan(tmp_path: Path, plan: Any) -> None:
    picture(tmp_path / "b.jpg")
    picture(tmp_path / "d.jpg")
    source = Folder(path=str(tmp_path))
    chunk = plan(source)[0]
    picture(tmp_path / "a.jpg")  # not between its files: they are what they were
    (rows,) = source.open("cpu", {})(iter([chunk.table()]))
    assert [Path(p).name for p in rows.column("local_path").to_pylist()] == ["b.jpg", "d.jpg"]
    picture(tmp_path / "c.jpg")
    with pytest.raises(UserError, match="files were added or removed after it was planned"):
        list(source.open("cpu", {})(iter([chunk.table()])))


def test_names_that_are_not_utf8(tmp_path: Path, rows_of: Any) -> None:
    good = picture(tmp_path / "a.jpg")
    with open(str(tmp_path).encode() + b"/caf\xe9.jpg", "wb") as file:  # noqa: PTH123  # a Path has no bytes
        file.write(good)
    (Path(os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9.txt"))).write_text("coffee")
    folder = Path(os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9"))
    picture(folder / "b.jpg", 1)
    rows = rows_of(Folder(path=str(tmp_path)))
    assert [Path(p).name for p in rows.column("url").to_pylist()] == ["a.jpg", "caf?.jpg", "b.jpg"]
    assert [Path(local_file(p)).is_file() for p in rows.column("local_path").to_pylist()] == [True] * 3
    assert rows.column("caption").to_pylist() == [None, "coffee", None]
    assert rows.column("label").to_pylist() == [tmp_path.name, tmp_path.name, "caf?"]


def test_an_empty_folder_is_refused(tmp_path: Path, plan: Any) -> None:
    (tmp_path / "a.txt").write_text("no image")
    with pytest.raises(UserError, match="the source is empty"):
        plan(Folder(path=str(tmp_path)))
    with pytest.raises(NotFoundError, match="does not exist"):
        plan(Folder(path=str(tmp_path / "none")))
    picture(tmp_path / "b.jpg")
    with pytest.raises(UserError, match="is a file; expected a folder"):
        plan(Folder(path=str(tmp_path / "b.jpg")))
    with pytest.raises(UserError, match="is a pattern; expected a folder"):
        plan(Folder(path=str(tmp_path / "*.jpg")))


def encoded(format_: str) -> bytes:
    out = io.BytesIO()
    Image.new("RGB", (8, 8), (200, 10, 10)).save(out, format_)
    return out.getvalue()


def test_pictures_are_recognised_by_their_bytes(tmp_path: Path, rows_of: Any, notes_of: Any) -> None:
    formats = ["JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "AVIF"]
    for format_ in formats:
        (tmp_path / f"{format_}.img").write_bytes(encoded(format_))
        (tmp_path / format_).write_bytes(encoded(format_))
    for name in ("a.jfif", "b.JPE", "c.avif", "d.heic"):
        (tmp_path / name).write_bytes(encoded("JPEG"))
    for name, data in (("x.dat", b"no picture"), ("empty", b""), ("y.pdf", b"%PDF-1.7"), ("z.md", encoded("PNG"))):
        (tmp_path / name).write_bytes(data)
    source = Folder(path=str(tmp_path))
    names = [Path(p).name for p in rows_of(source).column("url").to_pylist()]
    assert names == sorted([*formats, *(f"{f}.img" for f in formats), "a.jfif", "b.JPE", "c.avif", "d.heic"])
    assert notes_of(source) == [f"files that are not pictures: 4 (e.g. {tmp_path}/empty)"]


def test_captions_are_found(tmp_path: Path, rows_of: Any, notes_of: Any) -> None:
    for name in ("UP.JPG", "two.JPG", "a.jpg", "A.jpg", "b.jpg", "b.png", "c.d.jpg", "e.jpg", "f.jpg", "g", "H.jpg"):
        (tmp_path / name).write_bytes(encoded("JPEG"))
    for name in (
        "UP.TXT",
        "two.txt",
        "A.txt",
        "b.txt",
        "b.png.txt",
        "c.d.txt",
        "E.Txt",
        "f.jpg.TXT",
        "g.txt",
        "h.txt",
        "H.txt",
        "no.txt",
    ):
        (tmp_path / name).write_text(name)
    source = Folder(path=str(tmp_path))
    rows = rows_of(source).to_pylist()
    assert {Path(r["url"]).name: r["caption"] for r in rows} == {
        "UP.JPG": "UP.TXT", "two.JPG": "two.txt", "A.jpg": "A.txt", "a.jpg": None, "b.jpg": "b.txt",
        "b.png": "b.png.txt", "c.d.jpg": "c.d.txt", "e.jpg": "E.Txt", "f.jpg": "f.jpg.TXT", "g": "g.txt",
        "H.jpg": "H.txt",
    }  # fmt: skip
    assert notes_of(source) == [f"text files without a picture: 2 (e.g. {tmp_path}/h.txt)"]


def test_nothing_outside_is_read_through_a_link(tmp_path: Path, rows_of: Any, notes_of: Any, plan: Any) -> None:
    inside, outside = tmp_path / "in", tmp_path / "out"
    picture(inside / "a.jpg")
    secret = picture(outside / "secret.jpg")
    (outside / "b.txt").write_text("a secret")
    (inside / "a.txt").symlink_to(outside / "b.txt")
    (inside / "b.jpg").symlink_to(outside / "secret.jpg")
    (inside / "there").symlink_to(outside)
    (inside / "again").symlink_to(inside)
    (inside / "dangling.jpg").symlink_to(tmp_path / "none")
    os.mkfifo(inside / "pipe.jpg")
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(inside / "s.jpg"))
        source = Folder(path=str(inside))
        assert [(Path(r["url"]).name, r["caption"]) for r in rows_of(source).to_pylist()] == [("a.jpg", None)]
        assert notes_of(source) == [
            f"links not followed (`follow_links: true` follows them): 5 (e.g. {inside}/a.txt)",
            f"devices, pipes and sockets skipped: 2 (e.g. {inside}/pipe.jpg)",
        ]
        followed = Folder(path=str(inside), follow_links=True)
        rows = rows_of(followed).to_pylist()
        assert [(Path(r["url"]).name, r["caption"]) for r in rows] == [
            ("a.jpg", "a secret"), ("b.jpg", None), ("secret.jpg", None),
        ]  # fmt: skip
        assert Path(rows[2]["local_path"]).read_bytes() == secret
        assert any("could not be read" in note and "dangling" in note for note in notes_of(followed))


def test_deep_trees_and_folders_that_may_not_be_read(tmp_path: Path, rows_of: Any, notes_of: Any) -> None:
    picture(tmp_path / "a.jpg")
    folder = os.open(tmp_path, os.O_RDONLY)
    for _ in range(100):  # deeper than a path can name
        os.mkdir("d" * 60, dir_fd=folder)
        inner = os.open("d" * 60, os.O_RDONLY, dir_fd=folder)
        os.close(folder)
        folder = inner
    os.close(folder)
    source = Folder(path=str(tmp_path))
    assert rows_of(source).num_rows == 1
    assert [note.partition(":")[0] for note in notes_of(source)] == ["files or folders that could not be read"]
    shutil.rmtree(tmp_path / ("d" * 60))


def test_walking_holds_one_folder_in_memory(tmp_path: Path) -> None:
    from tasks.sources._files import walk
    from tasks.sources._notes import Notes

    for i in range(30):
        (tmp_path / f"{i:02}" / "x").mkdir(parents=True)
        for j in range(5):
            (tmp_path / f"{i:02}" / "x" / f"{j}.jpg").touch()
    walked = walk(str(tmp_path), Notes())
    seen = [(folder, len(files)) for folder, files in walked]
    assert max(count for _, count in seen) == 5
    assert sum(count for _, count in seen) == 150
    assert [folder for folder, count in seen if count] == [f"{tmp_path}/{i:02}/x" for i in range(30)]


def test_an_empty_source_reports_what_it_skipped(tmp_path: Path, plan: Any) -> None:
    (tmp_path / "a.doc").write_text("no picture")
    with pytest.raises(
        UserError, match=r"the source is empty: no row in .* \(files that are not pictures: 1 \(e\.g\. "
    ):
        plan(Folder(path=str(tmp_path)))
