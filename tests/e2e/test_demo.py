"""`espalier demo`, as a user runs it: every check passes, and the second run starts at once."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow


def test_the_demo(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "flows.cli", "demo", "--catalog", str(tmp_path / "catalog"), "--json"]
    for limit_s in (1200, 120):
        done = subprocess.run(command, capture_output=True, text=True, timeout=limit_s, env=os.environ, check=False)
        assert done.returncode == 0, done.stdout + done.stderr[-3000:]
        assert all(check["passed"] for check in json.loads(done.stdout))
    assert "cached" not in done.stderr, "the second run should not even plan a stage"
