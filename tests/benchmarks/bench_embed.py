"""The embed stage, JPEG bytes in, against the bare model on tensors that are ready: ViT-B-32, random weights.

python tests/benchmarks/bench_embed.py --json out.json

What is between the two is decoding, resizing, copying and writing columns; threads should hide it. Alternated, same
images, same forward batches, same number of threads for the model.
"""

import argparse
import json
import os
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

sys.path.insert(0, str(Path(__file__).parents[2]))

from tasks.embed import Embed
from tasks.encoders.torchvision_on_cpu import ensure_torchvision
from tests.pictures import encoded

MODEL = "ViT-B-32"


def photographs(count: int) -> list[bytes]:
    """Return JPEGs of 340 x 256 cut from scikit-image's photographs: as large as what `download` stores."""
    from PIL import Image
    from skimage import data

    sources = [Image.fromarray(getattr(data, name)()) for name in ("astronaut", "coffee", "chelsea", "rocket")]
    rng = np.random.default_rng(0)
    found = []
    for i in range(count):
        photo = sources[i % len(sources)]
        side = int(rng.integers(150, 280))
        left, top = (int(rng.integers(0, edge - side)) for edge in photo.size)
        found.append(encoded(photo.crop((left, top, left + side, top + side)).resize((340, 256)), quality=90))
    return found


def compare(device: str, images: int, batch_size: int, repeats: int, threads: int) -> dict[str, Any]:
    ensure_torchvision()
    import torch

    encoder = {"name": "clip", "model": MODEL, "pretrained": "random", "text": False}
    stage = Embed(encoders=[encoder], batch_size=batch_size, resources={"cpus": threads})
    step = stage.open(device, {})
    bytes_ = pa.array(photographs(images), pa.large_binary())
    rows = pa.table({"sample_id": range(images), "image": bytes_})
    (model,) = step.args[0].values()  # type: ignore[attr-defined]
    ready = [torch.randn(batch_size, 3, 224, 224, device=device, dtype=model._dtype) for _ in range(2)]

    def ours() -> None:
        assert sum(piece.num_rows for piece in step(iter([rows]))) == images

    def bare() -> None:
        with torch.inference_mode():
            for i in range(images // batch_size):
                model._model.encode_image(ready[i % 2]).float().cpu()

    def timed(work: Callable[[], None]) -> tuple[float, float]:
        """Return (wall seconds, CPU seconds of all threads)."""
        wall, cpu = time.perf_counter(), time.process_time()
        work()
        return time.perf_counter() - wall, time.process_time() - cpu

    bare()
    ours()
    runs = [(timed(ours), timed(bare)) for _ in range(repeats)]
    mine, peer = (statistics.median(images / run[arm][0] for run in runs) for arm in (0, 1))
    return {
        "name": f"embed {MODEL} on {device}, {images} JPEGs, batches of {batch_size}, {threads} threads",
        "unit": "images/s",
        "ours": round(mine, 2),
        "peer": round(peer, 2),  # the bare model: a limit rather than a peer
        "ratio": round(statistics.median(limit[0] / own[0] for own, limit in runs), 3),
        "cpu_ratio": round(statistics.median(limit[1] / own[1] for own, limit in runs), 3),  # not hidden by threads
        "limit": round(peer, 2),
        "load": os.getloadavg()[0],
    }


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--json", type=Path)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--images", type=int, default=128)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    found = [
        compare(arguments.device, arguments.images, arguments.batch_size, arguments.repeats, threads=arguments.threads)
    ]
    text = json.dumps(found, indent=2)
    print(text)
    if arguments.json:
        arguments.json.write_text(text)


if __name__ == "__main__":
    main()
