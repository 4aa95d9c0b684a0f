"""What commands print: rows, JSON and styled text on standard output, messages on standard error."""

import json
from datetime import datetime
from typing import Any

import pytest
from rich.text import Text

from flows.cli.output import print_json, print_message, print_rich, print_rows

Captured = pytest.CaptureFixture[str]


def test_rows_as_a_table_and_as_json(capsys: Captured) -> None:
    rows: list[dict[str, Any]] = [{"dataset": "web", "MB": 1.5}, {"dataset": "vögel", "MB": None}]
    print_rows(rows, as_json=False)
    out = capsys.readouterr().out
    assert out.splitlines()[0].split() == ["dataset", "MB"]
    assert "(2 rows)" in out
    print_rows(rows, as_json=True)
    assert json.loads(capsys.readouterr().out) == rows


def test_no_rows(capsys: Captured) -> None:
    print_rows([], as_json=False)
    assert capsys.readouterr().out == "nothing\n"
    print_rows([], as_json=True)
    assert capsys.readouterr().out == "[]\n"


def test_all_of_many_rows_are_shown(capsys: Captured) -> None:
    print_rows([{"n": n} for n in range(900)], as_json=False)
    out = capsys.readouterr().out
    assert "(900 rows)" in out
    assert "899" in out.split()


def test_json_keeps_letters_and_has_text_for_what_it_has_no_form_for(capsys: Captured) -> None:
    print_json({"caption": "é 猫", "at": datetime(2024, 5, 1, 12, 30)})
    out = capsys.readouterr().out
    assert "é 猫" in out
    assert json.loads(out) == {"caption": "é 猫", "at": "2024-05-01 12:30:00"}


def test_styled_text_is_as_wide_as_columns_and_plain_without_a_terminal(
    capsys: Captured, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = Text("word " * 60, style="bold")
    for columns, width in ((None, 110), ("40", 40)):
        monkeypatch.delenv("COLUMNS", raising=False)
        if columns:
            monkeypatch.setenv("COLUMNS", columns)
        print_rich(text)
        out = capsys.readouterr().out
        assert "\x1b" not in out
        assert width - len("word ") < max(len(line) for line in out.splitlines()) <= width
        assert out.split() == ["word"] * 60


def test_messages_are_on_standard_error(capsys: Captured) -> None:
    print_message("web@1: saved")
    assert capsys.readouterr() == ("", "web@1: saved\n")
