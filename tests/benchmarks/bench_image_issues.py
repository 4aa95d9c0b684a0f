"""cleanvision's image issues from the same files: ours and its own, one core each, and how far the numbers differ.

    python tests/benchmarks/bench_image_issues.py --json out.json

Files are JPEGs of three sizes, made here. Ours is measured from the bytes (`exact`: full decode; `fast`: as `download`
does it by default) and from the statistics that `download` has stored. The limit is the full decode alone. The digest
of the pixels is measured both ways: of the JPEG's data, as it is, and of all decoded pixels, as it could be.

cleanvision 0.3.7 runs in an environment of its own, once for all repeats, made by the first run:
`CLEANVISION_ENV`, or `.venv-cleanvision` in the temporary folder. Its import and its listing of files are not counted.
"""

import argparse
import hashlib
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from tasks import images
from tasks.score.image_issues import READ, SCORES, scores
from tasks.score.image_sizes import SizeCounts, quartiles
from tests.pictures import encoded, picture

RELEASE = "0.3.7"
SIZES = ((320, 240), (640, 480), (1280, 960))
PEER = """
import json, os, sys, time
os.environ["TQDM_DISABLE"] = "1"
from cleanvision import Imagelab
KINDS = ("dark", "light", "odd_aspect_ratio", "low_information", "blurry", "grayscale", "odd_size")
for line in sys.stdin:
    sys.stdout, out = sys.stderr, sys.stdout
    lab = Imagelab(data_path=line.strip())
    began = time.process_time()
    lab.find_issues({kind: {} for kind in KINDS}, n_jobs=1, verbose=False)
    seconds = time.process_time() - began
    found = {c: lab.issues[c].astype(float).tolist() for c in lab.issues if c.endswith("_score")}
    sys.stdout = out
    print(json.dumps([seconds, found]), flush=True)
"""


def peer() -> "subprocess.Popen[str]":
    """Return cleanvision, which answers a folder with (CPU seconds, scores)."""
    folder = Path(os.environ.get("CLEANVISION_ENV") or Path(tempfile.gettempdir(), ".venv-cleanvision"))
    python = folder / "bin" / "python"
    if not python.exists():
        subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
        subprocess.run([str(python), "-m", "pip", "install", "-q", f"cleanvision=={RELEASE}"], check=True)
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    command = [str(python), "-c", PEER]
    return subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, env=environment
    )


def files(folder: Path, size: tuple[int, int], count: int) -> list[bytes]:
    """Write photographs-like JPEGs: smooth pictures with noise, some dark, some light."""
    found = []
    for i in range(count):
        rng = np.random.default_rng([*size, i])
        noisy = picture(*size, i) * (0.2, 0.6, 1.0)[i % 3] + rng.normal(0, 6, (size[1], size[0], 3))
        found.append(encoded(noisy.clip(0, 255).astype(np.uint8), quality=90))
        (folder / f"{i:04d}.jpg").write_bytes(found[-1])
    return found


def row(data: bytes, fast: bool) -> dict[str, Any]:
    """Return the columns of `images` that the scores are made of."""
    header = images.inspect(data)
    pixels = images.decode(data, scale=256 / max(header.width, header.height) if fast else 1.0)
    reduced = pixels.shape[:2] != (header.height, header.width)
    found = images.statistics(pixels, one_channel=header.mode == "L", fast=reduced)._asdict()
    return found | {"original_width": header.width, "original_height": header.height}


def stored(rows: list[dict[str, Any]]) -> pa.Table:
    return pa.table({name: [row[name] for row in rows] for name in READ})


def scored(table: pa.Table) -> dict[str, np.ndarray]:
    return scores(table, *quartiles(SizeCounts().update({}, table)))


def timed(function: Callable[[], Any]) -> tuple[float, Any]:
    began = time.process_time()
    result = function()
    return time.process_time() - began, result


def compare(size: tuple[int, int], count: int, repeats: int, cleanvision: "subprocess.Popen[str]") -> dict[str, Any]:
    """One size, all alternated: medians of CPU milliseconds an image."""
    assert cleanvision.stdin is not None
    assert cleanvision.stdout is not None
    times: dict[str, list[float]] = {}
    with tempfile.TemporaryDirectory() as folder:
        bodies = files(Path(folder), size, count)
        headers = [images.inspect(body) for body in bodies]
        decoded = [images.decode(body) for body in bodies]
        many = pa.concat_tables([stored([row(body, False) for body in bodies])] * (100_000 // count))
        for _ in range(repeats):
            cleanvision.stdin.write(folder + "\n")
            cleanvision.stdin.flush()
            seconds, theirs = json.loads(cleanvision.stdout.readline())
            arms: dict[str, Callable[[], Any]] = {
                "ours": lambda: scored(stored([row(body, False) for body in bodies])),
                "ours_fast": lambda: scored(stored([row(body, True) for body in bodies])),
                "limit": lambda: [images.decode(body) for body in bodies],
                "digest_of_data": lambda: [images.pixels_sha256(b, h) for b, h in zip(bodies, headers, strict=True)],
                "digest_of_pixels": lambda: [hashlib.sha256(pixels.data).hexdigest() for pixels in decoded],
            }
            found = {name: timed(arm) for name, arm in arms.items()}
            from_stored, _ = timed(lambda: scored(many))
            for name, (spent, _) in found.items():
                times.setdefault(name, []).append(spent / count * 1e3)
            times.setdefault("peer", []).append(seconds / count * 1e3)
            times.setdefault("ours_from_stored", []).append(from_stored / many.num_rows * 1e3)
    middle = {name: statistics.median(values) for name, values in times.items()}
    return {
        "name": f"image_issues {size[0]}x{size[1]}",
        "unit": "CPU ms an image",
        **{name: float(f"{value:.3g}") for name, value in middle.items()},
        "ratio": round(middle["peer"] / middle["ours"], 2),
        "ratio_fast": round(middle["peer"] / middle["ours_fast"], 2),
        "largest_difference": difference(found["ours"][1], theirs),
        "largest_difference_fast": difference(found["ours_fast"][1], theirs),
    }


def difference(ours: dict[str, np.ndarray], theirs: dict[str, list[float]]) -> float:
    """Return the largest difference in any score of any image."""
    names = [name for name in SCORES if name in theirs]
    assert len(names) == 7
    return float(f"{max(np.abs(ours[name] - theirs[name]).max() for name in names):.2g}")


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--json", type=Path)
    parser.add_argument("--images", type=int, default=60)
    parser.add_argument("--repeats", type=int, default=5)
    options = parser.parse_args()
    cleanvision = peer()
    try:
        results = [compare(size, options.images, options.repeats, cleanvision) for size in SIZES]
    finally:
        cleanvision.kill()
        cleanvision.wait()
    print(json.dumps(results, indent=1))
    if options.json:
        options.json.write_text(json.dumps(results, indent=1))


if __name__ == "__main__":
    main()
