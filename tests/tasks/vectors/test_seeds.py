"""Derived seeds: golden values, as every stored result that involves chance depends on them."""

import pytest

from tasks.vectors.seeds import derived_seed, round_seed, text_key


@pytest.mark.parametrize(
    ("seed", "label", "expected"),
    [
        (0, "embed", 934039287836555267),
        (7, "prune", 2365292521740218055),
        (-3, "Züge", 652784681353834758),
        (2**63 - 1, 12, 2216863673276137467),  # a step of training
    ],
)
def test_the_seed_of_a_stage_a_member_or_a_step_never_changes(seed: int, label: str | int, expected: int) -> None:
    assert derived_seed(seed, label) == expected


@pytest.mark.parametrize(
    ("seed", "number", "expected"),
    [(0, 1, 6017775124710473527), (7, 2, 5992464809206441087), (-3, 5, 1601859614206639245)],
)
def test_the_seed_of_a_round_never_changes(seed: int, number: int, expected: int) -> None:
    assert round_seed(seed, number) == expected


def test_the_key_of_a_text_never_changes() -> None:
    keys = [16406829232824261652, 14598278634844962250, 6950308537068853028]
    assert [text_key(text) for text in ("", "a", "ü")] == keys
