"""The root of the command line: its help, version and completion, and what no command is asked for."""

import json
import re
from pathlib import Path

import pytest

from flows.cli.app import COMMANDS
from tests.flows.cli.conftest import check, name_of
from tests.flows.conftest import Run, Web

NAMES = [command.__name__ for command in COMMANDS]
MISTAKES = [
    ("No such command 'nonsense'", "nonsense"),
    ("No such option: --nonsense", "--nonsense"),
    ("is no UTF-8 text", "why", "web", "\udcff"),
    ("unexpected extra argument", "schema", "extra"),
    *(("No such option: --nonsense", name, "--nonsense") for name in NAMES),
]


@pytest.mark.parametrize("mistake", MISTAKES, ids=name_of)
def test_a_mistake_is_one_line(run: Run, mistake: tuple[str, ...]) -> None:
    expected, *words = mistake
    check(words, *run(*words), expected=expected)


def test_help_lists_every_command_in_order(run: Run) -> None:
    code, out, err = run("--help")
    assert (code, err) == (0, "")
    assert re.findall(r"^\W ([a-z]+) ", out.partition("Commands")[2], re.MULTILINE) == NAMES
    assert run("-h")[1] == out
    code, shown, err = run()
    assert "Usage: espalier" in shown + err


def test_every_command_has_help(run: Run) -> None:
    for command in COMMANDS:
        code, out, err = run(command.__name__, "--help")
        assert (code, err) == (0, "")
        assert f"Usage: espalier {command.__name__}" in out
        first = (command.__doc__ or "").split()[:4]
        assert len(first) == 4
        assert " ".join(first) in " ".join(out.split()), command


def test_debug_shows_the_traceback(built: Web, run: Run) -> None:
    """It is known before and after the name of the command, and changes neither the line nor the exit code."""
    words = ["show", "wep", "--catalog", built.catalog]
    code, out, line = run(*words)
    for debugged in (["--debug", *words], [*words, "--debug"]):
        code, out, err = run(*debugged)
        assert (code, out) == (2, "")
        assert "Traceback" in err
        assert err.endswith(line)


def test_results_are_on_standard_output_alone(built: Web, run: Run) -> None:
    code, out, err = run("ls", "--catalog", built.catalog, "--json")
    assert (code, err) == (0, "")
    assert [row["dataset"] for row in json.loads(out)] == ["order", "select", "web"]


def test_the_version_and_completion(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    code, out, _ = run("--version")
    assert code == 0
    assert out.startswith("espalier 0.")
    for name, value in {"COMP_WORDS": "espalier ver", "COMP_CWORD": "1"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("_ESPALIER_COMPLETE", "complete_bash")
    code, out, _ = run()
    assert (code, "versions" in out.split()) == (0, True)


def test_a_failure_that_is_no_mistake_is_exit_code_1(built: Web, run: Run, full_disk: Path) -> None:
    """A disk without room, for example."""
    query = "select repeat('x', 4000000) || i as x from range(3) t(i)"
    words = ["sql", query, "--catalog", built.catalog, "-o", str(full_disk / "out.csv")]
    check(words, *run(*words), codes=(1,), expected="No space left on device")
    assert list(full_disk.iterdir()) == []
