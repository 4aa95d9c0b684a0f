"""The photographs that scikit-image and scikit-learn ship in their wheels, with functions to crop and describe them.

A photograph is a concept. Its crops are distinct: no two of them overlap by half, and no two have similar perceptual
hashes, mirrored or not, so merging two of them is an error of deduplication.
"""

from dataclasses import dataclass
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path
from typing import Final

import numpy as np
import numpy.typing as npt

Pixels = npt.NDArray[np.uint8]
Box = tuple[int, int, int, int]
"""left, top, right, bottom, in pixels; right and bottom are outside."""
Boxes = npt.NDArray[np.int64]
"""(n, 4): one box a row."""

MIN_CROP_PX: Final = 80
MIN_CROP_AREA: Final = 0.03
"""As a fraction of the photograph's area."""
MAX_IOU: Final = 0.5
MIN_HASH_DISTANCE: Final = 12
"""In bits, of 63. A re-encoded, slightly cropped copy usually differs in at most 8."""
MIN_CONTRAST: Final = 18.0
"""Least standard deviation of the grey values of a crop, which excludes crops of only sky or shadow."""


@dataclass(frozen=True)
class Photograph:
    """One photograph: its location, its subject, and the content of its regions."""

    name: str
    file: str
    subjects: tuple[str, ...]
    parts: tuple[tuple[str, float, float, float, float], ...] = ()
    """Regions: name, left, top, right, bottom, as fractions of width and height."""
    share: float = 1.0
    """Relative number of crops. Textures yield few distinguishable ones."""


# Excluded: gravel, which cannot be distinguished from grass at 64 pixels, the second view of the motorcycle, drawings.
PHOTOGRAPHS: Final = (
    Photograph(
        "astronaut",
        "skimage/data/astronaut.png",
        (
            "an astronaut in an orange space suit",
            "portrait of a NASA astronaut",
            "a smiling astronaut before her flight",
        ),
        (
            ("her smiling face", 0.28, 0.02, 0.60, 0.38),
            ("the American flag", 0.0, 0.0, 0.18, 0.60),
            ("a model of the space shuttle", 0.66, 0.0, 0.95, 0.58),
            ("the black and white helmet", 0.52, 0.64, 1.0, 1.0),
            ("the mission patch", 0.24, 0.64, 0.42, 0.86),
        ),
    ),
    Photograph(
        "brick wall",
        "skimage/data/brick.png",
        ("a brick wall in grey", "an old brick wall", "brick texture in rows"),
        share=0.4,
    ),
    Photograph(
        "cameraman",
        "skimage/data/camera.png",
        ("a cameraman with his tripod", "a cameraman in a black coat", "a cameraman at work in a park"),
        (
            ("his face behind the camera", 0.28, 0.10, 0.66, 0.42),
            ("the black coat", 0.0, 0.28, 0.40, 1.0),
            ("the legs of the tripod", 0.44, 0.56, 0.82, 1.0),
            ("the skyline and a tower", 0.66, 0.20, 1.0, 0.48),
        ),
    ),
    Photograph(
        "cell",
        "skimage/data/cell.png",
        ("a living cell under the microscope", "micrograph of a single cell"),
        (("the bright nucleus", 0.60, 0.45, 0.95, 0.72),),
        share=0.4,
    ),
    Photograph(
        "cat",
        "skimage/data/chelsea.png",
        ("a ginger cat looking at the camera", "Chelsea the tabby cat", "a cute cat with green eyes"),
        (
            ("its left eye", 0.28, 0.26, 0.46, 0.52),
            ("its right eye", 0.62, 0.34, 0.80, 0.56),
            ("the pink nose and whiskers", 0.44, 0.68, 0.72, 0.98),
            ("the striped forehead", 0.28, 0.0, 0.76, 0.28),
            ("the soft fur of its cheek", 0.0, 0.4, 0.28, 1.0),
        ),
    ),
    Photograph(
        "coffee",
        "skimage/data/coffee.png",
        ("a cup of coffee on a wooden table", "hot coffee in a red cup", "coffee with a silver spoon"),
        (
            ("the rim of the cup with coffee", 0.28, 0.04, 0.70, 0.54),
            ("the small spoon", 0.52, 0.55, 0.70, 0.84),
            ("the red saucer", 0.12, 0.40, 0.50, 0.98),
            ("the grain of the table", 0.72, 0.0, 1.0, 0.6),
        ),
    ),
    Photograph(
        "coins",
        "skimage/data/coins.png",
        ("ancient Greek coins from Pompeii", "a collection of old coins on black", "rows of silver coins"),
        share=0.8,
    ),
    Photograph(
        "grass",
        "skimage/data/grass.png",
        ("a lawn of dry grass", "grass texture from above", "short grass in summer"),
        share=0.4,
    ),
    Photograph(
        "galaxies",
        "skimage/data/hubble_deep_field.jpg",
        ("galaxies in the Hubble deep field", "hundreds of distant galaxies", "galaxies seen by a space telescope"),
        share=0.8,
    ),
    Photograph(
        "tissue",
        "skimage/data/ihc.png",
        ("a stained tissue section", "colon tissue under the microscope", "tissue stained in brown and blue"),
        (
            ("a round gland", 0.48, 0.58, 0.78, 1.0),
            ("a large brown gland", 0.0, 0.0, 0.55, 0.52),
            ("blue nuclei in the stroma", 0.70, 0.30, 1.0, 1.0),
        ),
    ),
    Photograph(
        "moon",
        "skimage/data/moon.png",
        ("the surface of the moon", "the moon seen from orbit", "a grey plain on the moon"),
        (
            ("a round crater", 0.14, 0.06, 0.34, 0.26),
            ("a bright ray crater", 0.50, 0.08, 0.82, 0.40),
            ("dark hills", 0.36, 0.44, 0.62, 0.94),
        ),
        share=0.6,
    ),
    Photograph(
        "motorcycle",
        "skimage/data/motorcycle_left.png",
        ("a red motorcycle in a garage", "vintage red motorcycle for sale", "a motorcycle parked in a workshop"),
        (
            ("the front wheel", 0.66, 0.52, 0.92, 0.92),
            ("the rear wheel and exhaust", 0.14, 0.44, 0.40, 0.82),
            ("the engine", 0.38, 0.42, 0.64, 0.76),
            ("the red fuel tank", 0.34, 0.26, 0.66, 0.54),
            ("boxes on the shelves", 0.46, 0.0, 1.0, 0.24),
        ),
    ),
    Photograph(
        "printed page",
        "skimage/data/page.png",
        ("a printed page about segmentation", "scan of a printed page", "a page of printed text"),
        share=0.5,
    ),
    Photograph(
        "retina",
        "skimage/data/retina.jpg",
        ("fundus photograph of a retina", "the retina of a human eye", "blood vessels of the retina"),
        (
            ("the optic disc", 0.08, 0.34, 0.28, 0.62),
            ("the dark macula", 0.42, 0.38, 0.62, 0.62),
            ("branching vessels", 0.2, 0.05, 0.8, 0.32),
            ("the edge of the field", 0.78, 0.0, 1.0, 0.34),
        ),
    ),
    Photograph(
        "rocket",
        "skimage/data/rocket.jpg",
        ("a Falcon 9 rocket on the launch pad", "rocket at dusk before the launch", "SpaceX rocket at Cape Canaveral"),
        (
            ("the white rocket", 0.42, 0.28, 0.60, 0.95),
            ("a steel lattice tower", 0.0, 0.0, 0.16, 0.9),
            ("the floodlights", 0.08, 0.78, 0.78, 1.0),
        ),
    ),
    Photograph(
        "handwriting",
        "skimage/data/text.png",
        ("handwriting on lined paper", "digits in somebody's handwriting", "a sheet with handwriting"),
        share=0.5,
    ),
    Photograph(
        "pagoda",
        "sklearn/datasets/images/china.jpg",
        ("a Chinese pagoda by a lake", "the pagoda of the Summer Palace", "a pagoda with green roofs"),
        (
            ("the golden top of the roof", 0.16, 0.06, 0.50, 0.34),
            ("painted balconies", 0.10, 0.36, 0.55, 0.86),
            ("the lake in the haze", 0.56, 0.46, 0.92, 0.66),
            ("trees on the slope", 0.40, 0.64, 1.0, 1.0),
        ),
    ),
    Photograph(
        "dahlia",
        "sklearn/datasets/images/flower.jpg",
        ("an orange dahlia in bloom", "a round dahlia with many petals", "a dahlia in the garden"),
        (
            ("the red heart of the flower", 0.38, 0.38, 0.58, 0.66),
            ("a second flower below", 0.42, 0.84, 0.76, 1.0),
            ("dark green leaves", 0.70, 0.0, 1.0, 1.0),
        ),
    ),
)

BY_NAME: Final = {photograph.name: photograph for photograph in PHOTOGRAPHS}


@lru_cache(maxsize=len(PHOTOGRAPHS))
def pixels(name: str) -> Pixels:
    """Return a photograph: uint8 (height, width, 3), RGB, read-only."""
    from PIL import Image

    package, _, rest = BY_NAME[name].file.partition("/")
    spec = find_spec(package)
    if spec is None or spec.origin is None:
        raise ModuleNotFoundError(
            f"the demo cuts its pictures from the photographs in {package}, which is not installed"
        )
    with Image.open(Path(spec.origin).parent / rest) as image:
        array: Pixels = np.asarray(image.convert("RGB"), dtype=np.uint8)
    array.setflags(write=False)
    return array


def distinct_crops(name: str, count: int, rng: np.random.Generator) -> list[Box]:
    """Return up to `count` distinguishable crops of a photograph; fewer if it does not yield more.

    Candidates have MIN_CROP_AREA to 1 of the photograph's area and an aspect ratio of 2:3 to 3:2. They are accepted in
    order if they have contrast, overlap no accepted crop by more than MAX_IOU (intersection over union), and differ
    from every accepted crop and its mirror image in MIN_HASH_DISTANCE bits of a DCT hash.
    """
    photograph = pixels(name)
    candidates = _candidates(photograph.shape[1], photograph.shape[0], 60 * count, rng)
    summed = _summed(photograph)
    free = np.ones(len(candidates), dtype=bool)
    taken: list[int] = []
    hashes = np.zeros((0, 63), dtype=bool)
    for at in range(len(candidates)):
        if len(taken) == count:
            break
        if not free[at]:
            continue
        thumbnail = _thumbnail(summed, candidates[at])
        if thumbnail.std() < MIN_CONTRAST:
            continue
        both = np.stack([_hash(thumbnail), _hash(thumbnail[:, ::-1])])
        if taken and (hashes[:, None] != both).sum(axis=2).min() < MIN_HASH_DISTANCE:
            continue
        taken.append(at)
        hashes = np.vstack([hashes, both[:1]])
        free &= _iou(candidates[at], candidates) <= MAX_IOU
    return [(int(left), int(top), int(right), int(bottom)) for left, top, right, bottom in candidates[taken]]


def describe(name: str, box: Box, flipped: bool, look: str, rng: np.random.Generator) -> str:
    """Return a caption in the style of web captions: the subject, the visible part, and sometimes the look."""
    photograph = BY_NAME[name]
    subject = str(rng.choice(photograph.subjects))
    region = _region(photograph, box, flipped)
    manner = {"mono": "in black and white", "warm": "in warm light", "dark": "low key", "faded": "faded print"}.get(
        look, ""
    )
    templates = [
        f"{subject}, {region}",
        f"{region} of {subject}" if region.startswith(("detail", "close-up")) else f"{subject}: {region}",
        f"photo of {subject}, {region}",
        f"{subject} ({region})",
        f"{photograph.name} - {subject} - {region}",
    ]
    caption = str(rng.choice(templates))
    if manner and rng.random() < 0.7:
        caption += f", {manner}"
    noise = rng.random()
    if noise < 0.06:
        return f"IMG_{rng.integers(1000, 9999)}.jpg {caption}"
    if noise < 0.12:
        return f"{caption} | stock photo"
    return caption[0].upper() + caption[1:] if noise < 0.5 else caption


def _candidates(width: int, height: int, count: int, rng: np.random.Generator) -> Boxes:
    """Return random boxes, large ones first: otherwise small ones would leave no room for boxes of the whole image."""
    smallest = max(MIN_CROP_AREA, MIN_CROP_PX**2 / (width * height))
    area = np.exp(rng.uniform(np.log(smallest), 0.0, count)) * width * height
    aspect = np.exp(rng.uniform(np.log(2 / 3), np.log(3 / 2), count))
    wide = np.clip(np.sqrt(area * aspect), MIN_CROP_PX, width).astype(np.int64)
    high = np.clip(np.sqrt(area / aspect), MIN_CROP_PX, height).astype(np.int64)
    left = (rng.random(count) * (width - wide + 1)).astype(np.int64)
    top = (rng.random(count) * (height - high + 1)).astype(np.int64)
    boxes = np.stack([left, top, left + wide, top + high], axis=1)
    return boxes[np.argsort(wide * high <= 0.4 * width * height, kind="stable")]


def _iou(box: npt.NDArray[np.int64], others: Boxes) -> npt.NDArray[np.float64]:
    left, top, right, bottom = others.T
    wide = np.clip(np.minimum(right, box[2]) - np.maximum(left, box[0]), 0, None)
    high = np.clip(np.minimum(bottom, box[3]) - np.maximum(top, box[1]), 0, None)
    both = wide * high
    area = (box[2] - box[0]) * (box[3] - box[1])
    result: npt.NDArray[np.float64] = both / (area + (right - left) * (bottom - top) - both)
    return result


def _summed(photograph: Pixels) -> npt.NDArray[np.float64]:
    """Return the summed-area table of the grey values, which gives the mean of any rectangle in four look-ups."""
    import cv2

    return np.asarray(cv2.integral(cv2.cvtColor(photograph, cv2.COLOR_RGB2GRAY)), dtype=np.float64)


def _thumbnail(summed: npt.NDArray[np.float64], box: npt.NDArray[np.int64]) -> npt.NDArray[np.float32]:
    """Return the means of 32 x 32 cells of a crop, with cell borders rounded to pixels."""
    left, top, right, bottom = box
    across = np.linspace(left, right, 33).astype(np.int64)
    down = np.linspace(top, bottom, 33).astype(np.int64)
    corners = summed[down[:, None], across]
    sums = np.diff(np.diff(corners, axis=0), axis=1)
    return np.asarray(sums / np.outer(np.diff(down), np.diff(across)), dtype=np.float32)


def _hash(thumbnail: npt.NDArray[np.float32]) -> npt.NDArray[np.bool_]:
    """Return the signs of the 63 lowest DCT coefficients without the mean, relative to their median."""
    import cv2

    low = cv2.dct(np.ascontiguousarray(thumbnail))[:8, :8].ravel()[1:]
    result: npt.NDArray[np.bool_] = low > np.median(low)
    return result


def _region(photograph: Photograph, box: Box, flipped: bool) -> str:
    """Return a description of a crop: a named region that fills much of it, otherwise its position."""
    height, width = pixels(photograph.name).shape[:2]
    left, top, right, bottom = box[0] / width, box[1] / height, box[2] / width, box[3] / height
    area = (right - left) * (bottom - top)
    if area > 0.55:
        return "full view"
    best, best_share = "", 0.0
    for part, x0, y0, x1, y1 in photograph.parts:
        shared = max(0.0, min(right, x1) - max(left, x0)) * max(0.0, min(bottom, y1) - max(top, y0))
        share = min(shared / area, shared / ((x1 - x0) * (y1 - y0)))
        if share > best_share:
            best, best_share = part, share
    if best_share > 0.3:
        return f"close-up of {best}" if area < 0.15 else best
    middle_x, middle_y = (left + right) / 2, (top + bottom) / 2
    if flipped:
        middle_x = 1 - middle_x
    across = "left" if middle_x < 0.4 else "right" if middle_x > 0.6 else ""
    down = "upper" if middle_y < 0.4 else "lower" if middle_y > 0.6 else ""
    where = " ".join(word for word in (down, across) if word) or "central"
    return f"{'detail' if area < 0.15 else 'view'} from the {where} part"
