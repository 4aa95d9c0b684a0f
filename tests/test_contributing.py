"""CONTRIBUTING.md: the worked example is carried out, block by block, in a copy of the tree."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.pictures import jpeg
from tests.tree_copy import ROOT, copy_tree, run

TEXT = (ROOT / "CONTRIBUTING.md").read_text()
BLOCKS = re.findall(r"^```(\w+)\n(.*?)^```$", TEXT, re.MULTILINE | re.DOTALL)
PYTHON = [block for language, block in BLOCKS if language == "python"]
FILES = {block.split("\n", 1)[0].removeprefix("# "): block.split("\n", 1)[1] for block in PYTHON if block[0] == "#"}
UNION = "AnyPrune = Annotated[\n    "


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """Return a copy of the tree in which steps 1 to 3 have been carried out."""
    copy = copy_tree(tmp_path / "espalier")
    for path, text in FILES.items():
        assert not (copy / path).exists(), f"the example adds {path}, which is there already"
        (copy / path).write_text(text)
    (line,) = (block for block in PYTHON if block[0] != "#")
    registry = copy / re.findall(r"Import the class in `(.*?)`", TEXT)[0]
    before = registry.read_text()
    assert UNION in before
    name = line.split()[-1]
    after = before.replace("\nfrom tasks.", f"\n{line}from tasks.", 1).replace(UNION, f"{UNION}{name} | ")
    registry.write_text(after)
    return copy


def test_the_example_is_a_file_a_name_and_a_test() -> None:
    assert list(FILES) == ["tasks/prune/moderate.py", "tests/tasks/prune/test_moderate.py"]


def test_the_examples_own_test_and_the_contract_tests_pass(tree: Path) -> None:
    tests = ["tests/tasks/prune/test_moderate.py", "tests/test_layout.py", "tests/tasks/test_contracts.py"]
    chosen = ["-k", "moderate or Moderate or grab_bags or file_of_its_name"]
    printed = run(tree, "-m", "pytest", "-q", "-p", "no:randomly", "-p", "no:cacheprovider", *chosen, *tests)
    passed = re.search(r"^(\d+) passed", printed.splitlines()[-1])
    assert passed, printed
    assert int(passed[1]) > 3 + 2 + 1, "the contract tests know nothing of the new method"


def test_the_examples_code_passes_the_linter(tree: Path) -> None:
    run(tree, "-m", "ruff", "check", "--no-cache", *FILES)
    run(tree, "-m", "ruff", "format", "--no-cache", "--check", *FILES)


def test_the_examples_recipe_is_valid_with_it_and_refused_without(tree: Path, tmp_path: Path) -> None:
    (recipe,) = (block for language, block in BLOCKS if language == "yaml")
    pictures = tmp_path / "pictures"
    pictures.mkdir()
    (pictures / "a.jpg").write_bytes(jpeg(40, 40, seed=0))
    path = tmp_path / "pictures.yaml"
    path.write_text(recipe.replace("path: pictures", f"path: {pictures}"))
    assert '"moderate"' in run(tree, "-m", "flows.cli", "schema")
    plan = json.loads(run(tree, "-m", "flows.cli", "plan", str(path), "--json"))
    assert "prune" in [stage["use"] for stage in plan]
    refused = subprocess.run(
        [sys.executable, "-m", "flows.cli", "plan", str(path)], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert refused.returncode == 2
    assert "moderate" in refused.stderr
