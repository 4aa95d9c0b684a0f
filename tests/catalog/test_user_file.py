"""Files that users name: only regular files are read, and each reason not to is one line."""

import os
from pathlib import Path

import pytest

from catalog import user_file
from catalog.errors import UserError
from catalog.user_file import kind_of, plain, read_lines, unreadable


def test_a_regular_file_is_readable(tmp_path: Path) -> None:
    (tmp_path / "urls.txt").write_text("a\n")
    assert unreadable(tmp_path / "urls.txt") is None
    assert kind_of((tmp_path / "urls.txt").stat().st_mode) is None


@pytest.mark.parametrize("name", ["missing.txt", "file/below", "nul\0.txt"])
def test_a_file_that_does_not_exist_is_reported(tmp_path: Path, name: str) -> None:
    (tmp_path / "file").touch()
    assert unreadable(f"{tmp_path}/{name}") == "it does not exist"


def test_a_folder_a_pipe_and_a_device_are_not_files(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    assert unreadable(tmp_path) == "it is a folder, expected a file"
    assert unreadable(tmp_path / "pipe") == "it is a pipe, expected a file"
    assert unreadable("/dev/zero") == "it is a device, expected a file"


def test_a_name_that_is_too_long_is_reported_without_the_number_of_the_error(tmp_path: Path) -> None:
    assert unreadable(tmp_path / ("x" * 300)) == "File name too long"
    assert plain(OSError(28, "No space left on device")) == "No space left on device"


def test_lines_are_read_without_a_byte_order_mark(tmp_path: Path) -> None:
    (tmp_path / "urls.txt").write_bytes(b"\xef\xbb\xbfone\r\ntwo\n")
    assert read_lines(str(tmp_path / "urls.txt")) == ["one", "two"]


def test_the_line_that_is_not_utf8_is_named(tmp_path: Path) -> None:
    (tmp_path / "urls.txt").write_bytes(b"one\ntwo\n\xff\n")
    with pytest.raises(UserError, match=r"^line 3 is not UTF-8$"):
        read_lines(str(tmp_path / "urls.txt"))


def test_a_pipe_is_not_read(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(UserError, match=r"^it is a pipe, expected a file$"):
        read_lines(str(tmp_path / "pipe"))


def test_a_file_that_is_too_long_is_refused(tmp_path: Path) -> None:
    with (tmp_path / "long.txt").open("wb") as file:
        file.truncate(user_file.MAX_TEXT_BYTES + 1)
    with pytest.raises(UserError, match=r"^it is longer than 64 MB$"):
        read_lines(str(tmp_path / "long.txt"))
