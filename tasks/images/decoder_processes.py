"""Parse and decode pictures in child processes with limits on CPU time and memory.

For formats whose header does not bound their cost (`Header.bounded`). A child handles one request at a time over its
pipes; the operating system kills it when it has used its CPU time (RLIMIT_CPU), so no watchdog is needed, and limits
its memory (RLIMIT_AS). Responses are lengths, JSON and pixels: nothing is unpickled from a process that hostile bytes
may have compromised.
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
_MAIN: Final = "import sys; sys.path.insert(0, sys.argv[1]); from tasks.images.decoder_processes import serve; serve()"
_LENGTH_BYTES: Final = 8
_ANSWER_BYTES: Final = 1 << 16
_WALL_FACTOR: Final = 30
"""A child that blocks uses no CPU, so it is also killed after this many times its CPU limit in wall time."""
_EXIT_GRACE_S: Final = 0.5
_PIPE_BYTES: Final = 1 << 20
"""Linux allows unprivileged users this much; with the default of 64 KB the two processes often wait for each other."""
_SPARE_BYTES: Final = 256 << 20
"""Address space in addition to the picture, its file and the interpreter."""
_BYTES_PER_PIXEL: Final = 24


class DecoderProcesses:
    """Child processes that decode, one for each concurrent caller; a context manager. Thread-safe.

    `cpu_s` is the CPU time limit of one picture, rounded up to whole seconds.
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
        """Call `tasks.images.inspect` in a child. Raises ImageError, including decode_timeout."""
        answer, _ = self._ask({"do": "inspect"}, data)
        return Header(**answer["header"])

    def decode(self, data: bytes, limits: Limits) -> Pixels:
        """Call `tasks.images.decode` in a child. Raises ImageError, including decode_timeout."""
        sides = {"max_pixels": limits.max_pixels, "max_side_px": limits.max_side_px}
        answer, pixels = self._ask({"do": "decode", **sides}, data)
        height, width = answer["shape"]
        return pixels.reshape(height, width, 3)

    def _ask(self, request: dict[str, Any], data: bytes) -> tuple[dict[str, Any], Pixels]:
        with self._lock:
            child = self._idle.pop() if self._idle else None
        child = child or _start()
        try:
            answer, pixels = _Exchange(child, time.monotonic() + _WALL_FACTOR * self._cpu_s).ask(
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
        with suppress(OSError, AttributeError):  # systems other than Linux
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
    """Return the error of a picture whose child process ended."""
    with suppress(subprocess.TimeoutExpired):  # it is still running if its wall time is over
        child.wait(_EXIT_GRACE_S)
    code = child.poll()
    _end(child)
    if code in (None, -signal.SIGXCPU):
        return ImageError("decode_timeout", f"more than {cpu_s:g} s of CPU")
    if code == -signal.SIGKILL:
        return ImageError("too_complex", "the decoder was killed, probably because the system is out of memory")
    return ImageError("undecodable", f"the decoder ended with {code}")


class _Exchange:
    """One request and its response, with a deadline."""

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
    """Handle requests from stdin until it is closed."""
    source, sink = sys.stdin.buffer, sys.stdout.buffer
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent handles it, and closes stdin when it ends
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
    """Set the limits of CPU time and address space for one picture."""
    usage = resource.getrusage(resource.RUSAGE_SELF)
    until = math.ceil(usage.ru_utime + usage.ru_stime + request["cpu_s"])
    resource.setrlimit(resource.RLIMIT_CPU, (until, resource.getrlimit(resource.RLIMIT_CPU)[1]))
    pixels = request.get("max_pixels", 0)
    size = _address_space() + _SPARE_BYTES + 2 * request["bytes"] + _BYTES_PER_PIXEL * pixels
    resource.setrlimit(resource.RLIMIT_AS, (size, resource.getrlimit(resource.RLIMIT_AS)[1]))


def _address_space() -> int:
    """Return the bytes of address space in use (Linux; elsewhere 8 GB are assumed)."""
    try:
        return int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    except OSError:
        return 8 << 30
