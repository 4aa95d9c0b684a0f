"""Unit rows have length 1; rows without a direction become NaN; kept on the device or read lazily is the same."""

import numpy as np

from tasks.vectors import unit_rows
from tests.tasks.vectors.planted_rows import mixture, unit


def test_rows_have_length_one_and_broken_ones_are_nan() -> None:
    rows, _ = mixture(0, n=50)
    rows[3], rows[7], rows[9, 2] = 0, np.inf, np.nan
    found = unit_rows.units(rows, "cpu").numpy()
    good = np.setdiff1d(np.arange(50), [3, 7, 9])
    np.testing.assert_allclose(found[good], unit(rows[good]), atol=1e-6)
    assert np.isnan(found[[3, 7, 9]]).all()


def test_rows_that_are_read_lazily_are_those_that_are_kept() -> None:
    rows, _ = mixture(0, n=200)
    kept = unit_rows.UnitRows(rows, "cpu")
    lazy = unit_rows.UnitRows(rows, "cpu", held_bytes=0)
    assert len(kept) == len(lazy) == 200
    assert (kept[13:77] == lazy[13:77]).all()
    rows[:] = 0  # both read float16 rows; only one of them still reads these
    assert not kept[13:77].isnan().any()
    assert lazy[13:77].isnan().all()
