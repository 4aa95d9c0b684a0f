"""How the command line ends: one line on what went wrong, and an exit code.

0    done
1    it could not be finished: a build, a disk, the network, a fault of Espalier
2    a mistake of the user
130  stopped by Ctrl-C
141  the reader of standard output closed it (`| head`); no message
"""

import errno
import os
import sys
from typing import Final, NoReturn

from catalog.wording import plain_message

INTERRUPTED: Final = 130
CLOSED: Final = 141
_RESUMABLE: Final = ("build", "retry", "takedown", "demo", "index", "approve")
"""Commands that keep finished work and continue from it when run again."""
_DENIED: Final = (errno.EACCES, errno.EPERM, errno.EROFS)
_STOPPED: Final = "stopped; what is finished is kept, and the same command continues from there"


def explained(error: BaseException) -> tuple[str, int]:
    """Return the message on an error, and the exit code."""
    from catalog.errors import EspalierError, UserError

    if is_interrupt(error):
        return (_STOPPED if set(_RESUMABLE) & set(sys.argv[1:2]) else "stopped"), INTERRUPTED
    if isinstance(error, EspalierError):
        return str(error), 2 if isinstance(error, UserError) else 1
    if hasattr(error, "exit_code") and hasattr(error, "format_message"):  # typer's own: a wrong option
        return plain_message(error.format_message()) or "say which command; --help lists them", 2
    if isinstance(error, MemoryError):
        return "this needs more memory than there is", 1
    if isinstance(error, OSError) and error.strerror and error.filename:  # of a file that somebody names
        return f"cannot use {str(error.filename)!r}: {error.strerror}", 2 if error.errno in _DENIED else 1
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EIO):
        return f"cannot write: {error.strerror}", 1
    return f"{type(error).__name__}: {error} (this is a fault of Espalier: --debug shows where)", 1


def is_interrupt(error: BaseException) -> bool:
    """Return whether an error stands for Ctrl-C: typer has one of its own, and so has DuckDB."""
    if isinstance(error, KeyboardInterrupt) or type(error).__name__ == "Abort":
        return True
    return any("Query interrupted" in str(each) for each in (error, error.__cause__) if isinstance(each, RuntimeError))


def fail(message: str, code: int, debug: bool = False) -> NoReturn:
    """Print what went wrong on standard error, and end with an exit code."""
    if debug:
        import traceback

        traceback.print_exc()
    print(f"espalier: {printable(message)}", file=sys.stderr)
    sys.exit(code)


def printable(text: str) -> str:
    """Return text without what moves a terminal's cursor or changes its colours: names and captions are the web's."""
    return "".join(ch if ch.isprintable() or ch in "\n\t" else repr(ch)[1:-1] for ch in text)


def finish(code: object) -> NoReturn:
    """End the process at once, without the shutdown of the interpreter.

    DuckDB's bindings and Prefect's event client print long warnings at shutdown that mean nothing.
    """
    number = code if isinstance(code, int) else 0
    try:
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
    except BrokenPipeError:
        number = CLOSED
    except (OSError, ValueError) as error:
        number = number or 1
        os.write(2, f"espalier: cannot write: {getattr(error, 'strerror', None) or error}\n".encode())
    os._exit(number)


def give_up(message: str) -> None:
    """End the process with a message of a statement that cannot be stopped otherwise."""
    os.write(2, f"espalier: {printable(message)}\n".encode())
    os._exit(INTERRUPTED if message == "stopped" else 2)


def reopen_closed() -> None:
    """Give the process the standard streams that its parent closed: else the next file gets their numbers."""
    for number, mode in ((0, os.O_RDONLY), (1, os.O_WRONLY), (2, os.O_WRONLY)):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, mode)
    sys.stdout = sys.stdout or open(os.devnull, "w")  # noqa: PTH123, SIM115
    sys.stderr = sys.stderr or open(os.devnull, "w")  # noqa: PTH123, SIM115


def is_closed() -> bool:
    """Return whether standard output was closed while it was written: typer then puts a wrapper in its place."""
    return type(sys.stdout).__name__ == "PacifyFlushWrapper"
