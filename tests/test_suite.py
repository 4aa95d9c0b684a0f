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


OURS = ("catalog", "flows", "tasks")
PATCHED = {
    ("catalog/test_dataset.py", "VERSIONS"): "writes the table of versions as an older release wrote it",
    ("flows/build/test_report.py", "RUNS"): "writes the table of runs as an older release wrote it",
    ("tasks/images/conftest.py", "_OPENERS"): "counts the bytes that Pillow's reader of GIFs reads",
}
"""Constants that a test may patch, with the reason. What only a test sets otherwise is a parameter with a default."""


def is_ours(module: str | None) -> bool:
    return (module or "").partition(".")[0] in OURS


def names_of_ours(tree: ast.AST) -> set[str]:
    """Return the names in a file that stand for our modules, or for what these define."""
    found: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and is_ours(node.module):
            found |= {alias.asname or alias.name for alias in node.names}
        if isinstance(node, ast.Import):
            found |= {alias.asname or alias.name.partition(".")[0] for alias in node.names if is_ours(alias.name)}
    return found


def root(node: ast.AST) -> str:
    """Return the name that a chain of attributes, or a call of `vars`, begins with."""
    while isinstance(node, ast.Attribute):
        node = node.value
    if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "vars" and node.args:
        return root(node.args[0])
    return node.id if isinstance(node, ast.Name) else ""


def is_constant(name: object) -> bool:
    return isinstance(name, str) and name.isupper()


def patched_constants(tree: ast.AST) -> Iterator[str]:
    """Yield the names of our modules' constants that a file patches or assigns."""
    ours = names_of_ours(tree)
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.args:
            first, *others = node.args
            kind = node.func.attr
            if kind in ("setattr", "delattr", "object") and root(first) in ours and others:
                named = others[0].value if isinstance(others[0], ast.Constant) else None
                yield from [str(named)] if is_constant(named) else []
            if kind in ("setattr", "delattr", "patch"):
                last = first.values[-1] if isinstance(first, ast.JoinedStr) else first
                path = str(last.value) if isinstance(last, ast.Constant) else ""
                known = isinstance(first, ast.JoinedStr) or is_ours(path)
                yield from [path.rpartition(".")[2]] if known and is_constant(path.rpartition(".")[2]) else []
            if kind in ("setitem", "delitem") and root(first) in ours:
                named = getattr(first, "attr", None) or getattr(others[0], "value", None)
                yield from [str(named)] if is_constant(named) else []
        targets = node.targets if isinstance(node, ast.Assign) else []
        for target in targets:
            if isinstance(target, ast.Attribute) and root(target) in ours and is_constant(target.attr):
                yield target.attr
            if isinstance(target, ast.Subscript) and isinstance(target.value, ast.Call) and root(target.value) in ours:
                yield getattr(target.slice, "value", "?")


def test_no_test_patches_a_constant() -> None:
    """What a test has to change in order to reach some code is a parameter, whose default is the constant."""
    files = {str(path.relative_to(TESTS)): ast.parse(path.read_text()) for path in TESTS.rglob("*.py")}
    assert {(file, name) for file, tree in files.items() for name in patched_constants(tree)} == set(PATCHED)


@pytest.mark.parametrize(
    ("code", "found"),
    [
        ("from tasks import kmeans\nmonkeypatch.setattr(kmeans, 'BLOCK', 1)", ["BLOCK"]),
        ("from flows.explore import save as saving\npatch.setattr(saving, '_WAIT_S', 1)", ["_WAIT_S"]),
        ("import flows.demo.run as demo\npatch.setattr(demo, 'RECIPE', 1)", ["RECIPE"]),
        ("import tasks.images\npatch.setattr(tasks.images.decode, 'MOST', 1)", ["MOST"]),
        ("patch.setattr('tasks.vectors.mapped.PIECE_ROWS', 1)", ["PIECE_ROWS"]),
        ("patch.setattr(f'{module}.VERSIONS', 1)", ["VERSIONS"]),
        ("mock.patch('catalog.dataset.VERSIONS', 1)", ["VERSIONS"]),
        ("from tasks import kmeans\nmock.patch.object(kmeans, 'BLOCK', 1)", ["BLOCK"]),
        ("from tasks import kmeans\nkmeans.BLOCK = 1", ["BLOCK"]),
        ("from tasks import kmeans\nvars(kmeans)['BLOCK'] = 1", ["BLOCK"]),
        ("from tasks import kmeans\npatch.setitem(vars(kmeans), 'BLOCK', 1)", ["BLOCK"]),
        ("from tasks import kmeans\npatch.setitem(kmeans.KINDS, 'flat', 1)", ["KINDS"]),
        ("from tasks import kmeans\npatch.setattr(kmeans, 'fit', 1)", []),
        ("patch.setattr('catalog.takedown.erase.scrub', 1)", []),
        ("from PIL import Image\npatch.setattr(Image, 'MAX_IMAGE_PIXELS', 1)", []),
        ("patch.setenv('HOME', 'x')", []),
    ],
)
def test_which_patches_are_of_constants(code: str, found: list[str]) -> None:
    assert list(patched_constants(ast.parse(code))) == found
