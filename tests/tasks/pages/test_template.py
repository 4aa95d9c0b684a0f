"""Templates of pages: text is escaped, a missing variable is an error, and numbers have their filters."""

from pathlib import Path

import jinja2
import pytest

from tasks.pages.template import template


def rendered(folder: Path, source: str, **values: object) -> str:
    path = folder / "page.html.j2"
    path.write_text(source)
    return template(path).render(values)


def test_all_text_is_escaped(tmp_path: Path) -> None:
    hostile = "<script>\"'&"
    source = '<p title="{{ it }}">{{ it }} {{ it | clean }} {{ it | code }}</p>'
    escaped = "&lt;script&gt;&#34;&#39;&amp;"
    assert rendered(tmp_path, source, it=hostile) == f'<p title="{escaped}">{escaped} {escaped} {escaped}</p>'


def test_a_missing_variable_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(jinja2.UndefinedError, match="'it' is undefined"):
        rendered(tmp_path, "{{ it }}")


def test_filters_write_numbers_and_lines_of_blocks_leave_none(tmp_path: Path) -> None:
    source = "{% if rows %}\n{{ rows | count }} {{ share | percent }}\n{% endif %}\n"
    assert rendered(tmp_path, source, rows=1234567, share=0.361) == "1,234,567 36.1 %\n"
