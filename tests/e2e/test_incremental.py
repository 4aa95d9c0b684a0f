"""Whatever was edited, grown, tried again, taken down or killed before: a build gives what it gives from nothing."""

import os
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.sequences import Step, run, run_random

SEEDS = (1, 2)
"""Seed 1 finds the fault of tables whose state was cached while they grew, in its first step."""
MORE = int(os.environ.get("ESPALIER_SEQUENCES", "12"))
"""How many sequences the slow test draws; their seeds begin with ESPALIER_SEED."""

PICTURES: list[list[Any]] = [["ok", picture, 0] for picture in (2, 9, 3, 16, 7, 12, 9, 5)]
FAILING: list[list[Any]] = [["broken", 11, "x"], ["gone", 1, 0], ["broken", 4, "y"], ["ok", 2, 1], ["ok", 14, 0]]
DEDUPLICATE = {"use": "deduplicate", "name": "deduplicate"}
LOOKS = {"use": "deduplicate", "name": "looks", "exact": False, "perceptual": {"radius": 6}}
LANGUAGE = {"use": "language", "name": "language"}
PRUNE = {"use": "prune", "name": "prune", "method": "random", "keep": 0.7}
WIDE = {"use": "filter", "name": "wide", "where": "original_width >= 60"}
REPORT = {"use": "report", "name": "report", "samples": 2, "pairs": 1}

KNOWN: dict[str, list[Step]] = {
    "a pruning after a stage that read the decisions": [
        ["start", "web", [DEDUPLICATE, LANGUAGE, PRUNE], {"a": PICTURES}],
        ["set", "prune", "keep", 0.2],
        ["add", 3, REPORT],
    ],
    "a take-down of what stood for another row, and a retry": [
        ["start", "web", [LOOKS, PRUNE], {"a": PICTURES, "b": FAILING}],
        ["take", 4, "none"],
        ["retry"],
        ["set", "prune", "keep", 0.5],
    ],
    "a take-down where no stage sees whole tables": [
        ["start", "web", [WIDE, {"use": "filter", "name": "worded", "where": "length(caption) >= 5"}], {"a": PICTURES}],
        ["take", 3, "bytes"],
    ],
    "two retries that were never built, and a collection": [
        ["start", "web", [DEDUPLICATE], {"b": FAILING}],
        ["order", "not_found"],
        ["order", "server_error"],
        ["collect"],
        ["retry", "not_found"],
    ],
    "files that come, go, and change their order": [
        ["start", "folder", [WIDE, PRUNE], {"b": PICTURES}],
        ["file", "a", PICTURES[2:6]],
        ["refile", "b", "0"],
        ["unfile", "a"],
    ],
}


@pytest.mark.parametrize("name", KNOWN)
def test_a_sequence_that_once_failed_or_nearly(name: str) -> None:
    run(KNOWN[name])


@pytest.mark.parametrize("seed", SEEDS)
def test_any_sequence(tmp_path: Path, seed: int) -> None:
    run_random(tmp_path, seed, steps=4)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(first := int(os.environ.get("ESPALIER_SEED", "100")), first + MORE))
def test_any_longer_sequence(tmp_path: Path, seed: int) -> None:
    run_random(tmp_path, seed, steps=12)
