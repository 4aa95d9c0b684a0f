"""Limits of decoding one picture: memory and time."""

import random
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from tasks import images
from tasks.download import Download
from tasks.download._base import Outcome
from tasks.download._picture import DECODE_BYTES, PictureMaker, Room
from tests.pictures import encoded, jpeg, jpeg_bomb, picture, slow_bmp


@pytest.fixture
def maker() -> Iterator[PictureMaker]:
    maker = PictureMaker(Download(decode_cpu_s=1))
    yield maker
    maker.close()


@pytest.mark.parametrize("seed", range(3))
def test_threads_never_hold_more_than_the_limit(seed: int) -> None:
    room, rng, lock = Room(100), random.Random(seed), threading.Lock()
    held: list[int] = []

    def work(size: int) -> int:
        with room.hold(size):
            with lock:
                held.append(size)
                assert sum(held) <= 100 or len(held) == 1
            time.sleep(0.001)
            with lock:
                held.remove(size)
        return size

    sizes = [rng.choice([1, 10, 40, 99, 100, 101, 5000]) for _ in range(200)]
    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(work, sizes)) == sizes


def test_a_large_picture_is_not_starved() -> None:
    room, entered = Room(100), threading.Event()

    def small(_: int) -> bool:
        """Return whether the large one entered before this thread's rounds were over."""
        for _ in range(10_000):
            if entered.is_set():
                return True
            with room.hold(30):
                time.sleep(0.001)
        return False

    with ThreadPoolExecutor(3) as pool:
        overtaking = pool.map(small, range(3))
        with room.hold(1000):
            entered.set()
        assert list(overtaking) == [True] * 3


def test_memory_is_released_after_an_error() -> None:
    room = Room(10)
    for _ in range(3):
        with pytest.raises(ValueError, match="no"), room.hold(10):
            raise ValueError("no")
    with room.hold(10):
        pass


@pytest.mark.parametrize("pil", ["JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "AVIF"])
def test_every_format_is_stored(maker: PictureMaker, pil: str) -> None:
    data = encoded(picture(300, 200), pil)
    outcome = maker.fill(Outcome(), data, None)
    assert (outcome.status, outcome.reason) == ("success", None)
    assert (outcome.original_width, outcome.original_height) == (300, 200)
    assert outcome.pixels_sha256 == images.pixels_sha256(data, images.inspect(data))
    assert outcome.image
    assert images.decode(outcome.image).shape == (256, 256, 3)


def test_only_formats_of_unknown_cost_start_a_process(maker: PictureMaker) -> None:
    for pil in ("JPEG", "PNG", "WEBP", "GIF", "BMP"):
        maker.fill(Outcome(), encoded(picture(30, 20), pil), None)
    assert not maker._processes._idle
    maker.fill(Outcome(), encoded(picture(30, 20), "AVIF"), None)
    (child,) = maker._processes._idle
    maker.close()
    assert child.poll() is not None


def test_a_decode_timeout_is_a_reason_and_the_next_row_continues(maker: PictureMaker) -> None:
    late = maker.fill(Outcome(), slow_bmp(), None)
    assert (late.reason, late.image) == ("decode_timeout", None)
    refused = maker.fill(Outcome(), jpeg_bomb(1000, 800, 3000), None)
    assert refused.reason == "too_complex"
    assert refused.detail
    assert "limit" in refused.detail
    assert maker.fill(Outcome(), encoded(picture(300, 200), "AVIF"), None).status == "success"


def test_the_memory_of_the_largest_pictures_is_estimated(maker: PictureMaker) -> None:
    """At 50 megapixels every kind is above the shared limit, so it is decoded alone."""
    for data in (jpeg(64, 64), jpeg(64, 64, progressive=True), *(encoded(picture(64, 64), f) for f in ("PNG", "WEBP"))):
        header = images.inspect(data)._replace(width=10_000, height=5_000)
        assert DECODE_BYTES < header.decode_bytes < 20 * 50_000_000
