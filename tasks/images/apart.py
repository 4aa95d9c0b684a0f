"""Reads and decodes one picture in a process that is ended where it takes too long, and cannot take others with it.

For formats whose cost their header does not tell (`Header.bounded`). A child answers one request at a time over its
pipes; the operating system ends it when it has used its CPU time (RLIMIT_CPU), so nothing has to watch it, and refuses
it more memory than its limit (RLIMIT_AS). The answers are lengths, JSON and pixels: nothing is unpickled from a
process that hostile bytes may have taken over.
"""

import fcntl
import json
import math
import os
import resource
import select
import signal
import subprocess
import sys
import threading
import time
import weakref
from contextlib import suppress
from pathlib import Path
from typing import Any, Final, Self

import numpy as np

from tasks.images import Header, ImageError, Limits, Pixels, decode, inspect

_ROOT: Final = str(Path(__file__).parents[2])
_MAIN: Final = "import sys; sys.path.insert(0, sys.argv[1]); from tasks.images.apart import serve; serve()"
_LENGTH_BYTES: Final = 8
_ANSWER_BYTES: Final = 1 << 16
_WALL_FACTOR: Final = 30
"""A child that waits for something uses no CPU: this many times its CPU limit, by the clock, ends it as well."""
_LAST_BREATH_S: Final = 0.5
_PIPE_BYTES: Final = 1 << 20
"""Linux gives unprivileged users so much; the default of 64 KB makes the two processes wait for each other often."""
_SPARE_BYTES: Final = 256 << 20
"""Address space beside the picture, its file and the interpreter."""
_BYTES_PER_PIXEL: Final = 24


class Apart:
    """Children that decode, as many as callers at a time; a context manager. Thread-safe.

    `cpu_s` is the CPU time that one picture may take, to the next whole second.
    """

    def __init__(self, cpu_s: float) -> None:
        self._cpu_s = cpu_s
        self._idle: list[subprocess.Popen[bytes]] = []
        self._lock = threading.Lock()
        self._closed = weakref.finalize(self, _end_all, self._idle)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End the children."""
        self._closed()

    def inspect(self, data: bytes) -> Header:
        """Return what `tasks.images.inspect` does. Raises ImageError, decode_timeout as well."""
        answer, _ = self._ask({"do": "inspect"}, data)
        return Header(**answer["header"])

    def decode(self, data: bytes, limits: Limits) -> Pixels:
        """Return what `tasks.images.decode` does. Raises ImageError, decode_timeout as well."""
        sides = {"max_pixels": limits.max_pixels, "max_side_px": limits.max_side_px}
        answer, pixels = self._ask({"do": "decode", **sides}, data)
        height, width = answer["shape"]
        return pixels.reshape(height, width, 3)

    def _ask(self, request: dict[str, Any], data: bytes) -> tuple[dict[str, Any], Pixels]:
        with self._lock:
            child = self._idle.pop() if self._idle else None
        child = child or _start()
        try:
            answer, pixels = _Talk(child, time.monotonic() + _WALL_FACTOR * self._cpu_s).ask(
                request | {"cpu_s": self._cpu_s, "bytes": len(data)}, data
            )
        except (OSError, EOFError, ValueError, KeyError, TypeError) as error:
            raise _ended(child, self._cpu_s) from error
        except BaseException:
            _end(child)
            raise
        with self._lock:
            self._idle.append(child)
        if "reason" in answer:
            raise ImageError(answer["reason"], answer["detail"])
        return answer, pixels


def _start() -> subprocess.Popen[bytes]:
    environment = os.environ | {"OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"}
    child = subprocess.Popen(  # noqa: S603  (our own interpreter, no shell)
        [sys.executable, "-W", "ignore", "-c", _MAIN, _ROOT],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        env=environment,
        bufsize=0,
    )
    for pipe in (child.stdin, child.stdout):
        with suppress(OSError, AttributeError):  # other systems than Linux
            fcntl.fcntl(pipe, fcntl.F_SETPIPE_SZ, _PIPE_BYTES)  # type: ignore[arg-type]
    return child


def _end(child: subprocess.Popen[bytes]) -> int:
    child.kill()
    for pipe in (child.stdin, child.stdout):
        if pipe:
            pipe.close()
    return child.wait()


def _end_all(children: list[subprocess.Popen[bytes]]) -> None:
    while children:
        _end(children.pop())


def _ended(child: subprocess.Popen[bytes], cpu_s: float) -> ImageError:
    """Return what the end of a child means for its picture."""
    with suppress(subprocess.TimeoutExpired):  # by itself it does not end where its time by the clock is over
        child.wait(_LAST_BREATH_S)
    code = child.poll()
    _end(child)
    if code in (None, -signal.SIGXCPU):
        return ImageError("decode_timeout", f"more than {cpu_s:g} s of CPU")
    if code == -signal.SIGKILL:
        return ImageError("too_complex", "the decoder was killed, as the system does for want of memory")
    return ImageError("undecodable", f"the decoder ended with {code}")


class _Talk:
    """One request and its answer, up to a time by the clock."""

    def __init__(self, child: subprocess.Popen[bytes], until: float) -> None:
        assert child.stdin
        assert child.stdout
        self._to, self._from, self._until = child.stdin.fileno(), child.stdout.fileno(), until

    def ask(self, request: dict[str, Any], data: bytes) -> tuple[dict[str, Any], Pixels]:
        text = json.dumps(request).encode()
        self._write(len(text).to_bytes(_LENGTH_BYTES, "little") + text)
        self._write(data)
        size = int.from_bytes(self._read(_LENGTH_BYTES), "little")
        if size > _ANSWER_BYTES:
            raise ValueError(size)
        answer: dict[str, Any] = json.loads(bytes(self._read(size)))
        height, width = answer.get("shape", (0, 0))
        return answer, np.frombuffer(self._read(height * width * 3), np.uint8)

    def _write(self, data: bytes) -> None:
        view = memoryview(data)
        while view:
            view = view[os.write(self._to, view[:_PIPE_BYTES]) :]

    def _read(self, size: int) -> bytearray:
        data = bytearray(size)
        view = memoryview(data)
        while view:
            if not select.select([self._from], [], [], max(0.0, self._until - time.monotonic()))[0]:
                raise EOFError
            got = os.readv(self._from, [view])
            if got == 0:
                raise EOFError
            view = view[got:]
        return data


# ---- in the child


def serve() -> None:
    """Answer requests from stdin until it ends."""
    source, sink = sys.stdin.buffer, sys.stdout.buffer
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent's to answer; its end closes stdin
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    while len(head := source.read(_LENGTH_BYTES)) == _LENGTH_BYTES:
        request = json.loads(source.read(int.from_bytes(head, "little")))
        data = source.read(request["bytes"])
        answer, pixels = _answer(request, data)
        text = json.dumps(answer).encode()
        sink.write(len(text).to_bytes(_LENGTH_BYTES, "little") + text)
        if pixels is not None:
            sink.write(pixels.data.cast("B"))
        sink.flush()


def _answer(request: dict[str, Any], data: bytes) -> tuple[dict[str, Any], Pixels | None]:
    _limit(request)
    try:
        if request["do"] == "inspect":
            return {"header": inspect(data)._asdict()}, None
        pixels = decode(data, Limits(request["max_pixels"], request["max_side_px"]))
        return {"shape": pixels.shape[:2]}, pixels
    except ImageError as error:
        return {"reason": error.reason, "detail": error.detail}, None
    except MemoryError:
        return {"reason": "too_complex", "detail": "more memory than its pixels take"}, None


def _limit(request: dict[str, Any]) -> None:
    """Let this process use so much more CPU time, and address space for the picture."""
    usage = resource.getrusage(resource.RUSAGE_SELF)
    until = math.ceil(usage.ru_utime + usage.ru_stime + request["cpu_s"])
    resource.setrlimit(resource.RLIMIT_CPU, (until, resource.getrlimit(resource.RLIMIT_CPU)[1]))
    pixels = request.get("max_pixels", 0)
    size = _address_space() + _SPARE_BYTES + 2 * request["bytes"] + _BYTES_PER_PIXEL * pixels
    resource.setrlimit(resource.RLIMIT_AS, (size, resource.getrlimit(resource.RLIMIT_AS)[1]))


def _address_space() -> int:
    """Return the bytes of address space that are taken now (Linux; elsewhere 8 GB are taken for it)."""
    try:
        return int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    except OSError:
        return 8 << 30
