"""A predicate that cannot be interrupted, in a whole build: one line says the stage, the predicate and the limit."""

import subprocess
import sys

import pytest

from tests.flows.conftest import Web

STUCK = "levenshtein(repeat(caption, 60000), repeat('b', 900000)) > 0"


@pytest.mark.parametrize("executor", ["inline", "ray"])
def test_a_predicate_that_cannot_be_interrupted_is_named_with_its_limit(web: Web, executor: str) -> None:
    recipe = web.recipe(f'  - {{use: filter, name: slow, where: "{STUCK}", timeout_s: 0.5}}\n')
    command = [sys.executable, "-m", "flows.cli", "build", str(recipe), "--catalog", web.catalog]
    found = subprocess.run([*command, "--executor", executor], capture_output=True, text=True, timeout=400, check=False)
    last = found.stderr.splitlines()[-1]
    assert last == (
        f"espalier: stage 'slow': the filter \"{STUCK}\" took longer than 0.5 s and was stopped; "
        "lower `resources.batch_rows` or raise `timeout_s`"
    )
    assert found.returncode == 2
    assert "fault of Espalier" not in found.stderr
