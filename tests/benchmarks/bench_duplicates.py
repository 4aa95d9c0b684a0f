"""Planted duplicates of photographs: what is found, and what is found falsely, by quality, crop and radius.

    python tests/benchmarks/bench_duplicates.py [--pictures 400] [--data FILE.parquet] [--json out.json]

Each picture is saved again as a JPEG at three qualities, and with two crops (2 % and 5 % off every side, quality 90),
at 0.8 of its size. Pictures: photographs of scikit-image, cut into distinct ones as the demo does; or those of a
Parquet file with a column `image`. `deduplicate` itself judges originals and copies together. The peer is what
data-juicer and cleanvision do: copies have the same hash.

By meaning: the features are block means of the grey picture (16 x 16, the mean taken off), no network.

Borders: near-copies in a mixture of 300 concepts, which k-means cuts into 25 clusters; recall of the rows that one
cluster takes out, and pairs multiplied, of which one cluster's are the limit.
"""

import argparse
import hashlib
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from catalog.inputs import Inputs
from catalog.schema import SAMPLE_ID, vector
from flows.demo import photographs
from tasks import images
from tasks.deduplicate import Deduplicate
from tests.helpers import LocalRun

Pixels = Any
SIDE = 16
KINDS: dict[str, Callable[[Pixels], bytes]] = {
    "quality 95": lambda pixels: saved(pixels, 95),
    "quality 75": lambda pixels: saved(pixels, 75),
    "quality 50": lambda pixels: saved(pixels, 50),
    "crop 2 %": lambda pixels: saved(cropped(pixels, 0.02), 90),
    "crop 5 %": lambda pixels: saved(cropped(pixels, 0.05), 90),
}


def saved(pixels: Pixels, quality: int) -> bytes:
    """Return a JPEG at 0.8 of the size."""
    height, width = pixels.shape[:2]
    return images.encode(images.resize(pixels, max(32, int(0.8 * min(width, height))), "keep_ratio"), "jpg", quality)


def cropped(pixels: Pixels, share: float) -> Pixels:
    height, width = pixels.shape[:2]
    top, left = round(share * height), round(share * width)
    return np.ascontiguousarray(pixels[top : height - top, left : width - left])


def cut(count: int) -> list[Pixels]:
    """Return distinct pictures out of the photographs: no two of them overlap by half, or look alike."""
    rng = np.random.default_rng(0)
    each = -(-count // len(photographs.PHOTOGRAPHS))
    found = []
    for photograph in photographs.PHOTOGRAPHS:
        whole = photographs.pixels(photograph.name)
        for left, top, right, bottom in photographs.distinct_crops(photograph.name, each, rng):
            found.append(np.ascontiguousarray(whole[top:bottom, left:right]))
    return found[:count]


def given(path: Path, count: int) -> list[Pixels]:
    """Return the pictures of a Parquet file."""
    column = pq.read_table(path, columns=["image"]).column("image").slice(0, count)
    return [images.decode(data.as_py()) for data in column]


def features(pixels: Pixels) -> np.ndarray:
    """Return block means of the grey picture about their mean: float32 (SIDE * SIDE,)."""
    small = images.resize(pixels, SIDE * 4, "center_crop").mean(axis=2)
    means = small.reshape(SIDE, 4, SIDE, 4).mean(axis=(1, 3)).ravel()
    return np.asarray(means - means.mean() + 1e-3, np.float32)


def tables(data: list[bytes]) -> Inputs:
    """Return the tables that `download` and `embed` would write of these files."""
    pixels = [images.decode(one) for one in data]
    columns = {
        "sample_id": np.arange(len(data)),
        "status": ["success"] * len(data),
        "sha256": [hashlib.sha256(one).hexdigest() for one in data],
        "phash": pa.array([images.phash(one) for one in pixels], pa.int64()),
    }
    vectors = np.stack([features(one) for one in pixels]).astype(np.float16)
    made = pa.FixedSizeListArray.from_arrays(pa.array(vectors.ravel()), SIDE * SIDE)
    schema = pa.schema([SAMPLE_ID, vector("grey", SIDE * SIDE, "block means")])
    return Inputs.of(images=pa.table(columns), embeddings=pa.table([columns["sample_id"], made], schema=schema))


def judge(inputs: Inputs, **recipe: Any) -> tuple[pa.Table, dict[str, Any], float]:
    """Return (decisions, notes, CPU seconds)."""
    with tempfile.TemporaryDirectory() as folder:
        run = LocalRun(Path(folder))
        began = time.process_time()
        table = pa.concat_tables(Deduplicate.model_validate(recipe).run(inputs, run))
        return table, run.notes, time.process_time() - began


def measure(inputs: Inputs, count: int, **recipe: Any) -> dict[str, Any]:
    """Return recall by kind, and precision. Originals are the first `count` rows, then `count` of each kind.

    A copy is found where it is out and its representative shows the same picture; a row that is out, and whose
    representative shows another one, is false.
    """
    table, _, seconds = judge(inputs, keep="first", **recipe)
    gone = ~table["keep"].to_numpy()
    stands = table["representative"].fill_null(-1).to_numpy()
    same = gone & (stands % count == np.arange(len(gone)) % count)
    recall = {kind: round(float(same[(i + 1) * count : (i + 2) * count].mean()), 4) for i, kind in enumerate(KINDS)}
    false = int((gone & ~same).sum())
    return recall | {
        "precision": round(1 - false / max(int(gone.sum()), 1), 4),
        "false": false,
        "cpu_s": round(seconds, 3),
    }


ARMS: dict[str, dict[str, Any]] = {
    "equal hashes (the peers)": {"perceptual": {"radius": 0}},
    "radius 3": {"perceptual": {"radius": 3}},
    "radius 6": {"perceptual": {"radius": 6}},
    "meaning, epsilon 0.01": {"semantic": {"epsilon": 0.01, "rule": "greedy"}},
    "radius 6 and meaning": {"perceptual": {"radius": 6}, "semantic": {"epsilon": 0.01, "rule": "greedy"}},
}


def mixture(rows: int, dim: int) -> Inputs:
    """Return unit vectors about 300 concepts (cosine to it: 0.7), a tenth of them near-copies (0.98)."""
    rng = np.random.default_rng(0)
    concepts = rng.standard_normal((300, dim)) / np.sqrt(dim)
    vectors = concepts[rng.integers(0, 300, rows)] + rng.standard_normal((rows, dim)) / np.sqrt(dim)
    vectors[1::10] = vectors[::10] + 0.28 / np.sqrt(dim) * rng.standard_normal((len(vectors[1::10]), dim))
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    made = pa.FixedSizeListArray.from_arrays(pa.array(vectors.astype(np.float16).ravel()), dim)
    schema = pa.schema([SAMPLE_ID, vector("clip", dim, "planted")])
    return Inputs.of(embeddings=pa.table([np.arange(rows), made], schema=schema))


def borders(rows: int, dim: int = 256) -> dict[str, Any]:
    """Return what the search across borders finds of what one cluster finds, and what it multiplies."""
    inputs, semantic = mixture(rows, dim), {"epsilon": 0.05, "rule": "order"}
    whole, notes, seconds = judge(inputs, exact=False, keep="first", semantic=semantic | {"clusters": 1})
    true = ~whole["keep"].to_numpy()
    found: dict[str, Any] = {
        "one cluster": {"recall": 1.0, "pairs": notes["semantic_pairs"], "cpu_s": round(seconds, 2)}
    }
    for count, reach in ((0, "likely"), (1, "likely"), (2, "likely"), (24, "likely"), (2, "certain"), (24, "certain")):
        more = {"clusters": 25, "borders": count, "reach": reach}
        table, notes, seconds = judge(inputs, exact=False, keep="first", semantic=semantic | more)
        gone = ~table["keep"].to_numpy()
        found[f"{count} borders, {reach}" if count else "clusters alone, as published"] = {
            "recall": round(float((gone & true).sum() / true.sum()), 4),
            "false": int((gone & ~true).sum()),
            "pairs": notes["semantic_pairs"] + notes.get("border_pairs", 0),
            "rows_cut_short": notes.get("border_rows_cut_short", 0),
            "cpu_s": round(seconds, 2),
        }
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--pictures", type=int, default=400)
    parser.add_argument("--rows", type=int, default=20_000, help="of the mixture")
    parser.add_argument("--data", type=Path, help="a Parquet file with a column of encoded images")
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args()
    originals = given(options.data, options.pictures) if options.data else cut(options.pictures)
    data = [images.encode(one, "png", quality=1) for one in originals]
    data += [save(one) for save in KINDS.values() for one in originals]
    inputs = tables(data)
    runs: dict[str, list[dict[str, Any]]] = {name: [] for name in ARMS}
    for _ in range(options.repeats):
        for name, recipe in ARMS.items():
            runs[name].append(measure(inputs, len(originals), **recipe))
    arms = {name: run[0] | {"cpu_s": statistics.median(r["cpu_s"] for r in run)} for name, run in runs.items()}
    recall = {name: sum(arm[kind] for kind in KINDS) / len(KINDS) for name, arm in arms.items()}
    ours, peer = recall["radius 6"], recall["equal hashes (the peers)"]
    results = [
        {
            "name": f"planted duplicates of {len(originals)} pictures, mean recall by looks within 6 bits",
            "unit": "share",
            "ours": round(ours, 4),
            "peer": round(peer, 4),
            "ratio": round(ours / max(peer, 1e-9), 2),
            "limit": 1.0,
            "arms": arms,
            "borders": borders(options.rows),
        }
    ]
    print(json.dumps(results, indent=1))
    if options.json:
        options.json.write_text(json.dumps(results, indent=1))


if __name__ == "__main__":
    main()
