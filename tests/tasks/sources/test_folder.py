import io
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from catalog.errors import NotFoundError, UserError
from tasks.sources import Folder


def picture(path: Path, seed: int = 0) -> bytes:
    path.parent.mkdir(parents=True, exist_ok=True)
    out = io.BytesIO()
    pixels = np.random.default_rng(seed).integers(0, 255, (8, 8, 3), np.uint8)
    Image.fromarray(pixels).save(out, "PNG" if path.suffix.lower() == ".png" else "JPEG")
    path.write_bytes(out.getvalue())
    return out.getvalue()


def test_tree(tmp_path: Path, rows_of: Any) -> None:
    for name in ("cat/b.jpg", "cat/a.PNG", "dog/c.jpeg", "cat/.hidden.jpg", "_skip/d.jpg", "dog/notes.md"):
        picture(tmp_path / name)
    (tmp_path / "cat" / "b.txt").write_bytes(b"\xef\xbb\xbfa cat\0 caf\xe9\n")
    (tmp_path / "cat" / "a.txt").write_text("")
    rows = rows_of(Folder(path=str(tmp_path))).to_pylist()
    assert [Path(r["local_path"]).relative_to(tmp_path).as_posix() for r in rows] == [
        "cat/a.PNG",
        "cat/b.jpg",
        "dog/c.jpeg",
    ]
    assert [r["caption"] for r in rows] == [None, "a cat caf�", None]
    assert [r["label"] for r in rows] == ["cat", "cat", "dog"]
    assert all(
        r["local_offset"] is None and Path(r["local_path"]).is_file() and r["url"] == r["local_path"] for r in rows
    )
    assert rows_of(Folder(path=str(tmp_path), label="none")).column("label").to_pylist() == [None] * 3


def test_growth_makes_parts_only_from_its_place_on(tmp_path: Path, plan: Any, rows_of: Any) -> None:
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
    source = Folder(path=str(tmp_path))
    chunk = plan(source)[0]
    picture(tmp_path / "a.jpg")
    with pytest.raises(UserError, match="files came or went since the plan"):
        list(source.open("cpu", {})(iter([chunk.table()])))


def test_names_that_are_not_utf8(tmp_path: Path, rows_of: Any) -> None:
    good = picture(tmp_path / "a.jpg")
    with open(str(tmp_path).encode() + b"/caf\xe9.jpg", "wb") as file:  # noqa: PTH123  # a Path has no bytes
        file.write(good)
    rows = rows_of(Folder(path=str(tmp_path)))
    assert [Path(p).name for p in rows.column("local_path").to_pylist()] == ["a.jpg", "caf?.jpg"]


def test_nothing(tmp_path: Path, plan: Any) -> None:
    (tmp_path / "a.txt").write_text("no image")
    with pytest.raises(UserError, match="the source is empty"):
        plan(Folder(path=str(tmp_path)))
    with pytest.raises(NotFoundError, match="is not there"):
        plan(Folder(path=str(tmp_path / "none")))
    picture(tmp_path / "b.jpg")
    with pytest.raises(UserError, match="is a file; expected a folder"):
        plan(Folder(path=str(tmp_path / "b.jpg")))
    with pytest.raises(UserError, match="is a pattern; expected a folder"):
        plan(Folder(path=str(tmp_path / "*.jpg")))
