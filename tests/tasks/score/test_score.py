"""The recipe's entry: the stages that it expands to, and a whole build with every kind of scorer, which grows."""

from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from catalog.database import sql
from catalog.dataset import Catalog
from catalog.schema import IMAGES
from flows.build.build import build_here
from flows.build.spec import BuildSpec
from tasks.score import Prompts, Score, ScoreImages, ScoreVectors
from tasks.score.watermark import network
from tests.pictures import jpeg
from tests.tasks.score.embeddings import linear_layers, rows, saved

URL = {"weights": "https://example.org/head.pt", "sha256": "0" * 64}
AESTHETIC = {"use": "aesthetic_v2", **URL}
WATERMARK = {"use": "watermark", **URL}
TAG = {"use": "zero_shot", "name": "tag", "labels": ["cat", "dog"], "ensemble": "zpe"}


def stages(*scorers: dict[str, Any]) -> list[tuple[str, str]]:
    return [(type(stage).__name__, stage.name) for stage in Score.model_validate({"scorers": scorers}).expand()]


def test_it_expands_to_the_stages_that_its_scorers_require() -> None:
    assert stages(AESTHETIC) == [("ScoreVectors", "score")]
    assert stages(WATERMARK) == [("ScoreImages", "score")]
    assert stages(AESTHETIC, WATERMARK, TAG) == [
        ("Prompts", "score-prompts"),
        ("ScoreImages", "score-images"),
        ("ScoreVectors", "score"),
    ]


def test_another_head_changes_no_stage_that_reads_images() -> None:
    few, many = (Score.model_validate({"scorers": s}) for s in ([WATERMARK, TAG], [WATERMARK, AESTHETIC, TAG]))
    one, two = ({type(stage): (stage.name, stage.parameters()) for stage in score.expand()} for score in (few, many))
    assert one[ScoreImages] == two[ScoreImages]
    assert one[Prompts] == two[Prompts]
    assert one[ScoreVectors] != two[ScoreVectors]


def test_it_reads_and_writes_what_its_stages_do() -> None:
    score = Score.model_validate({"scorers": [AESTHETIC, WATERMARK]})
    table, _ = rows(clip=768, other=4)
    available = {"embeddings": table.schema, "images": IMAGES}
    assert score.inputs(available) == {"images": ("image",), "embeddings": ("clip",)}
    assert score.output(available).names == ["sample_id", "aesthetic_v2", "watermark"]


def test_mistakes_of_a_recipe() -> None:
    with pytest.raises(
        ValidationError, match="two columns would be named 'aesthetic_v2': give the scorers other names"
    ):
        Score.model_validate({"scorers": [AESTHETIC, AESTHETIC]})
    with pytest.raises(ValidationError, match="weights from a URL need `sha256`"):
        Score.model_validate({"scorers": [{"use": "watermark", "weights": URL["weights"]}]})
    with pytest.raises(ValidationError, match="String should match pattern"):
        Score.model_validate({"scorers": [AESTHETIC | {"name": "a b"}]})
    with pytest.raises(ValidationError, match="at least 1 item"):
        Score(scorers=())


RECIPE = """\
dataset: tiny
source: {{use: folder, path: {folder}/pictures, rows_per_part: 4}}
stages:
  - use: download
  - use: embed
    encoders: [{{name: clip, model: {model}, pretrained: {clip}, text: false}}]
  - use: score
    resources: {{gpus: 0}}
    scorers:
      - {{use: zero_shot, name: tag, labels: [a cat, a dog], templates: ["a {{}}", "{{}}"], ensemble: zpe}}
      - {{use: violence, texts: [a park, a fight]}}
      - {{use: watermark, weights: {watermark}}}
  - use: filter
    where: tag in ('a cat', 'a dog') and watermark >= 0
"""


def test_a_build_with_every_kind_of_scorer_that_grows(tiny_clip: tuple[Path, Path], tmp_path: Path) -> None:
    pictures = tmp_path / "pictures" / "a"
    pictures.mkdir(parents=True)
    for i in range(6):
        (pictures / f"{i}.jpg").write_bytes(jpeg(60, 40, seed=i))
    model, clip = tiny_clip
    watermark = saved(network().state_dict(), tmp_path / "watermark.safetensors")
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(RECIPE.format(folder=tmp_path, model=model, clip=clip, watermark=watermark))
    spec = BuildSpec.read(str(recipe), catalog=str(tmp_path / "catalog"), executor="inline")
    build_here(spec)
    assert build_here(spec).made == 0
    catalog = Catalog(str(tmp_path / "catalog"))
    query = "select count(*) as n, count(tag) as tags, count(tag_probability) as p, count(violence) as v from scores"
    assert sql(catalog, query).to_pylist() == [{"n": 6, "tags": 6, "p": 6, "v": 6}]
    images = sql(catalog, "select * from image_scores order by all").to_pylist()
    assert [row["sample_id"] & 0xFFFFFF for row in images] == [0, 1, 2, 3, 0, 1]
    kept = sql(catalog, "select count(*) as n, min(watermark) as low from samples").to_pylist()[0]
    assert kept["n"] == 6
    assert 0 < kept["low"] < 1

    grown = tmp_path / "pictures" / "b"
    grown.mkdir()
    (grown / "7.jpg").write_bytes(jpeg(60, 40, seed=7))
    build_here(spec)
    assert sql(catalog, "select count(*) as n, count(watermark) as w from image_scores").to_pylist() == [
        {"n": 7, "w": 7}
    ]
    parts = {path.name for path in (tmp_path / "catalog" / "tiny" / "image_scores").glob("*.parquet")}
    assert len(parts) == 3  # the pictures that were there are not read again, though the labels were fitted again


def test_a_wrong_width_is_refused_before_a_build_starts(tiny_clip: tuple[Path, Path], tmp_path: Path) -> None:
    from catalog.errors import RecipeError

    (tmp_path / "pictures").mkdir()
    (tmp_path / "pictures" / "1.jpg").write_bytes(jpeg(60, 40))
    weights = saved(linear_layers((768, 1), [""]), tmp_path / "head.pt")
    recipe = tmp_path / "recipe.yaml"
    head, _, _ = RECIPE.partition("  - use: score")
    recipe.write_text(
        head.format(folder=tmp_path, model=tiny_clip[0], clip=tiny_clip[1])
        + f"  - {{use: score, scorers: [{{use: aesthetic_v1, weights: {weights}}}]}}\n"
    )
    spec = BuildSpec.read(str(recipe), catalog=str(tmp_path / "catalog"), executor="inline")
    with pytest.raises(RecipeError, match="'aesthetic_v1': embedding column 'clip': found 32, expected 768"):
        build_here(spec)
    assert not list((tmp_path / "catalog").glob("*/images/*"))
