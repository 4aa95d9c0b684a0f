"""Messages say one thing and many things rightly."""

import pytest

from catalog.wording import amount


@pytest.mark.parametrize(
    ("number", "one", "many", "said"),
    [
        (0, "row", None, "0 rows"),
        (1, "row", None, "1 row"),
        (2000, "row", None, "2,000 rows"),
        (1, "row is", "rows are", "1 row is"),
        (3, "row is", "rows are", "3 rows are"),
    ],
)
def test_numbers_of_things(number: int, one: str, many: str | None, said: str) -> None:
    assert amount(number, one, many) == said
