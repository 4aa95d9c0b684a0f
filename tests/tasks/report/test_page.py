import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from catalog.inputs import Inputs
from catalog.schema import CLUSTERS, DECISIONS, IMAGES, MODELS, SAMPLE_ID, SOURCE
from tasks.report import Report
from tasks.report._page import render
from tasks.report.report import CARD
from tests.browser import look, needs_browser, print_to_pdf, screenshot
from tests.helpers import LocalRun
from tests.tasks.report.gallery import Gallery

ATTACKS = [
    "<script>parent.harmed='script'</script>",
    '"><img src=x onerror="parent.harmed=\'attribute\'">',
    "' onmouseover='parent.harmed=1' x='",
    "</style><script>parent.harmed='style'</script>",
    "</title><svg onload=parent.harmed=2>",
    "javascript:parent.harmed=3",
    "{{ 7 * 7 }}{% for x in y %}",
    "\x00\u202e]]><!--",
    "w" * 100_000,
]
TABLES = {
    "source": SOURCE,
    "images": IMAGES.append(pa.field("image", pa.large_binary())),
    "decisions": DECISIONS,
    "clusters": CLUSTERS,
    "models": pa.schema([SAMPLE_ID, *MODELS]),
}
LINEAGE: dict[str, Any] = {
    "dataset": "gallery",
    "version": 3,
    "created_at": "2026-03-14 09:26 UTC",
    "recipe": "dataset: gallery\nstages:\n  - use: report\n",
    "code_version": "0.1.0",
    "inputs": [{"uri": "s3://corpora/part-0.parquet", "sha256": "9f" * 32, "rows": 180}],
    "stages": [{"name": "cluster", "use": "cluster", "table": "clusters", "version": 1, "fingerprint": "ab" * 32}],
}
TIMINGS = [{"stage": "cluster", "seconds": 2.0, "rows": 180, "parts": 4, "cached_parts": 0, "bytes": 6000}]


class Page(HTMLParser):
    """What a browser would make of the markup: tags, attributes, text."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text: list[str] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text.append(data)

    @property
    def words(self) -> str:
        return " ".join(" ".join(self.text).split())


def card_saying(texts: list[str], folder: Path) -> pa.Table:
    """A card with a sample, a stage, a reason, a cluster and a model for every text, which say only that text."""
    ids = range(len(texts))
    columns = {
        "source": ("url", "caption", "label"),
        "images": ("reason", "detail"),
        "models": ("name", "family", "licence"),
    }
    rows: dict[str, list[dict[str, Any]]] = {
        name: [{"sample_id": i} | dict.fromkeys(columns.get(name, ()), texts[i]) for i in ids] for name in TABLES
    }
    for i in ids:
        rows["images"][i] |= {"status": "success", "original_width": i, "image": texts[i].encode()}
        rows["clusters"][i] |= {"cluster": i, "distance": 0.1}
        rows["models"][i] |= {"metrics": json.dumps({texts[i]: texts[i]})}
        rows["decisions"][i] |= {"keep": False, "representative": 0, "similarity": 0.9}
        rows["decisions"][i] |= dict.fromkeys(("stage", "reason", "evidence"), texts[i])
    tables = {name: pa.Table.from_pylist(rows[name], schema) for name, schema in TABLES.items()}
    report = Report(title="".join(texts)[:200], description="".join(texts)[:4000], samples=96)
    (card,) = report.run(Inputs.of(alive_only=False, **tables), LocalRun(folder))
    return card


def page_saying(texts: list[str], folder: Path) -> str:
    keys = ("name", "use", "table", "fingerprint")
    stages = [dict.fromkeys(keys, text) | {"notes": {text: text}} for text in texts]
    inputs = [{"uri": text, "sha256": text, "rows": 1} for text in texts]
    facts = dict.fromkeys(("dataset", "version", "created_at", "recipe", "code_version"), " ".join(texts))
    timings = [{"stage": text, "seconds": 1.0} for text in texts]
    return render(card_saying(texts, folder), facts | {"stages": stages, "inputs": inputs}, timings)


@pytest.fixture(scope="module")
def hostile(tmp_path_factory: pytest.TempPathFactory) -> str:
    return page_saying(ATTACKS, tmp_path_factory.mktemp("hostile"))


def test_no_text_becomes_markup(hostile: str, tmp_path: Path) -> None:
    expected, found = Page(page_saying([f"harmless {'x' * i}" for i in range(len(ATTACKS))], tmp_path)), Page(hostile)
    assert [tag for tag, _ in found.tags] == [tag for tag, _ in expected.tags]
    assert [sorted(attrs) for _, attrs in found.tags] == [sorted(attrs) for _, attrs in expected.tags]
    check_self_contained(hostile)


def test_attacks_are_shown_as_the_text_that_they_are(hostile: str) -> None:
    words = Page(hostile).words
    for attack in ATTACKS[:7]:
        assert attack in words
    assert "\x00" not in hostile
    assert "\u202e" not in hostile
    assert len(hostile) < 400_000


def check_self_contained(page: str) -> None:
    for tag, attrs in Page(page).tags:
        assert tag not in {"script", "iframe", "object", "embed", "form", "base"}
        assert not [name for name in attrs if name.startswith("on")]
        for name in ("src", "href", "action", "xlink:href"):
            assert (attrs.get(name) or "#").startswith(("data:", "#"))
        assert "url(" not in (attrs.get("style") or "")
    style = re.search(r"<style>(.*?)</style>", page, re.DOTALL)
    assert style
    assert set(re.findall(r"url\((.*?)\)", style[1])) == {"#leaving"}
    assert "@import" not in style[1]


def test_the_page_loads_nothing_and_runs_nothing(card: pa.Table) -> None:
    check_self_contained(render(card, LINEAGE, TIMINGS))


def test_the_page_says_what_the_card_says(card: pa.Table, sections: dict[str, Any]) -> None:
    words = Page(render(card, LINEAGE, TIMINGS)).words
    assert "gallery" in words
    assert "version 3" in words
    for step in sections["funnel"]:
        assert f"{step['stage']} {step['kept']:,}" in words
        for reason in step["reasons"]:
            assert f"{reason['rows']} {reason['reason']}" in words
    for concept in sections["concept"]:
        assert " · ".join(concept["terms"]) in words
        assert f"{concept['kept']} of {concept['size']} kept" in words
    assert "s3://corpora/part-0.parquet" in words
    assert "- use: report" in words
    assert "90 abababababab" in words  # rows a second, fingerprint


def test_pictures_are_those_of_the_card_and_have_alternative_text(card: pa.Table) -> None:
    images = [attrs for tag, attrs in Page(render(card, LINEAGE)).tags if tag == "img"]
    assert len(images) == len(card) - card["image"].null_count
    assert all(attrs["alt"] for attrs in images)


@pytest.mark.parametrize("loss", [[3.4, 0.5], [3.4] + [1.0] * 10_000 + [0.5]], ids=["short", "long"])
def test_a_trained_model_shows_its_loss(loss: list[float]) -> None:
    content = json.dumps({"name": "tiny", "metrics": {"loss": loss}})
    page = render(
        pa.table({"section": ["model"], "position": [0], "content": [content], "image": [None]}).cast(CARD), {}
    )
    assert "loss 3.4 0.5" in Page(page).words
    assert 'class="line" d="M0.00 0.00L' in page
    assert len(page) < 40_000


@pytest.mark.parametrize("metrics", [None, 3, [], {"loss": 1}, {"loss": ["x", None, float("nan")]}])
def test_metrics_of_another_kind_show_nothing(metrics: object) -> None:
    content = json.dumps({"name": "tiny", "metrics": metrics})
    page = render(
        pa.table({"section": ["model"], "position": [0], "content": [content], "image": [None]}).cast(CARD), {}
    )
    assert "tiny" in Page(page).words
    assert '<path class="line"' not in page


def test_the_same_card_gives_the_same_page(card: pa.Table) -> None:
    assert render(card, LINEAGE, TIMINGS) == render(card, LINEAGE, TIMINGS)


def test_an_empty_card_is_a_page() -> None:
    page = render(CARD.empty_table(), {}, ())
    assert "Untitled dataset" in page
    assert "<section" not in page


def test_a_page_of_the_largest_card_stays_small(card: pa.Table) -> None:
    from tasks.report._thumbnails import BUDGET_BYTES

    words = len(render(card.set_column(3, CARD.field(3), pa.nulls(len(card), pa.large_binary())), LINEAGE))
    assert words + BUDGET_BYTES * 4 / 3 < 5_000_000


def luminance(colour: str) -> float:
    """WCAG 2.2: relative luminance of #rrggbb."""
    channels = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def test_text_has_the_contrast_of_wcag_aa_in_light_and_dark(card: pa.Table) -> None:
    schemes = re.findall(r":root \{(.*?)\}", render(card, {}), re.DOTALL)
    assert len(schemes) == 3  # light, dark, print
    measured = []
    for scheme in schemes:
        colours = dict(re.findall(r"--(\w[\w-]*): (#[0-9a-f]{6});", scheme))
        for ground in (ground for ground in ("paper", "card") if ground in colours):
            for ink in ("ink", "muted", "kept", "out"):
                if ink in colours:
                    measured.append((ground, ink))
                    light, dark = sorted((luminance(colours[ground]), luminance(colours[ink])), reverse=True)
                    assert (light + 0.05) / (dark + 0.05) >= 4.5, (ground, ink)
    assert measured == [(ground, ink) for ground in ("paper", "card") for ink in ("ink", "muted", "kept", "out")] * 2


LAYOUT = """
    const wide = document.scrollingElement;
    const scrolled = (e) => e.closest(".scroll") !== null;
    const past = [...document.body.querySelectorAll("*")].filter(
        (e) => !scrolled(e) && e.getBoundingClientRect().right > wide.clientWidth + 1);
    const images = [...document.images];
    return {
        overflow: wide.scrollWidth - wide.clientWidth,
        past: past.map((e) => e.outerHTML.slice(0, 120)),
        images: images.length,
        broken: images.filter((i) => !(i.complete && i.naturalWidth > 0)).length,
        flat: images.filter((i) => i.getBoundingClientRect().height < 20).length,
        ribbons: [...document.querySelectorAll(".ribbon")].map((r) => r.getBoundingClientRect().height),
    };
"""


class TestInABrowser:
    pytestmark = needs_browser

    @pytest.mark.parametrize("width_px", [390, 1280])
    def test_everything_fits_and_every_picture_decodes(self, width_px: int, card: pa.Table) -> None:
        seen = look(render(card, LINEAGE, TIMINGS), LAYOUT, width_px)
        assert seen.value["overflow"] <= 0
        assert seen.value["past"] == []
        assert seen.value["images"] == len(card) - card["image"].null_count
        assert (seen.value["broken"], seen.value["flat"]) == (0, 0)
        assert min(seen.value["ribbons"]) > 60
        assert seen.console == ()

    def test_attacks_neither_run_nor_break_the_layout(self, hostile: str) -> None:
        seen = look(hostile, LAYOUT, 390)
        assert seen.console == ()
        assert seen.value["overflow"] <= 0
        assert seen.value["past"] == []

    def test_the_probe_does_see_a_script_that_runs(self) -> None:
        seen = look(
            "<!doctype html><body><script>parent.harmed = 'yes'</script><p style='width:900px'>wide", LAYOUT, 390
        )
        assert any("harmed: yes" in line for line in seen.console)
        assert seen.value["overflow"] > 500

    def test_dark_and_paper(self, card: pa.Table, photos: Gallery) -> None:
        import io

        from PIL import Image

        page = render(card, LINEAGE, TIMINGS)
        corners = [
            np.asarray(Image.open(io.BytesIO(screenshot(page, dark=dark))).convert("L"))[5, 5] for dark in (False, True)
        ]
        assert corners[0] > 230
        assert corners[1] < 40
        pdf = print_to_pdf(page)
        assert pdf.startswith(b"%PDF")
        assert 2 <= len(re.findall(rb"/Type\s*/Page\b", pdf)) <= 12
