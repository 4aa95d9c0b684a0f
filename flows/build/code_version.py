"""The version of the code: that of the installation, and the commit of the checkout that it runs from, by git."""

import os
import re
import subprocess
from contextlib import suppress
from importlib.metadata import version as installed_version
from pathlib import Path
from typing import Final

ROOT: Final = Path(__file__).parents[2]
DIRTY: Final = "+dirty"
"""What follows the commit where a tracked file differs from it."""

TIMEOUT_S: Final = 5.0
_DIGITS: Final = 12
_COMMIT: Final = re.compile(r"[0-9a-f]{40}(?:[0-9a-f]{24})?")


def code_version(root: Path = ROOT, timeout_s: float = TIMEOUT_S) -> str:
    """Return `0.1.0+g0123456789ab`, with `+dirty` where tracked files were changed; `0.1.0` where there is no checkout.

    Only a checkout of Espalier itself counts: not a repository that an installation happens to lie in. Where there is
    no `git` command, or it takes longer than `timeout_s`, the commit is read from git's files, and `+dirty` is never
    added.
    """
    found = commit_of(root, timeout_s) if (root / ".git").exists() else None
    return installed_version("espalier") + (f"+g{found}" if found else "")


def commit_of(root: Path, timeout_s: float = TIMEOUT_S) -> str | None:
    """Return the first digits of the checked-out commit and perhaps DIRTY; None if it is unknown."""
    return _asked(root, timeout_s) or _read(root)


def _asked(root: Path, timeout_s: float) -> str | None:
    """Ask git for the commit and the changed files, in one command."""
    words = ["git", "-C", str(root), "--no-optional-locks", "status", "--porcelain=v2", "--branch"]
    words.append("--untracked-files=no")
    environment = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}
    try:
        done = subprocess.run(  # noqa: S603  # git, wherever the user's PATH has it
            words, env=environment, capture_output=True, text=True, timeout=timeout_s, check=True
        )
    except (OSError, ValueError, subprocess.SubprocessError):
        return None
    lines = done.stdout.splitlines()
    head = next((line.split()[-1] for line in lines if line.startswith("# branch.oid ")), "")
    if not _COMMIT.fullmatch(head):  # (initial)
        return None
    changed = any(line and not line.startswith("#") for line in lines)
    return head[:_DIGITS] + (DIRTY if changed else "")


def _read(root: Path) -> str | None:
    """Read git's files: a worktree's `.git` names its folder, and that one the folder that has the branches."""
    with suppress(OSError, ValueError):
        own = root / ".git"
        if own.is_file():
            own = root / own.read_text().strip().removeprefix("gitdir: ")
        shared = own
        if (own / "commondir").is_file():
            shared = own / (own / "commondir").read_text().strip()
        head = (own / "HEAD").read_text().strip()
        if head.startswith("ref: "):
            head = _branch(own, shared, head.removeprefix("ref: ").strip())
        return head[:_DIGITS] if _COMMIT.fullmatch(head) else None
    return None


def _branch(own: Path, shared: Path, name: str) -> str:
    """Return the commit of a branch; the empty string where there is none yet."""
    for folder in (own, shared):
        if (folder / name).is_file():
            return (folder / name).read_text().strip()
    packed = shared / "packed-refs"
    lines = packed.read_text().splitlines() if packed.is_file() else []
    return next((line.split()[0] for line in lines if line.endswith(f" {name}") and line[0] not in "#^"), "")
