"""Rules that the tests themselves keep."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

TESTS = Path(__file__).parent
CLOCKS = {"monotonic", "perf_counter", "process_time", "thread_time", "time", "now"}
"""Functions that read a clock: those of `time`, and `datetime.now`. They may end in `_ns`."""


def is_clock(node: ast.AST) -> bool:
    """Say whether a node reads a clock."""
    if not isinstance(node, ast.Call):
        return False
    name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
    return name.removesuffix("_ns") in CLOCKS


def contains(node: ast.AST, names: set[str]) -> bool:
    """Say whether an expression reads a clock, or one of the names."""
    return any(is_clock(n) or (isinstance(n, ast.Name) and n.id in names) for n in ast.walk(node))


def is_duration(node: ast.AST, readings: set[str], durations: set[str]) -> bool:
    """Say whether an expression holds a difference of clock readings: `began - 1` is none, and still a time."""
    parts = [n for n in ast.walk(node) if isinstance(n, ast.BinOp) and isinstance(n.op, ast.Sub)]
    named = any(isinstance(n, ast.Name) and n.id in durations for n in ast.walk(node))
    return named or any(contains(part.left, set()) or contains(part.right, readings) for part in parts)


def asserted_durations(tree: ast.AST) -> Iterator[int]:
    """Yield the line of every assert that wants a duration, or the clock itself, to be below something."""
    readings: set[str] = set()
    durations: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Assign) and contains(node.value, set()):
            found = durations if is_duration(node.value, readings, durations) else readings
            found |= {n.id for target in node.targets for n in ast.walk(target) if isinstance(n, ast.Name)}
    for node in ast.walk(tree):
        if not isinstance(node, ast.Assert):
            continue
        for compare in (n for n in ast.walk(node.test) if isinstance(n, ast.Compare)):
            sides = [compare.left, *compare.comparators]
            for left, operator, right in zip(sides, compare.ops, sides[1:], strict=False):
                lesser = {ast.Lt: left, ast.LtE: left, ast.Gt: right, ast.GtE: right}.get(type(operator))
                if lesser and (is_clock(lesser) or is_duration(lesser, readings, durations)):
                    yield node.lineno


@pytest.mark.parametrize("path", sorted(TESTS.rglob("*.py")), ids=lambda path: str(path.relative_to(TESTS)))
def test_no_test_asserts_that_something_is_fast(path: Path) -> None:
    """A busy machine is slow. Tests assert on the work done: calls, bytes, rows. Timings live in `tests/benchmarks`.

    A test that would never end without what it proves may have a mark, `@pytest.mark.timeout(120)`.
    """
    if path.is_relative_to(TESTS / "benchmarks"):
        return
    assert list(asserted_durations(ast.parse(path.read_text()))) == []


@pytest.mark.parametrize(
    ("code", "is_one"),
    [
        ("assert time.monotonic() - began < 5", True),
        ("assert 5 > time.thread_time() - began", True),
        ("assert 1 <= perf_counter() - began <= 5, 'slow'", True),
        ("assert abs(modified_s - time.time()) < 5", True),
        ("assert time.monotonic() < stop", True),
        ("began = time.time_ns()\nend = time.time_ns()\nassert (end - began) / 1e9 < 5", True),
        ("took_s = time.monotonic() - began\nassert took_s < 5", True),
        ("assert datetime.now(UTC) - began < timedelta(seconds=5)", True),
        ("assert time.monotonic() - began >= 5", False),
        ("took_s = time.monotonic() - began\nassert took_s > 5", False),
        ("before = time.time()\nassert before <= modified_s <= time.time()", False),
        ("before = time.time()\nassert before - 1 <= modified_s", False),
        ("assert set(outcomes(lambda: time.monotonic() > stop)) <= {1, 2}", False),
        ("assert len(rows) - 1 < 5", False),
        ("while time.monotonic() < stop:\n    pass", False),
    ],
)
def test_which_asserts_are_about_speed(code: str, is_one: bool) -> None:
    assert bool(list(asserted_durations(ast.parse(code)))) == is_one
