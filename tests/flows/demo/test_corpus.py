import hashlib
from collections import Counter, defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from catalog.errors import UserError
from flows.demo import corpus
from flows.demo.corpus import MAX_ROWS, MIN_ROWS, Plan, plant
from flows.demo.hazards import BY_NAME, HAZARDS
from flows.demo.photographs import PHOTOGRAPHS
from flows.demo.pictures import assets
from tasks import images


def _digest(folder: Path) -> dict[str, str]:
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def _truth(plan: Plan) -> list[dict[str, Any]]:
    return pq.read_table(plan.truth).to_pylist()


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Plan:
    return plant(tmp_path_factory.mktemp("small"), MIN_ROWS, seed=1, base_url="http://127.0.0.1:1111")


def test_the_same_seed_plants_the_same_bytes_on_any_number_of_cores(
    web: Plan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("os.cpu_count", lambda: 1)
    again = plant(tmp_path, web.rows, seed=3, base_url=web.base_url)
    assert _digest(again.folder) == _digest(web.folder)


def test_another_seed_plants_another_web(small: Plan) -> None:
    other = corpus._Planner(MIN_ROWS, seed=2).run().table()
    assert other.num_rows == small.rows
    assert not other.select(["url"]).equals(pq.read_table(small.folder / "rows.parquet", columns=["url"]))


def test_planting_again_writes_no_picture_and_only_moves_the_address(small: Plan) -> None:
    before = {path: path.stat().st_mtime_ns for path in (small.folder / "files").iterdir()}
    there = [row["url"] or "" for row in _truth(small)]
    moved = plant(small.folder, MIN_ROWS, seed=1, base_url="http://127.0.0.1:2222")
    assert {path: path.stat().st_mtime_ns for path in (small.folder / "files").iterdir()} == before
    assert [url.replace(":1111/", ":2222/") for url in there] == [row["url"] or "" for row in _truth(moved)]
    plant(small.folder, MIN_ROWS, seed=1, base_url=small.base_url)


def test_a_half_planted_folder_is_planted_anew(small: Plan) -> None:
    whole = _digest(small.folder)
    (small.folder / "planted.json").unlink()
    next(iter((small.folder / "files").glob("0*.jpg"))).write_bytes(b"half")
    (small.folder / "files" / "left-over.jpg").write_bytes(b"of another plan")
    plant(small.folder, MIN_ROWS, seed=1, base_url=small.base_url)
    assert _digest(small.folder) == whole


def test_input_and_truth_are_about_the_same_rows(web: Plan) -> None:
    truth = _truth(web)
    parts = sorted(web.urls.glob("*.parquet"))
    rows = [row for part in parts for row in pq.read_table(part).to_pylist()]
    assert len(parts) == 2
    assert len(rows) == len(truth) == 400
    assert [(row["URL"], row["TEXT"]) for row in rows] == [(row["url"], row["caption"]) for row in truth]
    assert {"hazard", "concept", "duplicate_of"}.isdisjoint(rows[0])
    assert len({row["url"] for row in truth}) == 400


def test_every_hazard_is_planted(web: Plan) -> None:
    planted = Counter(row["hazard"] for row in _truth(web))
    assert {hazard.name for hazard in HAZARDS} == set(planted) - {None}
    for row in _truth(web):
        assert (row["expected_stage"] is None) == (row["hazard"] is None or BY_NAME[row["hazard"]].survives)
    for name, data in assets().items():
        assert (web.folder / "files" / name).read_bytes() == data


def test_duplicates_are_what_they_are_called(web: Plan) -> None:
    by_url = {row["url"]: row for row in _truth(web)}
    kinds = Counter(row["duplicate_kind"] for row in by_url.values())
    assert kinds["exact"] == round(0.08 * 400)
    assert kinds["reencoded"] == round(0.12 * 400)
    for row in by_url.values():
        if row["duplicate_kind"] is None:
            continue
        original = by_url[row["duplicate_of"]]
        assert original["duplicate_kind"] is None
        assert original["hazard"] is None
        assert row["picture"] == original["picture"]
        assert (row["file"] == original["file"]) == (row["duplicate_kind"] == "exact")
        if row["duplicate_kind"] == "reencoded":
            assert (web.folder / row["file"]).read_bytes() != (web.folder / original["file"]).read_bytes()


def test_a_perceptual_hash_of_its_own_finds_copies_and_tells_pictures_apart(web: Plan) -> None:
    """The catalog's hash knows nothing of how crops were chosen: copies are near, other pictures are not."""
    files = {row["file"]: row["picture"] for row in _truth(web) if row["picture"] is not None and not row["hazard"]}
    hashes = [images.phash(images.decode((web.folder / file).read_bytes())) for file in files]
    bits = np.array(hashes, np.int64).view(np.uint64)
    distance = np.bitwise_count(bits[:, None] ^ bits[None])
    picture = np.array(list(files.values()))
    upper = np.triu(np.ones_like(distance, bool), 1)
    same = (picture[:, None] == picture) & upper
    assert same.sum() >= 40
    assert (distance[same] <= 8).mean() > 0.9
    assert (distance[~same & upper] <= 6).sum() <= 2


def test_wrong_captions_are_of_another_concept(web: Plan) -> None:
    """A right caption names its photograph by a word that no other photograph's captions have, more often than not."""
    rows = [row for row in _truth(web) if row["hazard"] is None]
    wrong = [row for row in rows if row["wrong_caption"]]
    assert len(wrong) == round(0.04 * len(rows))
    subjects = {photo.name: (*photo.subjects, photo.name) for photo in PHOTOGRAPHS}

    def names(row: dict[str, Any], concept: str) -> bool:
        return any(subject.lower() in row["caption"].lower() for subject in subjects[concept])

    assert not any(names(row, row["concept"]) for row in wrong)
    assert all(names(row, row["concept"]) for row in rows if not row["wrong_caption"])


def test_picture_sizes_and_formats(web: Plan) -> None:
    sizes: list[tuple[int, int]] = []
    formats: Counter[str] = Counter()
    for row in _truth(web):
        if row["hazard"] is None:
            header = images.inspect((web.folder / row["file"]).read_bytes())
            sizes.append((header.width, header.height))
            formats[header.format] += 1
    assert min(map(min, sizes)) >= 85
    assert max(map(max, sizes)) <= 1150
    assert set(formats) == {"jpg", "png", "webp"}
    assert formats["jpg"] > 0.6 * len(sizes)


def test_impossible_numbers_of_rows_are_refused_in_one_line(tmp_path: Path) -> None:
    for rows in (-1, 0, MIN_ROWS - 1, MAX_ROWS + 1, 10**9):
        with pytest.raises(UserError, match=f"at least {MIN_ROWS} rows.* at most {MAX_ROWS}, not {rows}$"):
            plant(tmp_path, rows)
    assert not (tmp_path / "truth.parquet").exists()


def test_the_concepts_are_all_there_and_unequal(web: Plan) -> None:
    concepts: defaultdict[str, int] = defaultdict(int)
    for row in _truth(web):
        if row["concept"]:
            concepts[row["concept"]] += 1
    assert set(concepts) == {photo.name for photo in PHOTOGRAPHS}
    assert max(concepts.values()) > 1.5 * min(concepts.values())


def test_truth_is_an_arrow_table_that_explains_itself(web: Plan) -> None:
    schema = pq.read_schema(web.truth)
    assert all(field.metadata and b"about" in field.metadata for field in schema)
    assert schema.field("picture").type == pa.int32()
