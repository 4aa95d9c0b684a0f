"""Pictures that are decoded in another process: the same answers, and an end to what does not end."""

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
from tasks.images.apart import Apart
from tests.pictures import encoded, picture, slow_bmp

LIMITS = images.Limits()


@pytest.fixture(scope="module")
def apart() -> Iterator[Apart]:
    with Apart(30) as apart:
        yield apart


@pytest.mark.parametrize("pil", ["AVIF", "TIFF", "BMP", "PNG", "JPEG"])
def test_the_answers_are_those_of_this_process(apart: Apart, pil: str) -> None:
    data = encoded(picture(300, 200), pil)
    assert apart.inspect(data) == images.inspect(data)
    assert np.array_equal(apart.decode(data, LIMITS), images.decode(data))


@pytest.mark.parametrize("data", [b"", b"<html>", b"II*\0" + bytes(99), encoded(picture(), "AVIF")[:3000]])
def test_the_errors_are_those_of_this_process(apart: Apart, data: bytes) -> None:
    for one, other in ((apart.inspect, images.inspect), (lambda d: apart.decode(d, LIMITS), images.decode)):
        found: list[tuple[str, str] | None] = []
        for ask in (one, other):
            try:
                ask(data)
                found.append(None)
            except images.ImageError as error:
                found.append((error.reason, error.detail))
        assert found[0] == found[1]


def test_limits_hold_there_too(apart: Apart) -> None:
    with pytest.raises(images.ImageError, match="too_many_pixels"):
        apart.decode(encoded(picture(300, 200), "TIFF"), images.Limits(50_000, 1000))


def test_what_takes_too_long_is_ended_and_the_next_picture_is_decoded() -> None:
    data = slow_bmp()
    assert not images.inspect(data).bounded
    with Apart(1) as apart:
        apart.inspect(data)
        (child,) = apart._idle
        with pytest.raises(images.ImageError) as caught:
            apart.decode(data, LIMITS)
        assert caught.value.reason == "decode_timeout"
        assert "1 s" in caught.value.detail
        assert child.poll() is not None
        assert apart.inspect(encoded(picture(300, 200), "TIFF")).width == 300


def test_the_process_has_a_memory_limit(apart: Apart) -> None:
    """The limits let 134 megapixels in, but the process is given memory for what its caller allows."""
    flat = Image.new("RGB", (9000, 9000))
    data = encoded(flat, "TIFF", compression="tiff_lzw")
    with pytest.raises(images.ImageError, match="too_many_pixels"):
        apart.decode(data, LIMITS)
    apart.inspect(data)
    assert apart._idle
    for child in apart._idle:  # one, or more where other tests have used several at once
        limit = int(Path(f"/proc/{child.pid}/limits").read_text().split("Max address space")[1].split()[0])
        assert limit < 4 << 30


@pytest.mark.parametrize(("sign", "reason"), [(signal.SIGSEGV, "undecodable"), (signal.SIGKILL, "too_complex")])
def test_a_decoder_that_crashes_takes_nobody_with_it(sign: Signals, reason: str) -> None:
    with Apart(30) as apart:
        data = encoded(picture(300, 200), "AVIF")
        apart.inspect(data)
        (child,) = apart._idle
        os.kill(child.pid, signal.SIGSTOP)  # so that it cannot answer first
        threading.Timer(0.5, lambda: (os.kill(child.pid, sign), os.kill(child.pid, signal.SIGCONT))).start()
        with pytest.raises(images.ImageError) as caught:
            apart.decode(data, LIMITS)
        assert caught.value.reason == reason
        assert apart.inspect(data).width == 300


def test_many_threads_share_it(apart: Apart) -> None:
    datas = [encoded(picture(80, 60, seed), "AVIF") for seed in range(12)]
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda data: apart.decode(data, LIMITS), datas))
    assert all(np.array_equal(one, images.decode(data)) for one, data in zip(found, datas, strict=True))
    assert 1 <= len(apart._idle) <= 5


def test_nothing_is_left_running() -> None:
    apart = Apart(30)
    apart.inspect(encoded(picture(30, 20), "TIFF"))
    (child,) = apart._idle
    apart.close()
    assert child.poll() is not None
    forgotten = Apart(30)
    forgotten.inspect(encoded(picture(30, 20), "TIFF"))
    (child,) = forgotten._idle
    del forgotten
    gc.collect()
    assert child.poll() is not None
