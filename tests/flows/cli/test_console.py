"""How the program ends: its exit codes and last words, tried as a shell runs it."""

import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from catalog.errors import BuildError, UserError
from flows.cli.console import explained, printable

ENDLESS = "select count(*) from range(1000000000000) t(x) where (x % 1000003) * (x % 1000033) % 7 = 3"
PROGRAM = [sys.executable, "-c", "from flows.cli import entry; entry()"]


def shell(command: str, folder: Path) -> subprocess.CompletedProcess[str]:
    """Run a command line in which `espalier` is the program."""
    script = f'espalier() {{ "{sys.executable}" -c "from flows.cli import entry; entry()" "$@"; }}; {command}'
    where = Path(__file__).parents[3]
    words = ["bash", "-c", script.replace("CATALOG", str(folder))]
    return subprocess.run(words, capture_output=True, text=True, timeout=300, check=False, cwd=where)


def test_a_reader_that_has_enough_is_no_error(tmp_path: Path) -> None:
    many = "espalier sql 'select i from range(3000000) t(i)' --catalog CATALOG --format"
    for format_, first in (("csv", '"i"\n0\n'), ("jsonl", '{"i":0}\n{"i":1}\n')):
        done = shell(f"{many} {format_} | head -2; echo ${{PIPESTATUS[0]}}", tmp_path)
        assert (done.stdout, done.stderr) == (f"{first}141\n", "")
    done = shell("espalier ls --catalog CATALOG | true; echo ${PIPESTATUS[0]}", tmp_path)
    assert done.stderr == ""


def test_a_full_or_closed_standard_output(tmp_path: Path) -> None:
    done = shell("espalier sql 'select 1' --catalog CATALOG > /dev/full", tmp_path)
    assert (done.returncode, done.stderr) == (1, "espalier: cannot write: No space left on device\n")
    done = shell("espalier sql 'select 1' --catalog CATALOG >&- 2>&-", tmp_path)
    assert done.returncode == 0


def test_standard_output_that_is_a_file_is_not_replaced(tmp_path: Path) -> None:
    out = tmp_path / "out.txt"
    words = "espalier sql 'select 1 as a' --catalog CATALOG --format csv -o /dev/stdout"
    shell(f"(echo before; {words}) > {out}", tmp_path)
    assert out.read_text() == 'before\n"a"\n1\n'


def test_ctrl_c_stops_a_query(tmp_path: Path) -> None:
    words = [*PROGRAM, "sql", ENDLESS, "--catalog", str(tmp_path)]
    with subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as running:
        while not any("duckdb" in line for line in Path(f"/proc/{running.pid}/maps").read_text().splitlines()):
            time.sleep(0.1)  # it has not begun
        time.sleep(1)
        running.send_signal(signal.SIGINT)
        out, err = running.communicate(timeout=120)
    assert (running.returncode, out, err) == (130, "", "espalier: stopped\n")


@pytest.mark.parametrize(
    ("error", "message", "code"),
    [
        (UserError("x"), "x", 2),
        (BuildError("x"), "x", 1),
        (KeyboardInterrupt(), "stopped", 130),
        (MemoryError(), "this needs more memory than there is", 1),
        (PermissionError(13, "Permission denied", "/x"), "cannot use '/x': Permission denied", 2),
        (OSError(28, "No space left on device"), "cannot write: No space left on device", 1),
        (KeyError("x"), "KeyError: 'x' (this is a fault of Espalier: --debug shows where)", 1),
    ],
)
def test_whose_fault_it_is(error: BaseException, message: str, code: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["espalier", "sql"])
    assert explained(error) == (message, code)


def test_a_build_that_is_stopped_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["espalier", "build", "x.yaml"])
    assert explained(KeyboardInterrupt()) == (
        "stopped; what is finished is kept, and the same command continues from there",
        130,
    )


def test_a_terminal_is_not_moved() -> None:
    assert printable("a\x1b[31mb\x07\u202e é\n\t") == "a\\x1b[31mb\\x07\\u202e é\n\t"
