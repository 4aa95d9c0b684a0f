"""Compute every column of a row from the bytes of its image, with one decode."""

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import Condition, Lock
from typing import Final

from tasks import images
from tasks.download._base import LocalFile, Outcome, Settings
from tasks.download._reasons import FetchError
from tasks.images.decoder_processes import DecoderProcesses

DECODE_BYTES: Final = 256 << 20
"""Memory limit of the pictures that are decoded concurrently; a picture above it is decoded alone."""
_RESULT_PIXEL_BYTES: Final = 9
"""Bytes per pixel of the stored picture: resized, with its channels in the encoder's order, and encoded."""
_MEASURED_PX: Final = 256
"""Statistics are computed at no less than this (longer side), even if the stored picture is smaller."""


class Room:
    """Bytes that threads share: each holds what it needs, or waits, in order of arrival."""

    def __init__(self, limit_bytes: int) -> None:
        self._limit = limit_bytes
        self._used = 0
        self._turn = Lock()
        self._changed = Condition()

    @contextmanager
    def hold(self, size: int) -> Iterator[None]:
        """Hold `size` bytes as soon as they are free; more than the limit as soon as no other thread holds any."""
        with self._turn, self._changed:
            self._changed.wait_for(lambda: self._used == 0 or self._used + size <= self._limit)
            self._used += size
        try:
            yield
        finally:
            with self._changed:
                self._used -= size
                self._changed.notify()


class PictureMaker:
    """Verifies, decodes, measures and encodes. Thread-safe; the memory of concurrent decodes is bounded.

    `close` ends the processes that decode the formats whose header does not bound the time.
    """

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._limits = images.Limits(settings.max_pixels, settings.max_side_px)
        self._room = Room(DECODE_BYTES)
        self._processes = DecoderProcesses(settings.decode_cpu_s)

    def close(self) -> None:
        """End the decoding processes."""
        self._processes.close()

    def fill(self, outcome: Outcome, body: bytes, digest: str | None) -> Outcome:
        """Complete `outcome` from the received bytes; `digest` is their expected hash. Never raises."""
        try:
            self._fill(outcome, body, digest)
        except (FetchError, images.ImageError) as error:
            outcome.failed(error.reason, error.detail)
        except Exception as error:  # noqa: BLE001  (one bad row must not stop the others)
            outcome.failed("unforeseen", f"{type(error).__name__}: {error}")
        return outcome

    def measure(self, outcome: Outcome, stored: bytes) -> Outcome:
        """Complete `outcome` from an image that img2dataset has resized and encoded. Never raises."""
        try:
            header = images.inspect(stored)
            outcome.format, outcome.width, outcome.height = header.format, header.width, header.height
            self._note(outcome, stored, header, images.decode(stored, self._limits))
            outcome.image = stored
        except images.ImageError as error:
            outcome.failed(error.reason, error.detail)
        return outcome

    def _fill(self, outcome: Outcome, body: bytes, digest: str | None) -> None:
        outcome.received_bytes = len(body)
        if not body:
            raise FetchError("empty_body")
        outcome.sha256 = hashlib.sha256(body).hexdigest()
        self._verify(outcome.sha256, body, digest)
        header = self._processes.inspect(body) if images.needs_separate_process(body) else images.inspect(body)
        outcome.original_width, outcome.original_height = header.width, header.height
        images.check(header, self._limits)
        self._check_shape(header)
        target = self._target(header)
        with self._room.hold(header.decode_bytes + _RESULT_PIXEL_BYTES * target[0] * target[1]):
            self._decode(outcome, body, header, target)

    def _verify(self, sha256: str, body: bytes, digest: str | None) -> None:
        verify = self._settings.verify_hash
        if verify is None or digest is None:
            return
        found = sha256 if verify.type == "sha256" else hashlib.new(verify.type, body, usedforsecurity=False).hexdigest()
        if found != digest.strip().lower():
            raise FetchError("hash_mismatch", f"{verify.type} is {found}, expected {digest}")

    def _check_shape(self, header: images.Header) -> None:
        short, long = sorted((header.width, header.height))
        size = f"{header.width} x {header.height}"
        if short < self._settings.min_size_px:
            raise FetchError("too_small", f"{size}, limit {self._settings.min_size_px}")
        limit = self._settings.max_aspect_ratio
        if limit is not None and long > limit * short:
            raise FetchError("too_narrow", f"{size}, limit {limit:g} to 1")

    def _target(self, header: images.Header) -> tuple[int, int]:
        """Return the size to scale to. Raises FetchError if a thin picture would grow above the limit on pixels."""
        s = self._settings
        target = images.resized(header.width, header.height, s.image_size, s.resize_mode, s.resize_only_if_bigger)
        images.check(header._replace(width=target[0], height=target[1]), self._limits)
        return target

    def _decode(self, outcome: Outcome, body: bytes, header: images.Header, target: tuple[int, int]) -> None:
        s = self._settings
        size = header.width, header.height
        stored_as_is = not s.reencode and header.format in ("jpg", "png", "webp")
        needed_px = _MEASURED_PX if stored_as_is else max(_MEASURED_PX, *target)
        scale = 1.0 if s.statistics == "exact" else needed_px / max(size)
        pixels = self._pixels(body, header, scale)
        self._note(outcome, body, header, pixels)
        if stored_as_is:
            outcome.format, (outcome.width, outcome.height), outcome.image = header.format, size, body
            return
        pixels = images.resize(pixels, s.image_size, s.resize_mode, s.resize_only_if_bigger, original=size)
        outcome.format, (outcome.height, outcome.width) = s.encode_format, pixels.shape[:2]
        outcome.image = images.encode(pixels, s.encode_format, s.quality)

    def _pixels(self, body: bytes, header: images.Header, scale: float) -> images.Pixels:
        if header.bounded:
            return images.decode(body, self._limits, scale)
        return self._processes.decode(body, self._limits)

    @staticmethod
    def _note(outcome: Outcome, data: bytes, header: images.Header, pixels: images.Pixels) -> None:
        """Record the digest and the statistics of a picture: exact unless it was reduced during decoding."""
        outcome.pixels_sha256 = images.pixels_sha256(data, header, pixels)
        reduced = pixels.shape[:2] != (header.height, header.width)
        measured = images.statistics(pixels, one_channel=header.mode == "L", fast=reduced)
        for name, value in measured._asdict().items():
            setattr(outcome, name, value)


def read_local(file: LocalFile, max_bytes: int) -> bytes:
    """Return the bytes of a local image. Raises FetchError: unreadable_file, body_too_large."""
    try:
        with Path(file.path).open("rb") as source:
            source.seek(file.offset)
            body = source.read(max_bytes + 1 if file.size is None else min(file.size, max_bytes + 1))
    except OSError as error:
        raise FetchError("unreadable_file", f"{file.path}: {error.strerror}") from error
    if len(body) > max_bytes:
        raise FetchError("body_too_large", f"{file.path}: over {max_bytes} bytes")
    if file.size is not None and len(body) < file.size:
        raise FetchError("unreadable_file", f"{file.path}: ends before {file.offset + file.size}")
    return body


def begins_as_picture(body: bytes) -> bool:
    """Return whether bytes begin as an image in a supported format."""
    try:
        images.inspect(body)
    except images.ImageError as error:
        return error.reason != "not_an_image"
    return True
