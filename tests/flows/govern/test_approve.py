"""Approving a held version: it counts, unless a later one does; nothing else can be approved."""

from pathlib import Path

import pytest

from catalog.errors import BusyError, NotFoundError, UserError
from catalog.lease import hold
from flows.govern.approve import approve, describe, summary
from tests.flows.vectors import Planted


@pytest.fixture
def birds(tmp_path: Path) -> Planted:
    return Planted(tmp_path, rows=3)


def test_an_approved_version_is_the_latest(birds: Planted) -> None:
    birds.publish([0])
    birds.publish([0, 1], held=["min_rows: few"])
    assert birds.dataset.version().label == "birds@1"
    approved, last = approve(birds.catalog, "birds@2")
    assert (approved.label, last.label, birds.dataset.version().label) == ("birds@2", "birds@2", "birds@2")
    assert birds.dataset.held() == []
    assert (approved.is_held, approved.held, approved.tables["samples"].rows) == (False, ("min_rows: few",), 6)
    assert summary(approved, last) == "birds@2 is approved; it is the latest version of birds"
    assert describe(approved, last) == {"approved": "birds@2", "latest": "birds@2", "held_for": ["min_rows: few"]}
    with pytest.raises(UserError, match="birds@2 was approved before, at 20"):
        approve(birds.catalog, "birds@2")


def test_a_later_version_remains_the_latest(birds: Planted) -> None:
    birds.publish([0], held=["min_rows: few"])
    birds.publish([0, 1])
    approved, last = approve(birds.catalog, "birds@1")
    assert (approved.label, last.label, birds.dataset.version().label) == ("birds@1", "birds@2", "birds@2")
    assert summary(approved, last).startswith("birds@1 is approved; birds@2 is newer and remains the latest. ")
    assert describe(approved, last)["latest"] == "birds@2"


def test_of_two_held_versions_the_other_stays_held(birds: Planted) -> None:
    for parts in ([0], [0, 1]):
        birds.publish(parts, held=["min_rows: few"])
    with pytest.raises(UserError, match=r"'birds' names no version.*\(held now: birds@2, birds@1\)"):
        approve(birds.catalog, "birds")
    approved, last = approve(birds.catalog, "birds@1")
    assert (approved.label, last.label) == ("birds@1", "birds@1")
    assert [version.label for version in birds.dataset.held()] == ["birds@2"]


def test_what_cannot_be_approved(birds: Planted) -> None:
    birds.publish([0])
    for label, error, message in [
        ("birds", UserError, r"'birds' names no version; expected DATASET@NUMBER \(held now: none\)"),
        ("birds@", UserError, "names no version"),
        ("birds@x", UserError, "birds@x"),
        ("birds@9", NotFoundError, "no version 9; there is: 1"),
        ("bird@1", NotFoundError, "did you mean 'birds'"),
        ("birds@1", UserError, "birds@1 is not held: there is nothing to approve"),
    ]:
        with pytest.raises(error, match=message):
            approve(birds.catalog, label)


def test_a_build_that_is_running_comes_first(birds: Planted) -> None:
    birds.publish([0], held=["min_rows: few"])
    with hold(birds.dataset):
        for wait_s in (0.0, 0.1):
            with pytest.raises(BusyError, match="is being built by process"):
                approve(birds.catalog, "birds@1", wait_s)
    assert [version.label for version in birds.dataset.held()] == ["birds@1"]
    assert approve(birds.catalog, "birds@1", None)[1].label == "birds@1"
