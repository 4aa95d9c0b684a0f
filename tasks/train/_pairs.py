"""The training pairs: every picture is decoded once, to a memory map."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Final

import numpy as np
import pyarrow as pa

from catalog.inputs import Inputs

ROWS: Final = 512
"""Rows that are decoded at once: bounds the memory of encoded bytes."""


@dataclass(frozen=True)
class Pairs:
    """Usable image-caption pairs, in `sample_id` order."""

    pictures: np.ndarray
    """uint8 (n, side, side, 3), on disk."""
    captions: list[str]
    skipped: dict[str, int]
    """Rows without a pair, by reason: undecodable, no_caption."""

    def __len__(self) -> int:
        return len(self.captions)


def read_pairs(inputs: Inputs, folder: Path, side_px: int, threads: int) -> Pairs:
    """Decode every image with a caption, of rows not rejected, to side_px x side_px (squeezed, not cropped: the caption
    describes the whole picture). Memory is bounded: pictures are written to `folder/pictures.npy`."""
    from tasks.images import decode_fault

    rows = inputs.rows()
    path = folder / "pictures.npy"
    pictures = np.lib.format.open_memmap(path, mode="w+", dtype=np.uint8, shape=(max(rows, 1), side_px, side_px, 3))
    captions: list[str] = []
    skipped = {"undecodable": 0, "no_caption": 0}
    with ThreadPoolExecutor(threads, "decode") as pool:
        for sample_id, caption, picture, stored in _read(inputs, side_px, pool):
            if picture is None and stored:
                inputs.check_stored(sample_id, decode_fault)
            if not caption:
                skipped["no_caption"] += 1
            elif picture is None:
                skipped["undecodable"] += 1
            else:
                pictures[len(captions)] = picture
                captions.append(caption)
    pictures.flush()
    return Pairs(pictures[: len(captions)], captions, skipped)


def _read(inputs: Inputs, side_px: int, pool: ThreadPoolExecutor) -> Iterator[tuple[int, str, np.ndarray | None, bool]]:
    """Yield (sample_id, caption, picture or None, whether there are bytes)."""
    for batch in inputs.batches({"images": ("image",), "source": ("caption",)}, rows=ROWS):
        texts = batch["caption"].cast(pa.binary())  # as bytes: a source may hold broken UTF-8
        captions = ((text.as_py() or b"").decode("utf-8", "replace").strip("\0 \t\r\n") for text in texts)
        pictures = pool.map(lambda data: _squeeze(data.as_py(), side_px), islice(batch["image"], batch.num_rows))
        stored = batch["image"].is_valid().to_pylist()
        yield from zip(batch["sample_id"].to_pylist(), captions, pictures, stored, strict=True)


def _squeeze(data: bytes | None, side_px: int) -> np.ndarray | None:
    from PIL import Image

    from tasks.images.stored import decoded

    picture, _ = decoded(data)
    return None if picture is None else np.asarray(picture.resize((side_px, side_px), Image.Resampling.BICUBIC))
