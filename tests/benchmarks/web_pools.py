"""Pools of photographs as the web has them, made of the clean photographs of CIFAR-10, and learners to try them on.

The web's traits, planted one by one so that an experiment can say which of them matters: near-copies, few pictures
with most of them; simple concepts, each many views of one scene; a long tail of classes; captions that are wrong.
"""

import hashlib
import io
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import torch
from PIL import Image, ImageEnhance
from torch.nn import functional

from tasks.images import decode
from tests.benchmarks.mobilenet import MobileNet

SIDE = 96
"""Pixels that a photograph of 32 is enlarged to for the MobileNet."""
CLASSES = 10


@dataclass(frozen=True)
class Pool:
    """Pictures with a label each."""

    images: list[bytes]
    """n encoded pictures."""
    label: np.ndarray
    """int64 (n,): what is on them."""
    said: np.ndarray
    """int64 (n,): the label that the pool has, wrong for a share."""
    kind: np.ndarray
    """str (n,): photo, copy or view."""
    origin: np.ndarray
    """int64 (n,): the photograph that it is, or was made from."""

    def __len__(self) -> int:
        return len(self.images)


class Photographs:
    """Photographs to make pools from: `images` and `label`; and 5,000 others to test on."""

    def __init__(self, data: Path, count: int) -> None:
        table = pq.read_table(data / "cifar10_jpeg" / "train.parquet")
        table = table.take(np.sort(np.random.default_rng(0).permutation(table.num_rows)[:count]))
        self.images: list[bytes] = table.column("image").to_pylist()
        self.label = table.column("label").to_numpy().astype(np.int64)
        test = pq.read_table(data / "cifar10_jpeg" / "test.parquet")
        self.test_images: list[bytes] = test.column("image").to_pylist()
        self.test_label = test.column("label").to_numpy().astype(np.int64)

    def pool(self, *parts: tuple[np.ndarray, str, list[bytes] | None]) -> Pool:
        """Return the pool of parts: (photographs, kind, what was made of them; None: the photographs themselves)."""
        origin = np.concatenate([of for of, _, _ in parts])
        images = [
            image for of, _, made in parts for image in (made if made is not None else [self.images[i] for i in of])
        ]
        kind = np.repeat([kind for _, kind, _ in parts], [len(of) for of, _, _ in parts])
        return Pool(images, self.label[origin], self.label[origin], kind, origin)

    def made(self, of: np.ndarray, how: "Making", rng: np.random.Generator) -> list[bytes]:
        """Return a picture made of each photograph, saved as JPEG of quality 60 to 94."""
        found = []
        for i in of:
            buffer = io.BytesIO()
            picture = Image.open(io.BytesIO(self.images[i])).convert("RGB")
            how(picture, rng).save(buffer, "JPEG", quality=int(rng.integers(60, 95)))
            found.append(buffer.getvalue())
        return found


Making = Callable[[Image.Image, np.random.Generator], Image.Image]
"""Makes another picture of one."""


def copied(picture: Image.Image, rng: np.random.Generator) -> Image.Image:
    """Return a near-copy: cropped by up to 4 pixels or not at all, a little brighter or darker."""
    side = int(rng.integers(28, 33))
    return ImageEnhance.Brightness(_cropped(picture, side, rng)).enhance(rng.uniform(0.85, 1.15))


def viewed(picture: Image.Image, rng: np.random.Generator) -> Image.Image:
    """Return another view of a scene: up to 12 of 32 pixels cropped, mirrored or not, other colours and light."""
    view = _cropped(picture, int(rng.integers(20, 31)), rng)
    if rng.random() < 0.5:
        view = view.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    view = ImageEnhance.Color(view).enhance(rng.uniform(0.5, 1.5))
    return ImageEnhance.Brightness(view).enhance(rng.uniform(0.7, 1.3))


def _cropped(picture: Image.Image, side: int, rng: np.random.Generator) -> Image.Image:
    left, top = (int(n) for n in rng.integers(0, picture.width - side + 1, 2))
    box = (left, top, left + side, top + side)
    return picture.crop(box).resize(picture.size, Image.Resampling.BILINEAR)


def zipf(among: int, draws: int, rng: np.random.Generator) -> np.ndarray:
    """Return how it falls when the i-th of some is drawn in proportion to 1 / i: int64 (draws,)."""
    shares = 1 / np.arange(1, among + 1)
    return rng.choice(among, draws, p=shares / shares.sum())


# ---- features and learners


class Encoder:
    """Features of encoded pictures, each computed once."""

    def __init__(self, encode: Callable[[np.ndarray], np.ndarray], batch: int = 128) -> None:
        self._encode = encode
        self._batch = batch
        self._known: dict[bytes, np.ndarray] = {}

    def __call__(self, images: list[bytes]) -> np.ndarray:
        """Return float32 (n, d)."""
        names = [hashlib.sha256(image).digest() for image in images]
        new = list({n: i for n, i in zip(names, images, strict=True) if n not in self._known}.items())
        for at in range(0, len(new), self._batch):
            those = new[at : at + self._batch]
            found = self._encode(np.stack([decode(image) for _, image in those]))
            self._known |= {name: row for (name, _), row in zip(those, found, strict=True)}
        return np.stack([self._known[name] for name in names])


@cache
def mobile(weights: Path) -> Encoder:
    """Return the MobileNet of ImageNet, which never saw a label of these pools."""
    net = MobileNet(weights)

    def encode(pictures: np.ndarray) -> np.ndarray:
        large = functional.interpolate(_tensor(pictures), size=(SIDE, SIDE), mode="bilinear")
        return net(large.round().to(torch.uint8).permute(0, 2, 3, 1).numpy())

    return Encoder(encode)


class Patches:
    """Whitened patches of photographs as the filters of one layer, and pooled by quarters: (n, 8 * filters).

    What a learner that knows nothing but these pixels can have without a day of training.
    Source: Coates, Lee, Ng, An analysis of single-layer networks in unsupervised feature learning, AISTATS 2011.
    """

    def __init__(self, pictures: np.ndarray, filters: int = 200, size: int = 6, seed: int = 0) -> None:
        patches = functional.unfold(self._even(pictures), size, stride=4).permute(0, 2, 1).reshape(-1, 3 * size**2)
        patches = patches - patches.mean(1, keepdim=True)
        values, vectors = torch.linalg.eigh(torch.cov(patches.T))
        whiten = vectors @ torch.diag(1 / torch.sqrt(values + 0.02)) @ vectors.T
        chosen = torch.from_numpy(np.random.default_rng(seed).choice(len(patches), filters, replace=False))
        found = functional.normalize(patches[chosen] @ whiten, dim=1) @ whiten.T
        found -= found.mean(1, keepdim=True)
        self._threshold = float((patches[:20_000] @ found.T).std()) / 2
        self._filters = found.reshape(filters, 3, size, size)

    def __call__(self, pictures: np.ndarray) -> np.ndarray:
        """Return float32 (n, 8 * filters) of uint8 (n, 32, 32, 3)."""
        with torch.inference_mode():
            answers = functional.conv2d(self._even(pictures), self._filters, stride=2)
            both = torch.cat([functional.relu(sign * answers - self._threshold) for sign in (1, -1)], 1)
            return functional.adaptive_avg_pool2d(both, 2).flatten(1).numpy()

    @staticmethod
    def _even(pictures: np.ndarray) -> torch.Tensor:
        values = _tensor(pictures) / 255
        return (values - values.mean((1, 2, 3), keepdim=True)) / (values.std((1, 2, 3), keepdim=True) + 0.05)


def _tensor(pictures: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(pictures).permute(0, 3, 1, 2).float()


class Learners:
    """Two classifiers, by ridge regression on features that no label of the pool went into; a balanced test."""

    def __init__(self, photographs: Photographs, weights: Path) -> None:
        patches = Patches(np.stack([decode(image) for image in photographs.images[:1000]]))
        self._features = {"mobile": (mobile(weights), 30.0), "patches": (Encoder(patches), 1000.0)}
        self._test = photographs.test_label
        self._test_features = {name: of(photographs.test_images) for name, (of, _) in self._features.items()}

    def by_class(self, pool: Pool, kept: np.ndarray) -> dict[str, np.ndarray]:
        """Return the share of each class's test pictures that is right: float (10,) a learner. `kept`: bool (n,)."""
        images = [pool.images[i] for i in np.flatnonzero(kept)]
        found = {}
        for name, (features, penalty) in self._features.items():
            right = ridge(features(images), pool.said[kept], self._test_features[name], penalty) == self._test
            found[name] = np.bincount(self._test, right, CLASSES) / np.bincount(self._test, minlength=CLASSES)
        return found


def ridge(train: np.ndarray, label: np.ndarray, test: np.ndarray, penalty: float) -> np.ndarray:
    """Return the class of each test row, int64 (m,), by least squares on one-hot labels with a penalty, solved exactly.

    `train`: float32 (n, d), made to mean 0 and deviation 1 before; `label`: int64 (n,), 0 .. 9; `test`: float32 (m, d).
    """
    mean, deviation = train.mean(0), train.std(0) + 1e-3
    rows, target = (train - mean) / deviation, np.eye(CLASSES, dtype=np.float32)[label]
    share = target.mean(0)
    gram = rows.T @ rows
    gram[np.diag_indices_from(gram)] += penalty
    weights = np.linalg.solve(gram, rows.T @ (target - share))
    found: np.ndarray = ((test - mean) / deviation @ weights + share).argmax(1)
    return found
