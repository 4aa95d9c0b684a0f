"""What a messy source gives, by the commands that people use: rows, reasons, and one line for whatever is no row."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

from catalog.database import sql
from catalog.dataset import Catalog
from flows.build.build import build_here
from flows.build.context import BuildContext
from flows.build.plan import make_plan
from flows.build.progress import Display
from flows.build.source_notes import of_version
from flows.build.spec import BuildSpec
from flows.explore.show import describe
from tests.pictures import jpeg

QUERY = "select s.url, s.caption, s.row_fault, i.reason, i.detail from d.source s join d.images i using (sample_id)"


class Heard(Display):
    """Keeps the lines that a build shows."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def message(self, text: str) -> None:
        self.lines.append(text)


def build(
    tmp_path: Path, source: dict[str, Any], *stages: dict[str, Any]
) -> tuple[list[dict[str, Any]], list[str], Any]:
    """Build in this process; return source and images by row, the lines shown, and the version."""
    path = tmp_path / "recipe.yaml"
    guards = {"no_samples": False, "outage": False}  # some of these sources have no row that can be fetched
    chosen = stages or ({"use": "download", "retries": 0, "timeout_s": 5},)
    path.write_text(yaml.safe_dump({"dataset": "d", "source": source, "stages": list(chosen), "guards": guards}))
    heard = Heard()
    spec = BuildSpec.read(path, catalog=str(tmp_path / "catalog"), executor="inline")
    outcome = build_here(spec, BuildContext(heard))
    rows = sql(Catalog(tmp_path / "catalog"), QUERY + " order by s.sample_id").to_pylist() if not stages else []
    return rows, heard.lines, outcome.version


def test_a_line_that_is_no_record_is_no_bad_url(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("url,caption,n\n/x.jpg,a,1\nhttp://h/,b,c,1,2\n,d,4\n")
    rows, lines, version = build(tmp_path, {"use": "csv", "path": str(tmp_path / "a.csv")})
    assert [(r["reason"], r["detail"]) for r in rows][1] == ("bad_row", "5 fields, expected 3: http://h/,b,c,1,2")
    assert [r["reason"] for r in rows] == [
        "bad_url",
        "bad_row",
        "bad_url",
    ]  # the last has no URL: the table's own fault
    assert f"source: lines that are not records (bad_row): 1 (e.g. {tmp_path}/a.csv, near row 0)" in lines
    assert [str(note) for note in of_version(version)] == [
        line.removeprefix("source: ") for line in lines if line.startswith("source: ")
    ]


def test_values_that_were_lost_are_said_once_and_kept_with_every_version(tmp_path: Path) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    (folder / "a.csv").write_text("url,n\n" + "u,1\n" * 10_000 + "u,x\nu,y\n")
    keep = {"use": "filter", "where": "url is not null"}
    _, lines, version = build(tmp_path, {"use": "csv", "path": str(folder)}, keep)
    expected = f"values of column 'n' that are not int64 and became null: 2 (e.g. {folder}/a.csv, near row 10,000)"
    assert lines == [f"source: {expected}"]
    (folder / "b.csv").write_text("url,n\nv,1\n")
    _, lines, version = build(tmp_path, {"use": "csv", "path": str(folder)}, keep)
    assert not lines  # of what was read now, all could be
    assert version.number == 2
    assert [str(note) for note in of_version(version)] == [expected]
    assert expected.split(":")[0] in json.dumps(describe(version)["stages"])


def test_growth_by_a_column_downloads_nothing_again(tmp_path: Path) -> None:
    folder, pictures = tmp_path / "in", tmp_path / "pictures"
    folder.mkdir()
    pictures.mkdir()
    pq.write_table(pa.table({"url": ["http://127.0.0.1:9/a.jpg"], "caption": ["a"]}), folder / "a.parquet")
    _, _, one = build(tmp_path, {"use": "parquet", "path": str(folder)})
    pq.write_table(
        pa.table({"url": ["http://127.0.0.1:9/b.jpg"], "caption": ["b"], "punsafe": [0.25]}), folder / "b.parquet"
    )
    _, _, two = build(tmp_path, {"use": "parquet", "path": str(folder)})
    dataset = Catalog(tmp_path / "catalog").dataset("d")
    before, after = ({f.path for f in dataset.files(v, "images")} for v in (one, two))
    assert before < after
    found = sql(Catalog(tmp_path / "catalog"), "select url, punsafe from d.source order by sample_id").to_pylist()
    assert [r["punsafe"] for r in found] == [None, 0.25]
    assert [str(note) for note in of_version(two)] == [
        f"files without column 'punsafe', which is null in their rows: 1 (e.g. {folder}/a.parquet)"
    ]
    fresh = tmp_path / "fresh"
    fresh.mkdir()
    build(fresh, {"use": "parquet", "path": str(folder)})
    whole = sql(Catalog(fresh / "catalog"), "select url, punsafe from d.source order by sample_id").to_pylist()
    assert whole == found


@pytest.fixture
def messy(tmp_path: Path) -> Path:
    folder = tmp_path / "in"
    folder.mkdir()
    (folder / "_DSC.JPG").write_bytes(jpeg(64, 64, 0))
    (folder / "a.img").write_bytes(jpeg(64, 64, 1))
    (folder / "A.TXT").write_text("a caption")
    (folder / ".hidden.jpg").write_bytes(jpeg(64, 64, 2))
    (folder / "notes.md").write_text("no picture")
    (folder / "link.jpg").symlink_to("/etc/passwd")
    (folder / "empty.jpg").touch()
    return folder


EXPECTED = {
    "hidden files or folders skipped": (1, ".hidden.jpg"),
    "links not followed (`follow_links: true` follows them)": (1, "link.jpg"),
    "files that are not pictures": (1, "notes.md"),
}


def test_the_plan_and_the_build_say_what_is_no_row(tmp_path: Path, messy: Path) -> None:
    rows, _, version = build(tmp_path, {"use": "folder", "path": str(messy)})
    assert {Path(r["url"]).name: (r["caption"], r["reason"]) for r in rows} == {
        "_DSC.JPG": (None, None), "a.img": ("a caption", None), "empty.jpg": (None, "empty_body"),
    }  # fmt: skip
    assert {n.what: (n.number, Path(n.example).name) for n in of_version(version)} == EXPECTED
    spec = BuildSpec.read(tmp_path / "recipe.yaml", catalog=str(tmp_path / "catalog"))
    recipe = spec.checked
    assert make_plan(recipe, spec.dataset()).notes == tuple(of_version(version))


@pytest.mark.slow
def test_by_the_command_line(tmp_path: Path, messy: Path) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text(
        yaml.safe_dump(
            {"dataset": "d", "source": {"use": "folder", "path": str(messy)}, "stages": [{"use": "download"}]}
        )
    )
    espalier = [str(Path(sys.executable).with_name("espalier"))]

    def run(*words: str) -> subprocess.CompletedProcess[str]:
        more = ["--catalog", str(tmp_path / "catalog")]
        return subprocess.run([*espalier, *words, *more], capture_output=True, text=True, check=True, timeout=300)

    shown = run("plan", str(path)).stdout
    assert all(f"source: {what}: {number} (e.g. {messy}/{name})" in shown for what, (number, name) in EXPECTED.items())
    planned = json.loads(run("plan", str(path), "--json").stdout)
    assert {n["what"]: (n["number"], Path(n["example"]).name) for n in planned[0]["notes"]} == EXPECTED
    made = run("build", str(path), "--executor", "inline", "--json")
    assert all(f"source: {what}: {number}" in made.stderr for what, (number, _) in EXPECTED.items())
    assert {n["what"] for n in json.loads(made.stdout)["source_notes"]} == set(EXPECTED)


def test_samples_without_a_picture_and_files_with_holes_have_reasons_of_their_own(tmp_path: Path) -> None:
    import io
    import tarfile

    with tarfile.open(tmp_path / "a.tar", "w") as archive:
        for name, data in (("0.jpg", jpeg(64, 64, 0)), ("0.txt", b"zero"), ("1.txt", b"alone"), ("2.npy", b"x")):
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    rows, _, _ = build(tmp_path, {"use": "webdataset", "path": str(tmp_path / "a.tar")})
    assert [(r["reason"], r["detail"], r["caption"]) for r in rows] == [
        (None, None, "zero"), ("no_image_member", "it has 1.txt", "alone"), ("no_image_member", "it has 2.npy", None),
    ]  # fmt: skip


def test_captions_that_are_not_utf8_are_said_and_kept_with_the_version(tmp_path: Path) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    for name, caption in (("a", b"caf\xe9"), ("b", "caf\u00e9".encode("utf-16"))):
        (folder / f"{name}.jpg").write_bytes(jpeg(64, 64, ord(name)))
        (folder / f"{name}.txt").write_bytes(caption)
    rows, lines, version = build(tmp_path, {"use": "folder", "path": str(folder)})
    assert [row["caption"] for row in rows] == ["caf\ufffd", "caf\u00e9"]
    expected = f"rows whose text is not UTF-8, with U+FFFD for what could not be decoded: 1 (e.g. {folder}/a.txt)"
    assert lines[0] == f"source: {expected}"
    assert [str(note) for note in of_version(version)] == [expected]
