"""The closed list of reasons why a row has no image."""

import re
from typing import get_args

from tasks import images
from tasks.reasons import NETWORK, REASONS, Retry


def test_every_reason_has_a_name_of_words_a_description_and_a_rule_for_retries() -> None:
    assert len({reason.about for reason in REASONS.values()}) == len(REASONS) > 30
    for name, reason in REASONS.items():
        assert re.fullmatch(r"[a-z][a-z0-9_]+", name)
        assert reason.about
        assert reason.retry in get_args(Retry)


def test_an_outage_is_worth_a_later_build() -> None:
    assert {REASONS[name].retry for name in NETWORK} == {"now", "later"}


def test_the_reasons_of_the_decoder_are_on_the_list() -> None:
    for data in (b"", b"<html>", b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff\xe0", b"RIFF\0\0\0\0WEBP"):
        assert images.decode_fault(data) in REASONS
