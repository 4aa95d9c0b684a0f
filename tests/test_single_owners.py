"""Ideas that have exactly one owner in the product: no other module holds a copy."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
SOURCES = {
    path.relative_to(ROOT).as_posix(): path.read_text(encoding="utf-8")
    for room in ("flows", "tasks", "catalog")
    for path in sorted((ROOT / room).rglob("*.py"))
}
OWNERS = {
    "a DuckDB connection": (r"duckdb\.connect\(", "catalog/duck.py"),
    "quoting of a SQL literal": (r"""\.replace\(["']'["'], ["']''["']\)""", "catalog/duck.py"),
    "quoting of a SQL identifier": (r"""\.replace\(['"]"['"], ['"]""['"]\)""", "catalog/duck.py"),
    "the first line of an error": (r"str\(\w*err\w*\)(\.strip\(\))?\.splitlines\(\)", "catalog/errors.py"),
    "what rejects a row": (
        r"""status (=|<>|!=|is distinct from) '|where not keep|distinct from \{literal\(SUCCESS|'\{TAKEN_URL\}'""",
        "catalog/rejection.py",
    ),
    "the derivation of a seed": (r"from_bytes\(\s*hashlib|digest\(\)\[:8\]", "tasks/vectors/seeds.py"),
    "the user's cache folder": (r"XDG_CACHE_HOME\"\)", "tasks/files/cache.py"),
    "the columns of a place": (r'"shard",\s*"byte_offset",\s*"byte_size"|\("byte_offset", pa\.', "catalog/schema.py"),
    "a table of decisions": (r"schema=DECISIONS", "catalog/decisions.py"),
    "decoding ahead": (r'ThreadPoolExecutor\([^)]*"read"\)', "tasks/streams/decode_ahead.py"),
    "work in this process": (r"return map\(function, items\)", "flows/build/worker.py"),
}


@pytest.mark.parametrize("idea", OWNERS)
def test_an_idea_has_one_owner(idea: str) -> None:
    pattern, owner = OWNERS[idea]
    found = [path for path, text in SOURCES.items() if re.search(pattern, text)]
    assert found == [owner]
