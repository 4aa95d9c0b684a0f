"""The page of a search shows its pictures, and nothing of what their captions would do."""

from dataclasses import replace
from pathlib import Path

import pytest

from catalog.dataset import Catalog
from catalog.errors import UserError
from flows.explore.gallery import pictures, render, show_page
from flows.explore.search import Query, search
from tests.browser import look, needs_browser
from tests.flows.explore.test_save import Built, built, web_once  # noqa: F401  # fixtures

HOSTILE = '"><script>parent.harmed = "caption"</script><img src=x onerror="parent.harmed=1">\u202egnp'


def test_the_page_is_harmless(built: Built, tmp_path: Path) -> None:  # noqa: F811
    catalog = Catalog(built.catalog)
    found = search(catalog, "web", Query(text="a bird", top=4))
    hostile = replace(found, hits=[replace(h, caption=HOSTILE, url="javascript:alert(1)") for h in found.hits])
    page = render(hostile, catalog.dataset("web"))
    assert "<script" not in page
    assert "\u202e" not in page
    assert "onerror=&#34;" in page
    assert "default-src 'none'" in page
    show_page(page, str(tmp_path / "page.html"), False)
    assert (tmp_path / "page.html").read_text() == page
    nothing = replace(found, hits=[])
    assert "Nothing was found" in render(nothing, catalog.dataset("web"))


def test_pictures_end_with_the_budget(
    built: Built,  # noqa: F811
    tmp_path: Path,
) -> None:
    catalog = Catalog(built.catalog)
    found = search(catalog, "web", Query(text="a bird", top=9))
    every = pictures(found, catalog.dataset("web"))
    assert set(every) == {hit.sample_id for hit in found.hits}
    budget = sum(map(len, every.values())) // 2
    some = pictures(found, catalog.dataset("web"), budget)
    assert 0 < len(some) < 9
    assert sum(map(len, some.values())) <= budget
    assert render(found, catalog.dataset("web"), budget).count("no picture") == 9 - len(some)
    assert "no picture" not in render(found, catalog.dataset("web"))
    with pytest.raises(UserError, match="cannot write"):
        show_page("", str(tmp_path / "no" / "page.html"), False)


@needs_browser[0]
@needs_browser[1]
@pytest.mark.parametrize("width_px", [360, 1280])
def test_it_shows_its_pictures(built: Built, width_px: int) -> None:  # noqa: F811
    catalog = Catalog(built.catalog)
    found = search(catalog, "web", Query(text="a bird", top=9))
    page = render(replace(found, hits=[replace(h, caption=HOSTILE * 3) for h in found.hits]), catalog.dataset("web"))
    seen = look(
        page,
        """const images = [...document.images];
        return {shown: images.filter(i => i.naturalWidth > 0).length,
                over: document.documentElement.scrollWidth - document.documentElement.clientWidth}""",
        width_px,
    )
    assert seen.value == {"shown": 9, "over": 0}
    assert not [line for line in seen.console if "harmed" in line]
