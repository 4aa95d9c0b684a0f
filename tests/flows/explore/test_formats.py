"""The formats of rows: each is a word of the command line, has a file ending, and costs no import."""

import subprocess
import sys

import pytest

from flows.explore.export import ENDINGS
from flows.explore.formats import Format


def test_every_format_has_an_ending_and_is_its_word() -> None:
    assert set(ENDINGS.values()) == set(Format)
    assert [Format(word) for word in ("table", "csv", "json", "jsonl", "parquet")] == list(Format)
    assert f"{Format.CSV}" == "csv"
    with pytest.raises(ValueError, match="'xml' is not a valid Format"):
        Format("xml")


def test_importing_it_imports_nothing_that_is_installed() -> None:
    code = "import sys; before = set(sys.modules); import flows.explore.formats; print(*(set(sys.modules) - before))"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    roots = {name.partition(".")[0] for name in out.split()}
    assert "flows" in roots
    assert roots - {"flows"} <= sys.stdlib_module_names
