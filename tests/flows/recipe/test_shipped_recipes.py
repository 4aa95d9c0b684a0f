"""Every shipped recipe and fragment, built from end to end on the columns of LAION, DataComp and img2dataset."""

import io
import json
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from PIL import Image

from catalog.database import sql
from catalog.dataset import Catalog
from flows.build.build import build_here
from flows.build.spec import BuildSpec
from flows.recipe.shipped import SHIPPED
from tests.hostile_server import HostileServer
from tests.pictures import jpeg

ROWS = 20
TEXT = "a nice photograph of a red fox in the snow, number"
TINY = {
    "embed_dim": 8,
    "vision_cfg": {"image_size": 32, "layers": 1, "width": 16, "head_width": 8, "patch_size": 16, "mlp_ratio": 1.0},
    "text_cfg": {"context_length": 20, "vocab_size": 49408, "width": 8, "heads": 1, "layers": 1, "mlp_ratio": 1.0},
}
RECIPES = {path.stem: path for path in SHIPPED.glob("*.yaml")}
FRAGMENTS = {path.stem: path for path in (SHIPPED / "filters").glob("*.yaml")}
ELSEWHERE = {
    "demo": "tests/e2e/test_demo.py builds it",
    "scores": "its heads and LAION's watermark model are weights that are not shipped, for vectors of 768 numbers",
}
"""Recipes that are not built here, and why."""
CHEAP = {
    "concepts": ["cluster.levels=[4,2]", "cluster.resample=null"],
    "deduplicate": ["cluster.k=3"],
    "laion_prune": ["cluster.k=3"],
    "selectors": ["cluster.levels=[2,1]"],
}
"""What is set so that so few rows do, beside the encoder."""
COLUMNS = ("laion", "datacomp", "img2dataset")


class Corpus:
    """Some pictures on loopback, and the metadata that point at them, as three publishers have them."""

    def __init__(self, folder: Path, server: HostileServer) -> None:
        self.folder = folder
        self.hosts = list(server.hosts)
        pictures = [jpeg(260, 210, seed) for seed in range(ROWS)]
        urls = [server.body(data) for data in pictures]
        texts = [f"{TEXT} {i}" for i in range(ROWS)]
        numbers = [0.1 * i for i in range(ROWS)]
        wide, high = [260] * ROWS, [210] * ROWS
        self.sources = {
            "laion": self._table("laion", {
                "SAMPLE_ID": list(range(ROWS)), "URL": urls, "TEXT": texts, "HEIGHT": high, "WIDTH": wide,
                "LICENSE": ["?"] * ROWS, "NSFW": ["UNLIKELY"] * ROWS, "similarity": numbers, "LANGUAGE": ["en"] * ROWS,
                "hash": list(range(ROWS)), "pwatermark": numbers, "punsafe": numbers, "AESTHETIC_SCORE": numbers,
            }),
            "datacomp": self._table("datacomp", {
                "uid": [f"{i:032x}" for i in range(ROWS)], "url": urls, "text": texts, "original_width": wide,
                "original_height": high, "clip_b32_similarity_score": numbers, "clip_l14_similarity_score": numbers,
                "face_bboxes": [[[0.1, 0.2, 0.3, 0.4]]] * ROWS, "sha256": ["00" * 32] * ROWS,
            }),
            "img2dataset": self._tar(pictures, urls, texts),
        }  # fmt: skip

    def _table(self, name: str, columns: dict[str, Any]) -> dict[str, Any]:
        path = self.folder / f"{name}.parquet"
        pq.write_table(pa.table(columns), path)
        return {"use": "parquet", "path": str(path)}

    def _tar(self, pictures: list[bytes], urls: list[str], texts: list[str]) -> dict[str, Any]:
        path = self.folder / "00000.tar"
        with tarfile.open(path, "w") as archive:
            for i, (data, url, text) in enumerate(zip(pictures, urls, texts, strict=True)):
                about = {
                    "caption": text, "url": url, "key": f"{i:09}", "status": "success", "error_message": None,
                    "width": 260, "height": 210, "original_width": 260, "original_height": 210, "exif": "{}",
                    "sha256": "00" * 32, "similarity": 0.3, "received_bytes": 1, "language": "en", "label": "x",
                    "clip_score": 0.9, "dark_score": 1.0, "entropy": 9.0,
                }  # fmt: skip
                for ending, member in (("jpg", data), ("txt", text.encode()), ("json", json.dumps(about).encode())):
                    info = tarfile.TarInfo(f"{i:09}.{ending}")
                    info.size = len(member)
                    archive.addfile(info, io.BytesIO(member))
        return {"use": "webdataset", "path": str(path)}


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Corpus]:
    folder = tmp_path_factory.mktemp("corpus")
    (folder / "tiny.json").write_text(json.dumps(TINY))
    (folder / "words.txt").write_text("fox\nwolf\n")
    out = io.BytesIO()
    Image.fromarray(np.full((40, 40, 3), 90, np.uint8)).save(out, "PNG")
    pq.write_table(pa.table({"image": [out.getvalue()]}), folder / "coco_val.parquet")
    pq.write_table(pa.table({"vector": np.eye(8, dtype=np.float32).tolist()}), folder / "targets.parquet")
    with HostileServer() as server:
        yield Corpus(folder, server)


def built(corpus: Corpus, recipe: dict[str, Any], catalog: Path, overrides: list[str]) -> list[dict[str, Any]]:
    """Build; return the verdicts, of which none may be missing."""
    path = corpus.folder / "recipe.yaml"
    recipe["guards"] = {"no_samples": False}  # the encoder's weights are random: its scores may keep no row
    path.write_text(yaml.safe_dump(recipe, sort_keys=False))
    spec = BuildSpec.read(path, catalog=str(catalog), overrides=tuple(overrides), executor="inline")
    build_here(spec)
    name = f'"{recipe["dataset"]}"'
    query = f"select v.*, i.status from {name}.verdicts v join {name}.images i using (sample_id)"
    verdicts: list[dict[str, Any]] = sql(Catalog(catalog), query).to_pylist()
    assert len(verdicts) == ROWS
    assert {v["status"] for v in verdicts} == {"success"}
    return verdicts


def embed(corpus: Corpus) -> list[str]:
    return [f"embed.encoders.0.model={corpus.folder}/tiny.json", "embed.encoders.0.pretrained=random"]


@pytest.mark.parametrize("columns", COLUMNS)
def test_fragments(corpus: Corpus, tmp_path: Path, columns: str) -> None:
    """All in one recipe, one after the other: each sees the rows that those before it keep."""
    low = {"threshold": -2}
    values: dict[str, dict[str, Any]] = {
        "datacomp_text_based": {"words": str(corpus.folder / "words.txt")},
        "datacomp_image_based": {"targets": str(corpus.folder / "targets.parquet")},
        "datacomp_clip_score": low,
        "datacomp_laion2b": low,
        "laion400m": low | {"bytes": 1},
        "laion5b": {"bytes": 1, "english": "embeddings.clip_score + 2", "other": "embeddings.clip_score + 2"},
    }
    order = ["datacomp_basic", *sorted(set(FRAGMENTS) - {"datacomp_basic"})]
    recipe = {
        "dataset": "d",
        "source": corpus.sources[columns],
        "stages": [
            {"use": "download", "allow_hosts": corpus.hosts, "timeout_s": 30},
            {"use": "language"},
            {"use": "embed", "encoders": [{"name": "clip", "model": "ViT-B-32"}]},
            {"use": "cluster", "k": 2},
            {"use": "image_issues"},
            *({"include": f"filters/{name}.yaml", "with": values.get(name, {})} for name in order),
        ],
    }
    verdicts = built(corpus, recipe, tmp_path, embed(corpus))
    assert "datacomp_basic" not in {v["stage"] for v in verdicts}  # nothing of it is true of these pictures
    judged = sql(Catalog(tmp_path), "select stage, count(*) as n from d.decisions group by stage").to_pylist()
    assert {j["stage"] for j in judged} >= {"datacomp_basic", "datacomp_clip_score", "datacomp_clip_score_top"}


@pytest.mark.parametrize(
    ("name", "columns"),
    [
        pytest.param(
            name, columns, marks=[] if columns == "laion" or name == "selectors" else pytest.mark.slow,
            id=f"{name}-{columns}",
        )
        for name in sorted(RECIPES)
        for columns in COLUMNS
    ],
)  # fmt: skip
def test_recipes(corpus: Corpus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, columns: str) -> None:
    if name in ELSEWHERE:
        pytest.skip(ELSEWHERE[name])
    monkeypatch.setenv("LAION_URLS", "replaced below")
    recipe = yaml.safe_load(RECIPES[name].read_text())
    recipe["source"] = corpus.sources[columns]  # a path to tars needs another `use`
    for stage in recipe["stages"]:
        if stage["use"] == "decontaminate":
            stage["sets"][0]["path"] = str(corpus.folder / "coco_val.parquet")
    hosts = [f"download.allow_hosts={json.dumps(corpus.hosts)}", "download.timeout_s=30"]
    built(corpus, recipe, tmp_path, [*embed(corpus), *hosts, *CHEAP[name]])


def test_every_recipe_is_built_somewhere() -> None:
    assert set(CHEAP) | set(ELSEWHERE) == set(RECIPES)
    assert len(FRAGMENTS) == 9
