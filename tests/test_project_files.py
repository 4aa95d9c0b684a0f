"""Files about the project: they are valid, and agree with pyproject.toml."""

import re
import tomllib
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).parents[1]
PROJECT: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
CITATION: dict[str, Any] = yaml.safe_load((ROOT / "CITATION.cff").read_text())


def test_the_citation_has_what_its_format_requires() -> None:
    """The Citation File Format 1.2.0: four required keys, and one of the two kinds of author."""
    assert CITATION["cff-version"] == "1.2.0"
    assert {"message", "title", "authors"} <= CITATION.keys()
    assert CITATION["authors"]
    for author in CITATION["authors"]:
        assert "name" in author or {"given-names", "family-names"} & author.keys()


def test_the_citation_is_of_this_version_and_licence() -> None:
    assert CITATION["version"] == PROJECT["version"]
    assert CITATION["license"] == PROJECT["license"]


def test_hooks_run_what_make_lint_runs_and_download_nothing() -> None:
    hooks = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())["repos"]
    assert {repository["repo"] for repository in hooks} == {"local"}
    entries = [hook for repository in hooks for hook in repository["hooks"]]
    assert {hook["language"] for hook in entries} == {"system"}
    lint = (ROOT / "Makefile").read_text().partition("\nlint:")[2].partition("\n\n")[0]
    tools = set(re.findall(r"\$\(BIN\)/([\w-]+)", lint))
    assert {hook["entry"].split()[0].removeprefix(".venv/bin/") for hook in entries} == tools


def test_every_locked_version_is_allowed_by_the_project() -> None:
    from packaging.requirements import Requirement

    lines = [line for line in (ROOT / "requirements.lock").read_text().splitlines() if line and line[0] != "#"]
    locked = {r.name.lower().replace("_", "-"): r for r in map(Requirement, lines)}
    assert len(locked) == len(lines)
    extras = PROJECT["optional-dependencies"]
    for wanted in map(Requirement, [*PROJECT["dependencies"], *extras["cpu"], *extras["dev"]]):
        (pin,) = locked[wanted.name.lower()].specifier
        assert pin.operator == "=="
        assert wanted.specifier.contains(pin.version), f"{wanted} does not allow {pin.version}"


def test_the_supported_versions_of_python_are_the_same_everywhere() -> None:
    prefix = "Programming Language :: Python :: "
    named = [entry.removeprefix(prefix) for entry in PROJECT["classifiers"] if entry.startswith(prefix)]
    assert named == ["3.11", "3.12", "3.13"]
    assert PROJECT["requires-python"] == ">=3.11,<3.14"
    setup = (ROOT / "infra" / "setup.sh").read_text()
    assert "(3, 11) <= sys.version_info[:2] <= (3, 13)" in setup
    assert re.findall(r"command -v python(3\.\d+)", setup) == named
