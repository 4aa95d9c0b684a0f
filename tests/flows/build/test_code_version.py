"""The commit is git's own, whatever form its files have, and without git the files say it."""

import os
import subprocess
from importlib.metadata import version
from pathlib import Path

import pytest

from flows.build.code_version import ROOT, code_version, commit_of

VERSION = version("espalier")


def git(folder: Path, *words: str) -> str:
    names = (
        "-c",
        "user.name=a",
        "-c",
        "user.email=a@b",
        "-c",
        "commit.gpgsign=false",
        "-c",
        "core.hooksPath=/dev/null",
    )
    done = subprocess.run(["git", *names, *words], cwd=folder, capture_output=True, text=True, check=True)
    return done.stdout.strip()


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    folder = tmp_path / "checkout"
    folder.mkdir()
    git(folder, "init", "-q", "-b", "main")
    (folder / "code.py").write_text("1")
    git(folder, "add", ".")
    git(folder, "commit", "-qm", "one")
    return folder


@pytest.fixture(params=["git", "files"])
def way(request: pytest.FixtureRequest) -> str:
    """Ask the command, or have no such command."""
    return str(request.param)


def said(folder: Path, way: str) -> str:
    """Return what is said of a checkout, with the command or without."""
    with pytest.MonkeyPatch.context() as patch:
        if way == "files":
            patch.setenv("PATH", "/nonexistent")
        return code_version(folder)


def commit(folder: Path) -> str:
    return f"{VERSION}+g{git(folder, 'rev-parse', 'HEAD')[:12]}"


def test_a_branch(checkout: Path, way: str) -> None:
    assert said(checkout, way) == commit(checkout)


def test_packed_references(checkout: Path, way: str) -> None:
    git(checkout, "pack-refs", "--all")
    assert not (checkout / ".git" / "refs" / "heads" / "main").exists()
    assert said(checkout, way) == commit(checkout)


def test_a_detached_head(checkout: Path, way: str) -> None:
    git(checkout, "checkout", "-q", "--detach")
    assert said(checkout, way) == commit(checkout)


@pytest.mark.parametrize("packed", [False, True])
def test_a_worktree(checkout: Path, tmp_path: Path, way: str, packed: bool) -> None:
    other = tmp_path / "other"
    git(checkout, "worktree", "add", "-q", "-b", "topic/x", str(other))
    (other / "code.py").write_text("2")
    git(other, "commit", "-qam", "two")
    if packed:
        git(checkout, "pack-refs", "--all")
    assert (other / ".git").is_file()
    assert said(other, way) == commit(other) != commit(checkout)


def test_changed_files_are_told(checkout: Path) -> None:
    (checkout / "new.txt").write_text("not tracked")
    assert code_version(checkout) == commit(checkout)
    (checkout / "code.py").write_text("2")
    assert code_version(checkout) == f"{commit(checkout)}+dirty"
    git(checkout, "add", "code.py")
    assert code_version(checkout) == f"{commit(checkout)}+dirty"
    git(checkout, "commit", "-qam", "two")
    assert code_version(checkout) == commit(checkout)


def test_no_commit_yet(tmp_path: Path, way: str) -> None:
    git(tmp_path, "init", "-q")
    assert said(tmp_path, way) == VERSION


def test_no_checkout(tmp_path: Path, checkout: Path, way: str) -> None:
    """An installation inside of somebody's repository is not a checkout of ours."""
    inside = checkout / ".venv" / "lib" / "site-packages"
    inside.mkdir(parents=True)
    assert said(inside, way) == VERSION
    assert said(tmp_path, way) == VERSION


def test_variables_of_another_repository_mean_nothing(
    checkout: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As git sets them for its hooks."""
    other = tmp_path / "hooked"
    other.mkdir()
    git(other, "init", "-q")
    before = commit(checkout)
    monkeypatch.setenv("GIT_DIR", str(other / ".git"))
    assert code_version(checkout) == before


@pytest.mark.timeout(120)
def test_a_git_that_hangs(checkout: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = commit(checkout)
    folder = tmp_path / "bin"
    folder.mkdir()
    (folder / "git").write_text("#!/bin/sh\nexec sleep 9999\n")
    (folder / "git").chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")
    assert code_version(checkout, timeout_s=0.2) == before


def test_this_checkout() -> None:
    if not (ROOT / ".git").exists():
        pytest.skip("not a checkout")
    assert commit_of(ROOT) is not None
