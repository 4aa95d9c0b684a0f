from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

import pytest

from tasks.pages import text


@pytest.mark.parametrize(
    ("hostile", "shown"),
    [
        ("a\x00b\x1b[31m", "ab[31m"),
        ("user\u202egpj.exe", "usergpj.exe"),
        ("\u2066isolate\u2069", "isolate"),
        ("line\nbreak\t tab", "line break tab"),
        ("lone \ud800 surrogate", "lone surrogate"),
        ("\U0001f468\u200d\U0001f469", "\U0001f468\u200d\U0001f469"),
        (None, "None"),
    ],
)
def test_clean_takes_out_what_is_invisible(hostile: object, shown: str) -> None:
    assert text.clean(hostile) == shown


def test_clean_cuts_what_is_long() -> None:
    assert text.clean("x" * 10**6, 10) == "x" * 9 + "…"
    assert text.clean("x" * 10, 10) == "x" * 10
    assert len(text.clean("\u202e" * 10**6 + "x")) == 1


def test_code_keeps_its_lines() -> None:
    assert text.code("a:\n\tb\x00\u202e") == "a:\n\tb"


@pytest.mark.parametrize(
    ("function", "value", "shown"),
    [
        (text.count, 1234567, "1,234,567"),
        (text.compact, 99_999, "99,999"),
        (text.compact, 1_234_567, "1.23 M"),
        (text.compact, 400_000_000, "400 M"),
        (text.compact, 123_456, "123 k"),
        (text.percent, 0.361, "36.1 %"),
        (text.percent, 1.0, "100 %"),
        (text.percent, 0, "0 %"),
        (text.percent, 0.00001, "< 0.1 %"),
        (text.percent, 0.99999, "> 99.9 %"),
        (text.size, 4_554_370, "4.55 MB"),
        (text.size, 999, "999 B"),
        (text.duration, 0.123, "0.12 s"),
        (text.duration, 96.2, "1 min 36 s"),
        (text.duration, 11_520, "3 h 12 min"),
        (text.number, 0.29412, "0.294"),
        (text.number, 1024.4, "1,024"),
        (text.number, float("nan"), "nan"),
        (text.number, None, "–"),
        (text.moment, datetime(2026, 3, 14, 9, 26, tzinfo=UTC), "2026-03-14 09:26 UTC"),
        (text.moment, "yesterday", "yesterday"),
        (text.note, [3, 2, 1.5, 1, 0.5, 0.25], "3 … 0.25 (6 values)"),
        (text.note, {"a": [1]}, '{"a": [1]}'),
        (text.note, True, "true"),
        (text.note, 12_000, "12,000"),
    ],
)
def test_numbers_read_well(function: Callable[..., Any], value: int, shown: str) -> None:
    assert function(value) == shown


def test_data_uri_takes_pictures_only() -> None:
    assert text.data_uri(b"\xff\xd8\xff\xe0") == "data:image/jpeg;base64,/9j/4A=="
    assert text.data_uri(b"<svg onload=alert(1)>") == ""
    assert text.data_uri(None) == ""
