"""A small dataset with real photographs and every table, whose numbers are known, to draw cards from."""

import io
import json
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
from PIL import Image

from catalog.inputs import Inputs
from catalog.schema import CLUSTERS, DECISIONS, IMAGES, MODELS, SOURCE, score

CONCEPTS = {
    "china": "the summer palace roof above a park in beijing",
    "flower": "a red dahlia flower with many petals",
    "astronaut": "portrait of an astronaut in an orange space suit",
    "cat": "a tabby cat looking at the camera, whiskers",
    "coffee": "a cup of espresso coffee on a wooden table",
    "rocket": "a rocket on the launch pad at night",
    "hubble_deep_field": "galaxies seen by the hubble space telescope",
    "retina": "fundus photograph of a human retina",
    "immunohistochemistry": "microscope slide of stained colon tissue",
    "brick": "texture of a brick wall, grey",
    "grass": "texture of green grass in a lawn",
    "moon": "surface of the moon with craters",
}
STYLES = ("photo", "stock image", "wallpaper", "high resolution", "close up", "sale", "free download")


@dataclass(frozen=True)
class Gallery:
    """The tables, as they stand before the report."""

    tables: dict[str, pa.Table]

    @property
    def inputs(self) -> Inputs:
        return Inputs.of(alive_only=False, **self.tables)


def gallery(rows: int = 360, seed: int = 0, edge_px: int = 220) -> Gallery:
    """Return `rows` samples: 1 of 12 fails, then a filter, a deduplication and a pruning reject some."""
    rng = np.random.default_rng(seed)
    concept = rng.choice(len(CONCEPTS), rows, p=_shares(len(CONCEPTS)))
    status = np.where(np.arange(rows) % 12 == 5, "failed", "success")
    images = _images(rng, concept, status, edge_px)
    alive = np.flatnonzero(status == "success")
    decisions, alive = _judge(rng, alive, concept)
    clusters = _clusters(rng, np.flatnonzero(status == "success"), concept)
    embeddings = pa.table(
        {"sample_id": np.arange(rows), "clip_score": rng.normal(0.29, 0.05, rows).astype(np.float32)},
        schema=pa.schema([SOURCE.field(0), score("clip_score", "clip", 1, "cosine of image and caption")]),
    )
    return Gallery(
        {
            "source": _source(rng, concept),
            "images": images,
            "embeddings": embeddings,
            "clusters": clusters,
            "decisions": decisions,
            "models": _models(),
        }
    )


def _shares(count: int) -> np.ndarray:
    weights = 1 / np.arange(1, count + 1) ** 0.8
    return weights / weights.sum()


def photographs() -> list[np.ndarray]:
    """Return one uint8 RGB array a concept, from scikit-learn and scikit-image (no download)."""
    import skimage.data
    from sklearn.datasets import load_sample_images

    china, flower = load_sample_images().images
    others = [getattr(skimage.data, name)() for name in list(CONCEPTS)[2:]]
    return [np.stack([a] * 3, axis=-1) if a.ndim == 2 else a[..., :3] for a in [china, flower, *others]]


def jpeg(array: np.ndarray) -> bytes:
    """Return an RGB array as JPEG bytes."""
    data = io.BytesIO()
    Image.fromarray(array).save(data, "JPEG", quality=90)
    return data.getvalue()


def _crop(rng: np.random.Generator, photograph: np.ndarray, edge_px: int) -> np.ndarray:
    height, width = photograph.shape[:2]
    h = int(rng.uniform(0.55, 1.0) * min(height, width))
    w = int(min(width, h * rng.uniform(0.75, 1.6)))
    y, x = rng.integers(0, height - h + 1), rng.integers(0, width - w + 1)
    image = Image.fromarray(photograph[y : y + h, x : x + w])
    image.thumbnail((edge_px * 2, edge_px * 2))
    return np.asarray(image)


def _source(rng: np.random.Generator, concept: np.ndarray) -> pa.Table:
    texts = list(CONCEPTS.values())
    captions: list[str | None] = [
        f"{texts[c]}, {STYLES[rng.integers(len(STYLES))]} no. {i}" for i, c in enumerate(concept)
    ]
    captions[3] = None
    captions[4] = "نص عربي \u202e reversed <script>alert('caption')</script> " + "ab" * 3000
    return pa.table(
        {
            "sample_id": np.arange(len(concept)),
            "url": [f"https://photos.example/{i}.jpg" for i in range(len(concept))],
            "caption": captions,
            "label": [list(CONCEPTS)[c] for c in concept],
        },
        schema=SOURCE,
    )


def _images(rng: np.random.Generator, concept: np.ndarray, status: np.ndarray, edge_px: int) -> pa.Table:
    photos = photographs()
    reasons = ("http_404", "timeout", "undecodable", "private_address")
    rows: list[dict[str, Any]] = []
    for i, (c, s) in enumerate(zip(concept, status, strict=True)):
        row: dict[str, Any] = {"sample_id": i, "status": s}
        if s == "success":
            crop = _crop(rng, photos[c], edge_px)
            data = jpeg(crop)
            row |= {"height": crop.shape[0], "width": crop.shape[1], "byte_size": len(data), "image": data}
            row |= {"original_height": crop.shape[0], "original_width": crop.shape[1]}
            row |= {
                "brightness": crop.mean() / 255,
                "blur": float(rng.gamma(6, 5)),
                "entropy": float(rng.normal(7, 0.4)),
            }
        else:
            reason = reasons[int(rng.choice(4, p=[0.55, 0.25, 0.15, 0.05]))]
            row |= {"reason": reason, "detail": f"{reason.replace('_', ' ')}: https://photos.example/{i}.jpg"}
        rows.append(row)
    schema = IMAGES.append(pa.field("image", pa.large_binary()))
    return pa.Table.from_pylist(rows, schema=schema)


def _judge(rng: np.random.Generator, alive: np.ndarray, concept: np.ndarray) -> tuple[pa.Table, np.ndarray]:
    rows: list[dict[str, Any]] = []
    shares = (
        ("filter", "clip_score >= 0.2", 0.08),
        ("deduplicate", "duplicate_semantic", 0.15),
        ("prune", "pruned_density", 0.5),
    )
    for stage, reason, share in shares:
        out = set(rng.choice(alive, int(share * len(alive)), replace=False).tolist())
        kept_of = {int(concept[i]): int(i) for i in alive if int(i) not in out}
        for i in alive.tolist():
            row: dict[str, Any] = {"sample_id": i, "stage": stage, "keep": i not in out}
            if i in out:
                row |= {"reason": reason, "evidence": f"{stage}: {rng.uniform(0, 1):.3f} over 0.5"}
            if i in out and stage == "deduplicate":
                exact = rng.uniform() < 0.3
                row |= {"representative": kept_of.get(int(concept[i]), int(alive[0]))}
                row |= {"similarity": 1.0 if exact else float(rng.uniform(0.93, 0.99))}
                row |= {"reason": "duplicate_exact"} if exact else {}
            rows.append(row)
        alive = np.asarray([i for i in alive if int(i) not in out])
    return pa.Table.from_pylist(rows, schema=DECISIONS), alive


def _clusters(rng: np.random.Generator, ids: np.ndarray, concept: np.ndarray) -> pa.Table:
    columns = {
        "sample_id": ids,
        "cluster": concept[ids].astype(np.int32),
        "distance": rng.uniform(0.02, 0.4, len(ids)).astype(np.float32),
    }
    return pa.table(columns, schema=CLUSTERS)


def _models() -> pa.Table:
    metrics = json.dumps(
        {"steps": 100, "loss_every_steps": 5, "loss": [3.0 * 0.97**step + 0.4 for step in range(0, 100, 5)]}
    )
    row = {"name": "tiny", "family": "open_clip", "sha256": "ab" * 32, "weights": b"\0", "licence": "Apache-2.0"}
    return pa.Table.from_pylist([row | {"metrics": metrics}], schema=MODELS)
