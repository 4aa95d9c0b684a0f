"""Fixtures that record the input of decoders: the work that hostile files cause is counted, not timed."""

import io
from collections.abc import Callable
from typing import Any

import cv2
import numpy as np
import pytest
from PIL import GifImagePlugin, Image, JpegImagePlugin, PngImagePlugin, TiffImagePlugin

from tasks.images import _others


def _refuse(*_: Any, **__: Any) -> None:
    raise AssertionError("this reader should not have been asked")


@pytest.fixture
def no_decoder(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make OpenCV and Pillow fail if they decode a JPEG."""
    monkeypatch.setattr(cv2, "imdecode", _refuse)
    monkeypatch.setattr(JpegImagePlugin, "JpegImageFile", _refuse)


@pytest.fixture
def no_exif_reader(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """Return what makes Pillow's own reader of EXIF fail from then on; Pillow needs it to write the test's files."""

    def forbid() -> None:
        monkeypatch.setattr(Image.Exif, "load", _refuse)
        monkeypatch.setattr(TiffImagePlugin.ImageFileDirectory_v2, "load", _refuse)

    return forbid


class CountedFile(io.BytesIO):
    """A file in memory that counts the bytes which are read."""

    bytes_read = 0

    def read(self, size: int | None = -1, /) -> bytes:
        data = super().read(size)
        self.bytes_read += len(data)
        return data


@pytest.fixture
def gif_files(monkeypatch: pytest.MonkeyPatch) -> list[CountedFile]:
    """Return the files that Pillow's reader of GIFs gets, in order."""
    files: list[CountedFile] = []

    def opened(file: io.BytesIO) -> Any:
        files.append(CountedFile(file.getvalue()))
        return GifImagePlugin.GifImageFile(files[-1])

    monkeypatch.setitem(_others._OPENERS, "gif", opened)
    return files


@pytest.fixture
def decoder_bytes(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Return the sizes of the files that OpenCV, and Pillow's reader of PNGs, get, in order."""
    sizes: list[int] = []
    by_opencv, by_pillow = cv2.imdecode, PngImagePlugin.PngImageFile

    def imdecode(data: Any, flags: int) -> Any:
        sizes.append(np.asarray(data).nbytes)
        return by_opencv(data, flags)

    def opened(file: io.BytesIO) -> Any:
        sizes.append(len(file.getvalue()))
        return by_pillow(file)

    monkeypatch.setattr(cv2, "imdecode", imdecode)
    monkeypatch.setattr(PngImagePlugin, "PngImageFile", opened)
    return sizes
