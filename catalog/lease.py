"""Leases: one builder of a dataset at a time.

On a local folder, a lease is the kernel's lock on the file `_lease`, which a killed process releases at once. On object
stores it is an object with an expiry time, created only if absent, renewed while the builder lives, and taken over
after it has expired. A lease prevents two builders from doing the same work twice; correctness does not depend on it,
because commits (`catalog.delta`) are atomic.
"""

import fcntl
import json
import os
import secrets
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Any, Final

from catalog.dataset import Dataset
from catalog.errors import BusyError, NotFoundError, UserError
from catalog.storage import Storage

FILE: Final = "_lease"
LIFE_S: Final = 60.0
"""How long a lease on an object store holds without being renewed."""
_POLL_S: Final = 0.25

OnWait = Callable[[str], None]


class Lease:
    """A lease that this process holds. Not picklable."""

    def __init__(self) -> None:
        self._lost = threading.Event()

    def lose(self) -> None:
        """Mark the lease as lost (it could not be renewed in time)."""
        self._lost.set()

    def check(self) -> None:
        """Raise BusyError if another process has taken the lease over. Call it before publishing."""
        if self._lost.is_set():
            raise BusyError("another builder has taken this dataset over: this one could not renew its lease in time")


@contextmanager
def hold(
    dataset: Dataset,
    wait_s: float | None = 0.0,
    on_wait: OnWait | None = None,
    life_s: float = LIFE_S,
    copies: bool = True,
) -> Iterator[Lease]:
    """Hold the lease of a dataset for the duration of the block.

    Waits up to `wait_s` seconds (None: without limit) for another builder to end; `on_wait` is called once with its
    description. Raises BusyError, which names the holder, after that time. Works across processes and within one.

    First copies the commits that a killed holder left without a copy. `copies=False` does not touch the logs, for a
    caller that checks them for damage.
    """
    attempt = _Local(dataset) if dataset.storage.is_local else _Remote(dataset, life_s)
    _wait(attempt, dataset, wait_s, on_wait)
    try:
        if copies:
            dataset.copy_logs()
        yield attempt.lease
    finally:
        attempt.release()


def holder(dataset: Dataset) -> str | None:
    """Return a description of the current builder of a dataset; None if there is none."""
    attempt = _Local(dataset) if dataset.storage.is_local else _Remote(dataset)
    return attempt.holder()


def _wait(attempt: "_Local | _Remote", dataset: Dataset, wait_s: float | None, on_wait: OnWait | None) -> None:
    deadline = None if wait_s is None else time.monotonic() + wait_s
    announced = False
    while not attempt.acquire():
        who = attempt.holder()
        if who is None:  # it ended in the meantime
            continue
        if deadline is not None and time.monotonic() >= deadline:
            raise BusyError(
                f"dataset {dataset.name!r} is being built by {who}; wait for it, stop it, or try again later"
            )
        if on_wait and not announced:
            on_wait(f"dataset {dataset.name!r} is being built by {who}; waiting")
            announced = True
        time.sleep(_POLL_S)


def _facts() -> dict[str, Any]:
    since = datetime.now(UTC).isoformat(timespec="seconds")
    return {"host": socket.gethostname(), "pid": os.getpid(), "since": since}


def _in_words(data: bytes) -> str:
    try:
        facts = json.loads(data)
        return f"process {facts['pid']} on {facts['host']} since {facts['since']}"
    except (ValueError, KeyError, TypeError):
        return "another process"


class _Local:
    """flock: the kernel releases it when its holder ends, however it ends."""

    def __init__(self, dataset: Dataset) -> None:
        folder = dataset.storage.local()
        assert folder is not None
        self.lease = Lease()
        self._path = folder / FILE
        self._file: int | None = None

    def acquire(self) -> bool:
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            file = os.open(self._path, os.O_RDWR | os.O_CREAT, 0o666)
        except OSError as error:
            raise UserError(f"may not use {self._path}: {os.strerror(error.errno or 0)}") from error
        if not _lock(file, self._path):
            os.close(file)
            return False
        os.ftruncate(file, 0)
        os.pwrite(file, json.dumps(_facts()).encode(), 0)
        self._file = file
        return True

    def holder(self) -> str | None:
        try:
            file = os.open(self._path, os.O_RDONLY)
        except FileNotFoundError:
            return None
        try:
            return None if _lock(file, self._path, fcntl.LOCK_SH) else _in_words(os.pread(file, 4096, 0))
        finally:
            os.close(file)  # releases the shared lock

    def release(self) -> None:
        assert self._file is not None
        os.ftruncate(self._file, 0)
        os.close(self._file)


def _lock(file: int, path: Any, kind: int = fcntl.LOCK_EX) -> bool:
    try:
        fcntl.flock(file, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        raise UserError(f"cannot lock {path}: {os.strerror(error.errno or 0)}; keep the catalog elsewhere") from error
    return True


class _Remote:
    """An object with an expiry time; conditional puts decide which process gets it.

    It is respected for another sixth of its life (10 s of 60) after its expiry, because the clocks of machines differ.
    """

    def __init__(self, dataset: Dataset, life_s: float = LIFE_S) -> None:
        self._life_s = life_s
        self.lease = Lease()
        self._storage: Storage = dataset.storage
        self._facts = _facts() | {"token": secrets.token_hex(8)}
        self._stop = threading.Event()
        self._renewer: threading.Thread | None = None

    def acquire(self) -> bool:
        if not (self._storage.create(FILE, self._until(self._life_s)) or self._take_over()):
            return False
        self._renewer = threading.Thread(target=self._renew, name="lease", daemon=True)
        self._renewer.start()
        return True

    def holder(self) -> str | None:
        try:
            data, _ = self._storage.tagged(FILE)
        except NotFoundError:
            return None
        return None if _ran_out(data) else _in_words(data)

    def release(self) -> None:
        self._stop.set()
        if self._renewer:
            self._renewer.join()
        if found := self._mine():
            self._storage.replace(FILE, self._until(-self._life_s), found)

    def _take_over(self) -> bool:
        try:
            data, tag = self._storage.tagged(FILE)
        except NotFoundError:
            return False
        return _ran_out(data) and self._storage.replace(FILE, self._until(self._life_s), tag)

    def _renew(self) -> None:
        held_until = time.monotonic() + self._life_s
        while not self._stop.wait(self._life_s / 6):
            try:
                tag = self._mine()
                if tag is None or not self._storage.replace(FILE, self._until(self._life_s), tag):
                    return self.lease.lose()
                held_until = time.monotonic() + self._life_s
            except Exception:  # noqa: BLE001  # the store does not answer: try again while the lease holds
                if time.monotonic() > held_until:
                    return self.lease.lose()
        return None

    def _mine(self) -> str | None:
        """Return the tag of the object if it is still ours."""
        try:
            data, tag = self._storage.tagged(FILE)
        except NotFoundError:
            return None
        return tag if json.loads(data)["token"] == self._facts["token"] else None

    def _until(self, seconds: float) -> bytes:
        return json.dumps(self._facts | {"until_s": time.time() + seconds + self._life_s / 6}).encode()


def _ran_out(data: bytes) -> bool:
    try:
        return float(json.loads(data)["until_s"]) < time.time()
    except (ValueError, KeyError, TypeError):
        return True  # not a complete lease: nobody holds it
