"""Training pairs: every usable picture once, in order, on disk."""

from pathlib import Path

import numpy as np
import pyarrow as pa

from catalog.inputs import Inputs
from tasks.train._pairs import ROWS, read_pairs
from tests.pictures import encoded, picture


def test_pictures_are_squeezed_and_stay_beside_their_captions(tmp_path: Path) -> None:
    seeds = [i % 7 for i in range(ROWS + 9)]  # more than one batch
    bytes_ = [encoded(picture(48, 24, seed=seed), "PNG") for seed in range(7)]
    ids = pa.array(range(len(seeds)), pa.int64())
    broken = {3, ROWS + 1}
    images = pa.array([b"junk" if i in broken else bytes_[seed] for i, seed in enumerate(seeds)], pa.large_binary())
    captions = [None if i == 5 else f"\0 seed {seed}\n" for i, seed in enumerate(seeds)]
    inputs = Inputs.of(
        images=pa.table({"sample_id": ids, "image": images}), source=pa.table({"sample_id": ids, "caption": captions})
    )
    pairs = read_pairs(inputs, tmp_path, side_px=12, threads=2)

    assert pairs.skipped == {"undecodable": 2, "no_caption": 1}
    assert isinstance(pairs.pictures, np.memmap)
    assert pairs.pictures.shape == (len(seeds) - 3, 12, 12, 3)
    assert pairs.captions == [f"seed {seed}" for i, seed in enumerate(seeds) if i not in broken | {5}]
    for caption, small in zip(pairs.captions, pairs.pictures, strict=True):
        whole = picture(48, 24, seed=int(caption.split()[1])).astype(float)
        means = whole.reshape(12, 2, 12, 4, 3).mean((1, 3))  # squeezed, not cropped: each pixel is a 2 x 4 block's
        assert np.abs(means - small).mean() < 4


def test_no_rows(tmp_path: Path) -> None:
    empty = pa.table({"sample_id": pa.array([], pa.int64()), "image": pa.array([], pa.large_binary())})
    source = pa.table({"sample_id": pa.array([], pa.int64()), "caption": pa.array([], pa.string())})
    assert len(read_pairs(Inputs.of(images=empty, source=source), tmp_path, 12, 1)) == 0
