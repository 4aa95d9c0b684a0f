"""The arguments of `espalier sql`: limits, and the versions that a statement reads."""

from pathlib import Path

import pytest

from catalog.dataset import Catalog
from catalog.duck import half_of_memory_mb
from catalog.errors import UserError
from flows.explore.query import limits_of, versions_at


def test_limits_have_the_units_of_their_options() -> None:
    limits = limits_of(2.5, 300)
    assert (limits.timeout_s, limits.memory_mb) == (2.5, 300)
    assert "--timeout" in limits.hint
    assert "--memory" in limits.hint


def test_zero_seconds_mean_no_limit_and_memory_is_half_of_the_machines() -> None:
    limits = limits_of(0, None)
    assert limits.timeout_s is None
    assert limits.memory_mb == half_of_memory_mb()


@pytest.mark.parametrize("timeout_s", [-1, float("nan"), float("-inf")])
def test_an_invalid_time_limit_is_refused(timeout_s: float) -> None:
    with pytest.raises(UserError, match="expected seconds, or 0 for no limit"):
        limits_of(timeout_s, None)


def test_a_number_applies_to_the_datasets_that_the_statement_names(tmp_path: Path) -> None:
    catalog = Catalog(str(tmp_path / "catalog"), create=True)
    assert versions_at(catalog, "select 1", None) is None
    with pytest.raises(UserError, match="--at 3: the statement names no dataset"):
        versions_at(catalog, "select 1", 3)
