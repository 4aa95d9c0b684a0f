"""The tree of errors.

    EspalierError            every error that Espalier raises on purpose
    ├── UserError            the user can correct it: one line, exit code 2     (also a ValueError)
    │   ├── RecipeError      a recipe that cannot be built
    │   ├── QueryError       a SQL statement that cannot run
    │   ├── NotFoundError    a dataset, version, table or file that does not exist
    │   └── BusyError        another process is building this dataset
    └── BuildError           a build that could not finish: exit code 1
        ├── DamagedError     a file of a dataset differs from what was written: `espalier verify` names it
        ├── PartError        one part kept failing; carries its traceback
        ├── BalanceError     rows were lost or doubled between two stages
        └── HeldError        the version is stored, but a guard keeps it from becoming the latest

A message names what was found, what was expected and the nearest valid name, on one line.
"""

import errno
import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from difflib import get_close_matches
from typing import Any, Final

_LISTED: Final = 40
"""Most names that a message lists."""
_READ_ERRORS: Final = {"IOException", "InvalidInputException", "SerializationException", "Error"}
"""Errors of DuckDB that indicate a damaged file."""
_PARQUET: Final = re.compile(r"""['"]([^'"]+)/([a-z][a-z0-9_]*/[^/'"]+\.parquet)['"]""")
_NO_DAMAGE: Final = {errno.EACCES, errno.EPERM, errno.EMFILE, errno.ENFILE, errno.ENOMEM}
"""Reasons why an undamaged file cannot be read."""


class EspalierError(Exception):
    """Root of every error that Espalier raises on purpose."""


class UserError(EspalierError, ValueError):
    """An error that the user can correct. Shown as one line; exit code 2."""


class RecipeError(UserError):
    """A recipe that cannot be built."""


class QueryError(UserError):
    """A SQL statement that cannot run."""


class NotFoundError(UserError):
    """A dataset, version, table or file that does not exist."""


class BusyError(UserError):
    """Another process holds the dataset."""


class BuildError(EspalierError):
    """A build that could not finish. Exit code 1."""


class DamagedError(BuildError):
    """A file of a dataset that is missing, cannot be read, or differs from what was written."""


class StoredImageError(DamagedError):
    """A stored image that cannot be decoded, although it could when it was stored."""

    def __init__(self, sample_id: int, reason: str, table: str = "images") -> None:
        super().__init__(f"the stored picture of sample {sample_id} cannot be decoded ({reason})")
        self.sample_id = sample_id
        self.reason = reason
        self.table = table
        """The table that locates it, as stages name it: `images`, or `real.images` of another dataset."""

    def __reduce__(self) -> tuple[type["StoredImageError"], tuple[int, str, str]]:
        return StoredImageError, (self.sample_id, self.reason, self.table)


class PartError(BuildError):
    """A part that kept failing. `traceback` is the text of the worker's traceback."""

    def __init__(self, message: str, traceback: str = "") -> None:
        super().__init__(message)
        self.traceback = traceback

    def __reduce__(self) -> tuple[type["PartError"], tuple[str, str]]:
        return PartError, (str(self), self.traceback)


class BalanceError(BuildError):
    """Rows were lost or doubled between two stages."""


class HeldError(BuildError):
    """A version that a guard holds: it is stored, and becomes the latest only when somebody approves it.

    `facts` describe it as JSON values.
    """

    def __init__(self, message: str, facts: Mapping[str, Any] | None = None) -> None:
        super().__init__(message)
        self.facts = dict(facts or {})

    def __reduce__(self) -> tuple[type["HeldError"], tuple[str, dict[str, Any]]]:
        return HeldError, (str(self), self.facts)


def damaged(place: str, path: str, why: str) -> DamagedError:
    """Return the error for a damaged file. `place`: the dataset's URI; `path`: relative to it."""
    name = place.rstrip("/").rpartition("/")[2]
    return DamagedError(
        f"{place}/{path} is damaged: {why}; `espalier verify {name} --repair` sets aside what is damaged, "
        "and the next build makes it again"
    )


def damage_in_sql(error: Exception) -> DamagedError | None:
    """Return the error for the damaged Parquet file that DuckDB's error is about; None for any other error."""
    text, kind = _one_line(error), type(error).__name__
    found = _PARQUET.search(text)
    if found and kind in _READ_ERRORS:
        return damaged(found[1], found[2], text.partition(": ")[2].replace(f"{found[1]}/", ""))
    if kind == "Error":  # an error of DuckDB's Parquet reader that does not name the file
        return DamagedError(f"a file that the query reads is damaged ({text}): `espalier verify DATASET` names it")
    return None


@contextmanager
def reading(place: str, path: str) -> Iterator[None]:
    """Raise DamagedError if the block, which reads a file of a dataset, finds it missing or cannot decode it.

    `place`: the dataset's URI; `path`: relative to it."""
    try:
        yield
    except (IsADirectoryError, FileNotFoundError, NotFoundError) as error:
        is_folder = "is a folder" in str(error) or isinstance(error, IsADirectoryError)
        raise damaged(place, path, "it is a folder, expected a file" if is_folder else "it does not exist") from error
    except EspalierError:
        raise
    except (OSError, UnicodeDecodeError) as error:
        if isinstance(error, OSError) and error.errno in _NO_DAMAGE:
            raise
        raise damaged(place, path, _one_line(error)) from error
    except Exception as error:
        if not type(error).__name__.startswith("Arrow"):  # Arrow's errors, without importing Arrow
            raise
        raise damaged(place, path, _one_line(error)) from error


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__


def first_line(error: object, limit: int = 300) -> str:
    """Return the first line of an error's message that is not blank, at most `limit` characters of it; the name of the
    error's type where the message is empty."""
    lines = (line.strip() for line in str(error).splitlines())
    return next((line for line in lines if line), type(error).__name__)[:limit]


def nearest(word: str, known: Iterable[str]) -> str:
    """Return the end of an error message: `; did you mean 'x'?`, or the known names if none is near."""
    names = sorted(known)
    close = get_close_matches(word, names, n=1, cutoff=0.6)
    if close:
        return f"; did you mean {close[0]!r}?"
    more = f" and {len(names) - _LISTED} more" if len(names) > _LISTED else ""
    return f"; there is: {', '.join(names[:_LISTED])}{more}" if names else "; there is none"
