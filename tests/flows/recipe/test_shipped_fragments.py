"""The shipped filters: for every clause a row that it rejects, with its reason, and nothing else does."""

from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from catalog.inputs import Inputs
from catalog.schema import CLUSTERS, IMAGES, SAMPLE_ID, SOURCE, score, vector
from flows.recipe.recipe import parse
from flows.recipe.shipped import SHIPPED
from tasks.filter import Filter
from tasks.score import ImageIssues, Language

EMBEDDINGS = pa.schema([SAMPLE_ID, vector("clip", 2, ""), *(score(n, "clip", 1, "") for n in ("clip_score", "mclip"))])
SCHEMAS = {
    "source": SOURCE,
    "images": IMAGES,
    "embeddings": EMBEDDINGS,
    "languages": Language().output({}),
    "image_issues": ImageIssues().output({}),
    "clusters": CLUSTERS,
}
GOOD: dict[str, Any] = {
    "caption": "a red fox in the snow",
    "language": "en",
    "original_width": 300,
    "original_height": 200,
    "received_bytes": 20_000,
    "clip_score": 0.31,
    "mclip": 0.27,
    "dark_score": 0.9,
    "light_score": 0.9,
    "blurry_score": 0.9,
    "low_information_score": 0.9,
    "odd_aspect_ratio_score": 0.9,
    "odd_size_score": 0.9,
    "odd_size_threshold": 0.5,
    "grayscale_score": 1.0,
}
NBSP = "\N{NO-BREAK SPACE}"
BASIC: list[tuple[dict[str, Any], str | None]] = [
    ({"language": "de"}, "not_english"),
    ({"language": None}, "not_english"),
    ({"caption": "wonderful photograph"}, "few_words"),
    ({"caption": "  wonderful \t photograph \n"}, "few_words"),
    ({"caption": f"wonderful{NBSP}old{NBSP}photograph"}, None),
    ({"caption": None}, "few_words"),
    ({"caption": "a b c"}, "short_caption"),
    ({"caption": "a b cd"}, None),
    ({"original_width": 199, "original_height": 300}, "small"),
    ({"original_width": 200, "original_height": 200}, None),
    ({"original_width": 200, "original_height": 601}, "odd_aspect"),
    ({"original_width": 600, "original_height": 200}, None),
    ({"original_width": None}, "small"),
]
CASES: dict[str, list[tuple[dict[str, Any], str | None]]] = {
    "datacomp_basic": BASIC,
    "datacomp_clip_score": [
        ({"clip_score": 0.2799}, "low_clip_score"),
        ({"clip_score": 0.2801}, None),
        ({"clip_score": None}, "low_clip_score"),
    ],
    "datacomp_laion2b": [
        ({"clip_score": 0.2799}, "low_clip_score"),
        ({"clip_score": 0.2801}, None),
        ({"language": "fr"}, "not_english"),
    ],
    "laion400m": [
        ({"caption": "tiny"}, "short_caption"),
        ({"caption": "tinys"}, None),
        ({"received_bytes": 4999}, "small_file"),
        ({"received_bytes": 5000}, None),
        ({"language": "fr"}, "not_english"),
        ({"clip_score": 0.299}, "low_clip_score"),
    ],
    "laion5b": [
        ({"caption": "tiny"}, "short_caption"),
        ({"received_bytes": 4999}, "small_file"),
        ({"clip_score": 0.27}, "low_clip_score"),
        ({"clip_score": 0.27, "language": "fr"}, None),
        ({"clip_score": 0.27, "language": None}, None),
        ({"clip_score": 0.25, "language": "fr"}, "low_clip_score"),
    ],
    "image_issues": [
        ({"dark_score": 0.319}, "dark"),
        ({"dark_score": 0.321}, None),
        ({"light_score": 0.049}, "light"),
        ({"blurry_score": 0.289}, "blurry"),
        ({"low_information_score": 0.299}, "low_information"),
        ({"odd_aspect_ratio_score": 0.349}, "odd_aspect_ratio"),
        ({"odd_size_score": 0.499}, "odd_size"),
        ({"odd_size_score": 0.9, "odd_size_threshold": 1.0}, "odd_size"),
        ({"odd_size_score": 1.0, "odd_size_threshold": 1.0}, None),
        ({"grayscale_score": 0.0}, "grayscale"),
        ({"blurry_score": None}, "blurry"),
    ],
    "datacomp_text_based": [
        ({"caption": "a red cat in the snow"}, "no_listed_word"),
        ({"caption": "a red Fox in the snow"}, None),
        ({"caption": "a red fox, in the snow"}, "no_listed_word"),
        ({"caption": "wolf"}, None),
        ({"language": "de"}, "not_english"),
    ],
    "datacomp_image_based": [
        ({"language": "de"}, "not_english"),
        ({"caption": "photograph"}, "few_words"),
        ({"caption": "a fox"}, "short_caption"),
        ({"caption": "red fox"}, None),
        ({"caption": f"red{NBSP}fox"}, "few_words"),
        ({"caption": " photograph\t\0\r"}, "few_words"),
        ({"caption": "photograph\n"}, None),
    ],
}


def stages(name: str, values: dict[str, Any] | None = None) -> Any:
    said = f"\n    with: {values}" if values else ""
    recipe = f"dataset: d\nsource: {{use: parquet, path: p}}\nstages:\n  - include: filters/{name}.yaml{said}\n"
    return parse(recipe).stages


def tables(rows: list[dict[str, Any]]) -> dict[str, pa.Table]:
    ids = range(len(rows))
    return {
        name: pa.table(
            [pa.array(ids if f.name == "sample_id" else [row.get(f.name) for row in rows], f.type) for f in schema],
            schema=schema,
        )
        for name, schema in SCHEMAS.items()
    }


def decided(stage: Filter, rows: list[dict[str, Any]]) -> list[tuple[str | None, str | None]]:
    inputs = Inputs.of(alive_only=False, **tables(rows))
    found = pa.concat_tables(stage.open("cpu", {})(inputs.batches(stage.inputs(SCHEMAS))))
    return list(zip(found.column("reason").to_pylist(), found.column("evidence").to_pylist(), strict=True))


@pytest.fixture
def needed(tmp_path: Path) -> dict[str, dict[str, Any]]:
    """What fragments cannot do without."""
    (tmp_path / "words.txt").write_text("fox\nwolf\nred fox\n")
    return {
        "datacomp_text_based": {"words": str(tmp_path / "words.txt")},
        "datacomp_image_based": {"targets": str(tmp_path / "targets.parquet")},
    }


@pytest.mark.parametrize("name", sorted(CASES))
def test_every_clause_rejects_with_its_own_reason(name: str, needed: dict[str, dict[str, Any]]) -> None:
    stage = stages(name, needed.get(name))[0]
    rows = [GOOD, *(GOOD | change for change, _ in CASES[name])]
    found = decided(stage, rows)
    assert [reason for reason, _ in found] == [None, *(reason for _, reason in CASES[name])]
    assert all((reason is None) == (evidence is None) for reason, evidence in found)
    assert {*stage.rules, *stage.words} == {reason for _, reason in CASES[name] if reason}, "a clause without a row"


def test_variables_move_the_thresholds() -> None:
    (stage,) = stages("laion5b", {"other": "mclip"})
    french = GOOD | {"language": "fr", "clip_score": 0.0}
    found = decided(stage, [french | {"mclip": 0.259}, french | {"mclip": 0.261}])
    assert [reason for reason, _ in found] == ["low_clip_score", None]
    (grey,) = stages("image_issues", {"grayscale": 0})
    assert decided(grey, [GOOD | {"grayscale_score": 0.0}]) == [(None, None)]


def test_the_top_fraction_is_of_the_whole_pool() -> None:
    (stage,) = stages("datacomp_clip_score_top", {"fraction": 0.25, "column": "embeddings.mclip"})
    assert (stage.method, stage.column, stage.keep, stage.of) == ("score", "embeddings.mclip", 0.25, "all")
    (default,) = stages("datacomp_clip_score_top")
    assert (default.column, default.keep) == ("embeddings.clip_score", 0.3)


def test_image_based_asks_for_targets() -> None:
    caption, targets = stages("datacomp_image_based", {"targets": "t.parquet", "encoder": "clip"})
    assert (caption.use, targets.use, targets.targets, targets.encoder) == (
        "filter",
        "near_targets",
        "t.parquet",
        "clip",
    )


def test_every_shipped_filter_is_tested_and_says_its_source() -> None:
    shipped = {path.stem: path.read_text() for path in (SHIPPED / "filters").glob("*.yaml")}
    assert set(shipped) == {*CASES, "datacomp_clip_score_top"}
    assert all("# Source: " in text for text in shipped.values())
