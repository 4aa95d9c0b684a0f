"""Damaged pictures are downloaded again: the same bytes take their old place, others are a new attempt."""

import itertools
import json
from pathlib import Path

import pytest

from catalog.dataset import Catalog
from catalog.errors import DamagedError
from catalog.parts import describe_part
from catalog.pieces import read_parquet
from catalog.repair import pending
from catalog.takedown.reach import Names
from flows.build.build import build_here
from flows.build.spec import BuildSpec
from flows.explore.failures import begin_retry
from flows.govern.takedown import take_down
from flows.govern.verify import is_settled, verify
from tests.damage import (
    build,
    content,
    damaged_copy,
    dataset_of,
    dataset_root,
    delete,
    empty,
    flip,
    halve,
    named,
    served,
    tar_of,
    truncate,
    url_of,
    zeros,
)
from tests.flows.conftest import Web
from tests.pictures import jpeg

__all__ = ["damaged_copy"]  # the fixture `web`


def test_pictures_that_changed_since_are_another_version(web: Web) -> None:
    """What was made from the old pictures does not stand beside new ones; the old version says what it lacks."""
    dataset, before = dataset_of(web), content(web)
    row = next(row for row in before["images"] if row["shard"])
    with served(web, url_of(web, row["sample_id"]), jpeg(96, 80, 77)):
        flip(Path(web.catalog, "web", row["shard"]))
        assert is_settled(*verify(Catalog(web.catalog), "web", repair=True))
        assert build(web) > 1
        assert dataset.version().number == 2
        now = {r["sample_id"]: r for r in content(web)["images"]}
        assert now[row["sample_id"]]["pixels_sha256"] != row["pixels_sha256"]
        others = {r["sample_id"]: r["bytes"] for r in before["images"] if r["shard"] and r is not row}
        assert {i: now[i]["bytes"] for i in others} == others
        assert verify(Catalog(web.catalog), "web@2")[0].is_sound
        (left,) = verify(Catalog(web.catalog), "web@1")[0].damages
        assert (left.path, left.kind) == (row["shard"], "missing")
        assert pending(dataset) == {"parts": {}, "shards": {}}
        assert build(web) == 0


def test_pictures_that_changed_since_in_a_damaged_part(web: Web) -> None:
    """Nobody can compare them row by row; so what was made from them is made again."""
    dataset, before = dataset_of(web), content(web)
    row = next(row for row in before["images"] if row["shard"])
    paths = [f.path for f in dataset.files(dataset.version(), "images")]
    (path,) = [p for p in paths if row["sample_id"] in read_parquet(dataset.storage, p)["sample_id"].to_pylist()]
    with served(web, url_of(web, row["sample_id"]), jpeg(96, 80, 77)):
        zeros(Path(web.catalog, "web", path))
        assert is_settled(*verify(Catalog(web.catalog), "web", repair=True))
        assert build(web) > 1
        assert verify(Catalog(web.catalog), "web@2")[0].is_sound
        assert [d.path for d in verify(Catalog(web.catalog), "web@1")[0].damages] == [path]
        now = {r["sample_id"]: r["pixels_sha256"] for r in content(web)["images"]}
        changed = {r["sample_id"] for r in before["images"] if r["pixels_sha256"] != now[r["sample_id"]]}
        assert changed == {row["sample_id"]}


def test_pictures_that_are_gone_are_failed_rows(web: Web) -> None:
    row = next(r for r in content(web)["images"] if r["shard"])
    with served(web, url_of(web, row["sample_id"]), b"", 404):
        truncate(Path(web.catalog, "web", row["shard"]))
        verify(Catalog(web.catalog), "web", repair=True)
        build(web)
    now = {r["sample_id"]: r for r in content(web)["images"]}[row["sample_id"]]
    assert (now["status"], now["http_status"]) == ("failed", 404)


def test_a_retry_keeps_its_rows_when_an_attempt_is_damaged(web: Web) -> None:
    gone = next(r for r in content(web)["images"] if r["reason"])
    with served(web, url_of(web, gone["sample_id"]), jpeg(96, 80, 78)):
        spec = begin_retry(dataset_of(web), [gone["reason"]], web.catalog, "inline").spec
        build_here(spec)
        before = content(web)
        shards = sorted({r["shard"] for r in before["images"] if r["shard"]})
        assert len(shards) == 4
        for path in (*shards, *(f.path for f in dataset_of(web).files(dataset_of(web).version(), "images"))):
            flip(Path(web.catalog, "web", path))
            findings, mended = verify(Catalog(web.catalog), "web", repair=True)
            assert [d.path for d in findings.damages] == [path]
            assert is_settled(findings, mended)
            build(web)
            assert content(web) == before
        assert named(web) == []


TINY = {
    "embed_dim": 32,
    "vision_cfg": {"image_size": 32, "layers": 1, "width": 32, "head_width": 16, "patch_size": 8, "mlp_ratio": 2.0},
    "text_cfg": {"context_length": 20, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 1, "mlp_ratio": 2.0},
}


def test_damaged_pictures_never_become_rows_without_an_embedding(web: Web, tmp_path: Path) -> None:
    config = tmp_path / "tiny.json"
    config.write_text(json.dumps(TINY))
    stages = f"  - use: embed\n    encoders: [{{name: clip, model: {config}, pretrained: random}}]\n"
    spec = BuildSpec((web.folder / "recipe.yaml").read_text() + stages, "r", web.catalog, (), "inline")
    for harm in (zeros, halve, empty, delete):
        tar = tar_of(web)
        data = tar.read_bytes()
        harm(tar)
        with pytest.raises(DamagedError, match=f"{tar.name} is damaged: .*verify web --repair"):
            build_here(spec)
        tar.write_bytes(data)
    zeros(tar_of(web))
    verify(Catalog(web.catalog), "web", repair=True)
    build_here(spec)
    rows = content(web)["embeddings"]
    assert len(rows) == 9
    assert all(row["embed_reason"] is None for row in rows)


@pytest.mark.parametrize(
    ("taken", "lost"),
    [*itertools.product(("first", "last", "some"), ("part", "shard", "both")), ("all", "part")],
)
def test_what_a_takedown_took_rows_from_is_mended(web: Web, taken: str, lost: str) -> None:
    """Every version, byte for byte, from the web, and the rows stay away."""
    ids = sorted(r["sample_id"] for r in content(web)["images"] if r["shard"] and r["sample_id"] >> 24 == 0)
    gone = {"first": ids[:1], "last": ids[-1:], "some": [ids[0], ids[2]], "all": ids}[taken]
    urls = [url_of(web, sample_id) for sample_id in gone]
    for some in (gone[:1], gone[1:]):  # by two take-downs, where there are several
        if some:
            take_down(dataset_of(web), Names(sample_ids=frozenset(some)))
    build(web)
    assert named(web) == []
    dataset, root = dataset_of(web), dataset_root(web)
    numbers = [version.number for version in dataset.versions()]
    before = {number: content(web, number) for number in numbers}
    parts = [f.path for f in dataset.files(dataset.version(), "images")]
    (part,) = [p for p in parts if gone[0] in read_parquet(dataset.storage, p)["sample_id"].to_pylist()]
    shard = next((p for p in describe_part(dataset.storage, part).files if p.endswith(".tar")), "")
    assert bool(shard) == (taken != "all")  # in which nothing is left
    hits = [web.server.hits[url] for url in urls]
    for path in {"part": [part], "shard": [shard], "both": [part, shard]}[lost]:
        zeros(root / path) if path == part else halve(root / path)
    assert is_settled(*verify(Catalog(web.catalog), "web", repair=True))
    build(web)
    assert named(web) == []
    assert [version.number for version in dataset.versions()] == numbers
    assert {number: content(web, number) for number in numbers} == before
    assert [web.server.hits[url] for url in urls] == hits
    assert {r["reason"] for r in content(web)["images"] if r["sample_id"] in gone} == {"taken_down"}
    assert build(web) == 0
