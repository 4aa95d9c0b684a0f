"""DuckDB as we open it, everywhere: shut in, and within limits of time and memory that a statement cannot pass.

DuckDB stops a statement between two vectors of 2,048 rows, and counts the memory of its own buffers. One function call
can still take hours (`levenshtein` of two long texts) or all memory (`list_sum(range(4000000000))`). So a thread
watches what runs: it interrupts first, and where that does not help within GRACE_S it gives up on the process, if the
process has set how by `on_stuck` (the command line ends with the message; an actor reports it, and ends).
"""

import os
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import pyarrow as pa

from catalog.errors import QueryError

if TYPE_CHECKING:
    import socket

    import duckdb

GRACE_S: Final = 5.0
"""After this long without an answer to an interrupt, the process is given up."""
STOPPED: Final = "stopped"
"""The message after Ctrl-C."""
_LOOK_S: Final = 0.05
_MB: Final = 1 << 20
_SLACK: Final = 512 * _MB
"""What a process may grow by beyond DuckDB's own limit: results on their way, strings that functions make."""
_SHUT_IN: Final = {
    "autoinstall_known_extensions": "false",
    "autoload_known_extensions": "false",
    "allow_community_extensions": "false",
    "python_enable_replacements": "false",  # else a table name may mean a variable of the calling code
}

_stuck: list[Callable[[str], None]] = []


@dataclass(frozen=True)
class Limits:
    """What one statement may take. `hint` ends the message: how to raise them; `time_hint` only that of time."""

    timeout_s: float | None = None
    memory_mb: int | None = None
    """Of DuckDB's buffers, which go to disk beyond it; the process may grow by half a GB more."""
    hint: str = ""
    time_hint: str = ""


def on_stuck(give_up: Callable[[str], None]) -> None:
    """Declare what ends this process, given the message, where a statement does not stop when it is interrupted."""
    _stuck[:] = [give_up]


def open_database(
    threads: int | None = None,
    memory_mb: int | None = None,
    scratch: Path | None = None,
    outside: bool = False,
    utc: bool = False,
    max_depth: int | None = None,
) -> "duckdb.DuckDBPyConnection":
    """Return a new in-memory database that reaches nothing but what is registered with it: no file, no network, no
    extension, no variable of this process, and whose settings are locked.

    With `outside` it still can read files, and is not locked: call `lock` before anybody else's SQL runs. Beyond
    `memory_mb` (default: DuckDB's) it spills to `scratch`, a folder that is made when needed (default: one of this
    user's in the system's temporary folder). `utc`: the machine's time zone changes no result. Expressions
    may be nested `max_depth` deep (default: DuckDB's 1,000).
    """
    import duckdb

    folder = scratch or Path(tempfile.gettempdir(), f"espalier-sql-{os.getuid()}")
    config: dict[str, Any] = _SHUT_IN | {"temp_directory": str(folder)}
    if threads is not None:
        config["threads"] = threads
    if memory_mb is not None:
        config["memory_limit"] = f"{memory_mb}MiB"
    connection = duckdb.connect(config=config)
    if utc:
        connection.execute("set global TimeZone = 'UTC'").fetchall()  # not known yet when it connects
    if max_depth is not None:
        connection.execute(f"set global max_expression_depth = {max_depth}").fetchall()
    if not outside:
        lock(connection)
    return connection


def lock(
    connection: "duckdb.DuckDBPyConnection", folders: Sequence[str] = (), files: Sequence[str] = ()
) -> "duckdb.DuckDBPyConnection":
    """Let a connection read these folders and files, and nothing else, from now on; return it."""
    for setting, allowed in (("allowed_directories", folders), ("allowed_paths", files)):
        if allowed:
            connection.execute(f"set global {setting} = [{', '.join(literal(each) for each in allowed)}]").fetchall()
    connection.execute("set global enable_external_access = false").fetchall()
    connection.execute("set global lock_configuration = true").fetchall()
    return connection


@contextmanager
def limited(connection: "duckdb.DuckDBPyConnection", limits: Limits, what: str = "the query") -> Iterator[None]:
    """Stop what the block runs on a connection once it passes a limit. Raises QueryError, which says the limit."""
    import duckdb

    watch = _Watch(connection, limits, what)
    try:
        with _signals() as signals, watch.looking(signals):
            yield
    except (duckdb.Error, pa.ArrowException, MemoryError, QueryError) as error:
        if watch.message == STOPPED:
            raise KeyboardInterrupt from error
        if watch.message:
            raise QueryError(watch.message) from error
        if isinstance(error, duckdb.OutOfMemoryException | MemoryError) or "Out of Memory Error" in str(error):
            most = f"more memory than its {limits.memory_mb:,} MB" if limits.memory_mb else "more memory than there is"
            raise QueryError(f"{what} needs {most}{limits.hint}") from error
        raise


class _Watch:
    """A thread that looks at a running statement."""

    def __init__(self, connection: "duckdb.DuckDBPyConnection", limits: Limits, what: str) -> None:
        self._connection, self._limits, self._what = connection, limits, what
        self._done = threading.Event()
        self.message = ""

    @contextmanager
    def looking(self, signals: "socket.socket | None") -> Iterator[None]:
        """Look while the block runs. `signals`: a byte arrives there for every signal that the process gets."""
        thread = threading.Thread(target=self._look, args=(signals,), daemon=True)
        if self._limits.timeout_s is not None or self._limits.memory_mb is not None or signals:
            thread.start()
        try:
            yield
        finally:
            self._done.set()
            if thread.ident is not None:
                thread.join()

    def _look(self, signals: "socket.socket | None") -> None:
        began_s, before = time.monotonic(), _resident()
        pause_s = min(_LOOK_S, (self._limits.timeout_s or 1.0) / 4)
        while not self._done.wait(pause_s):
            self.message = STOPPED if _got_interrupt(signals) else self._passed(time.monotonic() - began_s, before)
            if self.message:
                break
        until_s = time.monotonic() + GRACE_S
        while not self._done.wait(_LOOK_S):
            self._connection.interrupt()  # more than once: what begins to run forgets it
            if time.monotonic() > until_s and _stuck:
                _stuck[0](self.message)
                return

    def _passed(self, seconds: float, before: int) -> str:
        limits = self._limits
        if limits.timeout_s is not None and seconds > limits.timeout_s:
            return (
                f"{self._what} took longer than {limits.timeout_s:g} s and was stopped{limits.hint}{limits.time_hint}"
            )
        if limits.memory_mb is not None and _resident() - before > limits.memory_mb * _MB + _SLACK:
            return f"{self._what} took more than {limits.memory_mb:,} MB of memory and was stopped{limits.hint}"
        return ""


@contextmanager
def _signals() -> "Iterator[socket.socket | None]":
    """Give a socket that a byte arrives at for every signal, in the main thread; None elsewhere.

    Python runs its handlers, Ctrl-C's too, only once DuckDB has come back.
    """
    import signal
    import socket

    if threading.current_thread() is not threading.main_thread():
        yield None
        return
    mine, others = socket.socketpair()
    with mine, others:
        mine.setblocking(False)
        others.setblocking(False)
        before = signal.set_wakeup_fd(others.fileno(), warn_on_full_buffer=False)
        try:
            yield mine
        finally:
            signal.set_wakeup_fd(before)


def _got_interrupt(signals: "socket.socket | None") -> bool:
    import signal

    if signals is None:
        return False
    try:
        return signal.SIGINT in signals.recv(64)
    except BlockingIOError:
        return False


def half_of_memory_mb() -> int:
    """Return half of the memory that this machine, or its container, has."""
    import psutil

    total = int(psutil.virtual_memory().total)
    for path in ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"):
        try:
            total = min(total, int(Path(path).read_text()))
        except (OSError, ValueError):
            continue
    return max(total // 2 // _MB, 256)


def _resident() -> int:
    """Return the bytes of memory that this process has in use."""
    import psutil

    return int(psutil.Process().memory_info().rss)


def literal(text: str) -> str:
    """Return a text as a SQL string literal."""
    return "'" + text.replace("'", "''") + "'"


def identifier(*names: str) -> str:
    """Return the name of a schema, a table or a column as a quoted SQL identifier; several names joined by dots."""
    return ".".join('"' + name.replace('"', '""') + '"' for name in names)
