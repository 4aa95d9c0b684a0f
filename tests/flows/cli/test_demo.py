"""The command `demo`: what it refuses. tests/e2e/test_demo.py runs it."""

from pathlib import Path

import pytest

from tests.flows.cli.conftest import check
from tests.flows.conftest import Run

MISTAKES = [
    ("at least 300 rows, to hold every hazard, and at most 3500, not 0", "--rows", "0"),
    ("not -1", "--rows", "-1"),
    ("not 299", "--rows", "299"),
    ("not 3501", "--rows", "3501"),
    ("--rows", "--rows", "x"),
    ("'cloud' is not one of 'ray', 'inline'", "--executor", "cloud"),
]


@pytest.mark.parametrize("mistake", MISTAKES, ids=" ".join)
def test_a_mistake_is_one_line_and_leaves_nothing(run: Run, tmp_path: Path, mistake: tuple[str, ...]) -> None:
    expected, *words = mistake
    check(words, *run("demo", *words, "--catalog", str(tmp_path / "catalog")), expected=expected)
    assert not (tmp_path / "catalog").exists()
