"""Local files that users name. Only regular files are read, because a pipe or a device may never end."""

import os
import stat
from pathlib import Path
from typing import Final

from catalog.errors import UserError, first_line

NOT_THERE: Final = "it does not exist"
PIPE: Final = "it is a pipe, expected a file"
MAX_TEXT_BYTES: Final = 64 << 20
"""Most bytes of a text file that is read into memory."""


def unreadable(path: str | Path) -> str | None:
    """Return why a file cannot be read, as the end of a message; None if it can be read."""
    try:
        mode = Path(path).stat().st_mode
    except (FileNotFoundError, NotADirectoryError, ValueError):  # ValueError: a NUL in the name
        return NOT_THERE
    except OSError as error:
        return plain(error)
    if kind := kind_of(mode):
        return f"it is {kind}, expected a file"
    return None if os.access(path, os.R_OK) else "permission denied"


def kind_of(mode: int) -> str | None:
    """Return the kind of a file that is not a regular one, in words; None for a regular file."""
    if stat.S_ISREG(mode):
        return None
    kinds = ((stat.S_ISDIR, "a folder"), (stat.S_ISFIFO, "a pipe"), (stat.S_ISSOCK, "a socket"))
    return next((name for test, name in kinds if test(mode)), "a device")


def plain(error: Exception) -> str:
    """Return the message of an OSError without its number."""
    return first_line(getattr(error, "strerror", None) or error)


def read_lines(path: str) -> list[str]:
    """Return the lines of a UTF-8 file. Raises UserError with the reason, as the end of a message."""
    if why := unreadable(path):
        raise UserError(why)
    try:
        with Path(path).open("rb") as file:
            data = file.read(MAX_TEXT_BYTES + 1)
        if len(data) > MAX_TEXT_BYTES:
            raise UserError(f"it is longer than {MAX_TEXT_BYTES >> 20} MB")
        return data.decode("utf-8-sig").splitlines()
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise UserError(f"line {line} is not UTF-8") from None
    except OSError as error:
        raise UserError(plain(error)) from None
