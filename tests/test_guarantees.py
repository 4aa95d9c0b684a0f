"""Every promise of docs/guarantees.md names a test that is there."""

import re
from pathlib import Path

ROOT = Path(__file__).parents[1]
GUARANTEES = ROOT / "docs" / "guarantees.md"


def named_tests(text: str) -> list[tuple[Path, str | None]]:
    """Return (file, test) of every test that a text names. A bare name is in the file, or the folder, named before."""
    found: list[tuple[Path, str | None]] = []
    for match in re.finditer(r"`([\w/]+\.py)?(?:::(\w+))?`", text):
        if match[1]:
            path = ROOT / match[1] if match[1].startswith("tests/") else found[-1][0].parent / match[1]
        elif match[2]:
            path = found[-1][0]
        else:
            continue
        found.append((path, match[2]))
    return found


def test_every_test_that_holds_a_promise_is_there() -> None:
    named = named_tests(GUARANTEES.read_text())
    assert len(named) > 80
    missing = [
        f"{path.relative_to(ROOT)}::{test}"
        for path, test in named
        if not path.is_file() or (test and f"def {test}(" not in path.read_text())
    ]
    assert missing == []


def test_every_promise_has_a_test() -> None:
    rows = [line for line in GUARANTEES.read_text().splitlines() if line.startswith("| ") and "---" not in line]
    promises = [row for row in rows if not row.startswith("| promise ")]
    assert [row for row in promises if "`tests/" not in row.rpartition(" | ")[2]] == []


def test_the_readme_leads_to_it() -> None:
    assert "(docs/guarantees.md)" in (ROOT / "README.md").read_text()
