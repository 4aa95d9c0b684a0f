"""A copy of the project's tree, for tests that change its code, and Python commands that run in the copy."""

import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Final

ROOT: Final = Path(__file__).parents[1]
FOLDERS: Final = ("flows", "tasks", "catalog", "configs", "tests")


def copy_tree(to: Path) -> Path:
    """Copy the code, the recipes, the tests and their settings to a folder; return the folder."""
    for name in FOLDERS:
        shutil.copytree(ROOT / name, to / name, ignore=shutil.ignore_patterns("__pycache__", "benchmarks"))
    shutil.copy(ROOT / "pyproject.toml", to)
    return to


def run(tree: Path, *words: str) -> str:
    """Return what a Python command prints in the copy. Fails where the command does."""
    environment = os.environ | {"PYTHONPATH": str(tree), "PYTHONDONTWRITEBYTECODE": "1"}
    done = subprocess.run(
        [sys.executable, *words], cwd=tree, env=environment, capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout
