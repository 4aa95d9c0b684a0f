"""Decoding in child processes: the same results, with limits on time and memory."""

import gc
import os
import signal
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from signal import Signals

import numpy as np
import pytest
from PIL import Image

from tasks import images
from tasks.images.decoder_processes import DecoderProcesses
from tests.pictures import encoded, picture, slow_bmp

LIMITS = images.Limits()


@pytest.fixture(scope="module")
def processes() -> Iterator[DecoderProcesses]:
    with DecoderProcesses(30) as processes:
        yield processes


@pytest.mark.parametrize("pil", ["AVIF", "TIFF", "BMP", "PNG", "JPEG"])
def test_results_equal_those_of_this_process(processes: DecoderProcesses, pil: str) -> None:
    data = encoded(picture(300, 200), pil)
    assert processes.inspect(data) == images.inspect(data)
    assert np.array_equal(processes.decode(data, LIMITS), images.decode(data))


@pytest.mark.parametrize("data", [b"", b"<html>", b"II*\0" + bytes(99), encoded(picture(), "AVIF")[:3000]])
def test_errors_equal_those_of_this_process(processes: DecoderProcesses, data: bytes) -> None:
    for one, other in ((processes.inspect, images.inspect), (lambda d: processes.decode(d, LIMITS), images.decode)):
        found: list[tuple[str, str] | None] = []
        for ask in (one, other):
            try:
                ask(data)
                found.append(None)
            except images.ImageError as error:
                found.append((error.reason, error.detail))
        assert found[0] == found[1]


def test_limits_apply(processes: DecoderProcesses) -> None:
    with pytest.raises(images.ImageError, match="too_many_pixels"):
        processes.decode(encoded(picture(300, 200), "TIFF"), images.Limits(50_000, 1000))


def test_a_decode_timeout_does_not_affect_the_next_picture() -> None:
    data = slow_bmp()
    assert not images.inspect(data).bounded
    with DecoderProcesses(1) as processes:
        processes.inspect(data)
        (child,) = processes._idle
        with pytest.raises(images.ImageError) as caught:
            processes.decode(data, LIMITS)
        assert caught.value.reason == "decode_timeout"
        assert "1 s" in caught.value.detail
        assert child.poll() is not None
        assert processes.inspect(encoded(picture(300, 200), "TIFF")).width == 300


def test_the_process_has_a_memory_limit(processes: DecoderProcesses) -> None:
    """134 megapixels are below the hard limit, but the process has memory only for the caller's limits."""
    flat = Image.new("RGB", (9000, 9000))
    data = encoded(flat, "TIFF", compression="tiff_lzw")
    with pytest.raises(images.ImageError, match="too_many_pixels"):
        processes.decode(data, LIMITS)
    processes.inspect(data)
    assert processes._idle
    for child in processes._idle:  # one, or more where other tests have used several at once
        limit = int(Path(f"/proc/{child.pid}/limits").read_text().split("Max address space")[1].split()[0])
        assert limit < 4 << 30


@pytest.mark.parametrize(("sign", "reason"), [(signal.SIGSEGV, "undecodable"), (signal.SIGKILL, "too_complex")])
def test_a_decoder_that_crashes_affects_no_other_picture(sign: Signals, reason: str) -> None:
    with DecoderProcesses(30) as processes:
        data = encoded(picture(300, 200), "AVIF")
        processes.inspect(data)
        (child,) = processes._idle
        os.kill(child.pid, signal.SIGSTOP)  # so that it cannot answer first
        threading.Timer(0.5, lambda: (os.kill(child.pid, sign), os.kill(child.pid, signal.SIGCONT))).start()
        with pytest.raises(images.ImageError) as caught:
            processes.decode(data, LIMITS)
        assert caught.value.reason == reason
        assert processes.inspect(data).width == 300


def test_threads_share_the_processes(processes: DecoderProcesses) -> None:
    datas = [encoded(picture(80, 60, seed), "AVIF") for seed in range(12)]
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda data: processes.decode(data, LIMITS), datas))
    assert all(np.array_equal(one, images.decode(data)) for one, data in zip(found, datas, strict=True))
    assert 1 <= len(processes._idle) <= 5


def test_no_process_is_left_running() -> None:
    processes = DecoderProcesses(30)
    processes.inspect(encoded(picture(30, 20), "TIFF"))
    (child,) = processes._idle
    processes.close()
    assert child.poll() is not None
    forgotten = DecoderProcesses(30)
    forgotten.inspect(encoded(picture(30, 20), "TIFF"))
    (child,) = forgotten._idle
    del forgotten
    gc.collect()
    assert child.poll() is not None
