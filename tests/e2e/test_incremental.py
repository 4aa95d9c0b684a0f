"""Whatever was edited, grown, tried again, taken down or killed before: a build gives what it gives from nothing."""

import os
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.sequences import EXAM, VECTORS, Step, run, run_random

SEEDS = (1, 2)
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
WORDED = {"use": "filter", "name": "worded", "where": "length(caption) >= 5"}
EMBED, CLUSTER, CONCEPTS, MEANING, DENSITY, FITTING = map(dict, VECTORS)
TORN: list[list[Any]] = [["torn", 6, 1], ["ok", 8, 1], ["ok", 15, 0], ["gone", 3, 0], ["broken", 10, "z"]]

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
        ["start", "web", [WIDE, WORDED], {"a": PICTURES}],
        ["take", 3, "bytes"],
    ],
    "two retries that were never built, and a collection": [
        ["start", "web", [DEDUPLICATE], {"b": FAILING}],
        ["order", "not_found"],
        ["order", "server_error"],
        ["collect"],
        ["retry", "not_found"],
    ],
    "tables whose state was cached while they grew": [
        ["start", "web", [WORDED, PRUNE, WIDE, LOOKS], {"a": PICTURES, "b": FAILING}],
        ["file", "0", PICTURES[1:7]],
    ],
    "a take-down of a record that is broken, which has neither URL nor caption": [
        ["start", "csv", [WORDED], {"a": [*PICTURES, *TORN]}],
        ["take", len(PICTURES), "bytes"],
    ],
    "vectors of a CSV source that grows, and a take-down of one of them": [
        ["start", "csv", [EMBED, CLUSTER, MEANING, CONCEPTS], {"b": PICTURES}],
        ["grow", "b", TORN],
        ["source", "label", "NOTE"],
        ["set", "cluster", "k", 3],
        ["take", 3, "bytes"],
    ],
    "vectors of tars whose members and names change": [
        ["start", "webdataset", [EMBED, FITTING, CLUSTER, DENSITY], {"a": PICTURES, "b": TORN}],
        ["refile", "b", "0"],
        ["set", "fitting", "where", "clip_score > 0"],
        ["file", "a", FAILING + PICTURES[:4]],
    ],
    "files that come, go, and change their order": [
        ["start", "folder", [WIDE, PRUNE], {"b": PICTURES}],
        ["file", "a", PICTURES[2:6]],
        ["refile", "b", "0"],
        ["unfile", "a"],
    ],
}


OTHER: list[Step] = [
    ["start", "folder", [PRUNE], {"a": PICTURES}],
    ["exam", PICTURES[:4], 3],
    ["add", 0, EXAM],
    ["erase", 1],
    ["exam", PICTURES[3:7], 4],
    ["set", "exam", "radius", None],
    ["take", 2, "bytes"],
]
"""Steps of a dataset that reads versions of another."""


def test_a_sequence_with_versions_of_another_dataset() -> None:
    run(OTHER)


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
