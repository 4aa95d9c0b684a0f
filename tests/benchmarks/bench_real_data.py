"""Curation on real photographs: planted duplicates, concept purity, and selectors against each other.

    python tests/benchmarks/bench_real_data.py [--data ../shared/data] [--seeds 3] [--json out.json]

Data: 1,506 photographs of COCO with a caption each; 3,091 of Caltech-101, 51 classes and a clutter class, long-tailed.
Everything runs through the product's stages on the spine; vectors come from a MobileNet (`mobilenet.py`), the
caption score from a small CLIP that the recipe trains on the pool itself, as no pretrained CLIP can be had offline.

1. Duplicates: every fourth photograph is also there as a JPEG of quality 90, 70 and 50, and with 2 % and 5 % cropped
   from each side. Recall: the copy and its original are in one group. Precision: rows taken out that are copies of the
   row that stands for them.
2. Purity: the share of rows in clusters whose commonest class is theirs.
3. Selectors: keep 0.2, 0.4 and 0.6 of a pool in which a share of the labels is wrong, as on the web; train a linear
   classifier on what is kept; test on a quarter of the photographs, whose labels are right.
"""

import argparse
import hashlib
import io
import json
import sys
import tarfile
import tempfile
from collections import defaultdict
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, cast

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from catalog.dataset import Catalog, Dataset
from catalog.schema import vector
from flows.build.build import run_stage
from flows.build.context import BuildContext
from flows.build.engine import InlineEngine
from flows.build.plan import NUMBERS, Plan, make_plan
from flows.recipe.recipe import Recipe
from tasks.cluster import Cluster
from tasks.deduplicate import Deduplicate
from tasks.download import Download
from tasks.embed import Embed
from tasks.images import decode
from tasks.prune import AnyPrune
from tasks.sources import Webdataset
from tasks.stage import Batches, Resources, Stage, Step, Tables
from tasks.train import TrainClip
from tests.benchmarks.mobilenet import DIM, MobileNet, prepare

CORES = Resources(cpus=2)
QUALITIES = (90, 70, 50)
CROPS = (0.02, 0.05)
FRACTIONS = (0.2, 0.4, 0.6)
CONCEPTS = 60
SELECTORS: dict[str, dict[str, Any]] = {
    "random": {"method": "random"},
    "score": {"method": "score", "column": "clip_score"},
    "prototypes hard": {"method": "prototypes", "which": "hard"},
    "prototypes easy": {"method": "prototypes", "which": "easy"},
    "density": {"method": "density"},
    "density easy": {"method": "density", "which": "easy"},
    "hierarchical": {"method": "hierarchical"},
}


class Photographs(Embed):
    """`embed`, with a MobileNet's vectors beside the CLIP's."""

    weights: str = ""

    def output(self, available: Tables) -> pa.Schema:
        return super().output(available).append(vector("mobile", DIM, "MobileNet v1 0.25, pooled, length 1"))

    def open(self, device: str, sides: Mapping[str, pa.Table]) -> Step:
        clip, mobile = super().open(device, sides), MobileNet(Path(self.weights))

        def step(batches: Iterator[pa.Table]) -> Batches:
            held = list(batches)  # a few thousand pictures of 256 pixels
            table = pa.concat_tables(clip(iter(held)))
            images = [data for batch in held for data in batch.column("image").to_pylist()]
            found = [
                mobile(np.stack([prepare(decode(i)) for i in images[at : at + 64]])) for at in range(0, len(images), 64)
            ]
            values = pa.array(np.concatenate(found).astype(np.float16).ravel())
            yield table.append_column("mobile", pa.FixedSizeListArray.from_arrays(values, DIM))

        return step


class Spine:
    """Runs recipes over one source in one catalog; what two recipes share is made once."""

    def __init__(self, folder: Path, weights: Path) -> None:
        self._folder, self._weights = folder, weights

    def run(self, tar: Path, stages: list[Stage], seed: int = 0) -> tuple[Dataset, Plan]:
        """Make what is missing of every stage but the published manifest."""
        dataset = Catalog(self._folder / "catalog", create=True).dataset(tar.stem)
        source = Webdataset(use="webdataset", path=str(tar), rows_per_part=100_000)
        recipe = Recipe.model_construct(
            dataset=tar.stem,
            description="",
            catalog=None,
            seed=seed,
            prices=None,
            source=source,
            stages=cast(Any, tuple(stages)),
        )
        plan = make_plan(recipe, dataset)
        dataset.set_state(NUMBERS, plan.numbers)
        with InlineEngine() as engine:
            for planned in plan.stages[:-1]:
                if planned.missing:
                    run_stage(plan, planned, engine, BuildContext(run_id="run"))
        return dataset, make_plan(recipe, dataset)

    def pixels(self) -> list[Stage]:
        """Return the stages up to the vectors."""
        clip = {"name": "clip", "trained": "small-clip"}
        return [
            Download(resize_mode="keep_ratio", resize_only_if_bigger=True, resources=CORES),
            TrainClip(steps=200, resources=CORES),
            Photographs(encoders=[clip], weights=str(self._weights), resources=CORES),
        ]


def table(dataset: Dataset, plan: Plan, stage: str) -> pa.Table:
    """Return what one stage of a plan wrote, whole."""
    planned = next(p for p in plan.stages if p.stage.name == stage)
    return pa.concat_tables([pq.read_table(f"{dataset.storage.uri}/{path}") for path in planned.paths()])


def write_tar(path: Path, samples: list[tuple[str, bytes, str, str]]) -> Path:
    """Write (key, image, caption, label) as a WebDataset."""
    with tarfile.open(path, "w") as tar:
        for key, image, caption, label in samples:
            for suffix, data in (("jpg", image), ("txt", caption.encode()), ("cls", label.encode())):
                member = tarfile.TarInfo(f"{key}.{suffix}")
                member.size = len(data)
                tar.addfile(member, io.BytesIO(data))
    return path


def jpeg(picture: Image.Image, quality: int) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, "JPEG", quality=quality)
    return buffer.getvalue()


def cropped(picture: Image.Image, share: float) -> Image.Image:
    dx, dy = picture.width * share, picture.height * share
    return picture.crop((round(dx), round(dy), round(picture.width - dx), round(picture.height - dy)))


def copies(image: bytes) -> dict[str, bytes]:
    """Return the planted copies of a photograph, by what was done to it."""
    picture = Image.open(io.BytesIO(image)).convert("RGB")
    found = {f"quality {q}": jpeg(picture, q) for q in QUALITIES}
    return found | {f"crop {share:.0%}": jpeg(cropped(picture, share), 90) for share in CROPS}


def unique(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Leave out files that the set itself holds twice."""
    return list({row["sha256"]: row for row in rows}.values())


# ---- 1. duplicates


def duplicates(spine: Spine, folder: Path, data: Path) -> list[dict[str, Any]]:
    """Measure recall by what was done, and precision, of every way to find copies."""
    found = []
    for name, file in (("coco", "coco_captions_1500/train.parquet"), ("caltech", "caltech_a/all.parquet")):
        samples = []
        for i, row in enumerate(unique(pq.read_table(data / file).to_pylist())):
            caption = row.get("label_name") or row["captions"][0]
            samples.append((f"{i:05d}-original", row["image"], caption, ""))
            if i % 4 == 0:
                samples += [(f"{i:05d}-{n}", c, caption, w) for n, (w, c) in enumerate(copies(row["image"]).items())]
        tar = write_tar(folder / f"{name}.tar", samples)
        for way, fields in WAYS.items():
            stages = [*spine.pixels(), Deduplicate(**fields, resources=CORES)]
            dataset, plan = spine.run(tar, stages)
            found.append({"set": name, "way": way} | judged(dataset, plan))
            print(found[-1], file=sys.stderr, flush=True)
    return found


WAYS: dict[str, dict[str, Any]] = {
    "perceptual, radius 3": {"perceptual": {"radius": 3}},
    "perceptual, radius 6": {"perceptual": {"radius": 6}},
    "semantic, epsilon 0.02": {"semantic": {"epsilon": 0.02, "encoder": "mobile"}},
    "semantic, epsilon 0.05": {"semantic": {"epsilon": 0.05, "encoder": "mobile"}},
    "both, radius 6, epsilon 0.02": {"perceptual": {"radius": 6}, "semantic": {"epsilon": 0.02, "encoder": "mobile"}},
}


def judged(dataset: Dataset, plan: Plan) -> dict[str, Any]:
    """Return recall by kind and precision of the decisions of `deduplicate`."""
    source = table(dataset, plan, "webdataset").to_pylist()
    decisions = table(dataset, plan, "deduplicate").to_pylist()
    name = {row["sample_id"]: row["url"].rpartition("#")[2].removesuffix(".jpg") for row in source}
    kind = {row["sample_id"]: row["label"] for row in source}
    stands = {
        d["sample_id"]: d["representative"] if d["representative"] is not None else d["sample_id"] for d in decisions
    }
    original = {name[i][:5]: i for i in name if name[i].endswith("original")}
    hits: dict[str, list[bool]] = defaultdict(list)
    for i in stands:
        if kind[i]:
            hits[kind[i]].append(stands[i] == stands[original[name[i][:5]]])
    out = [d["sample_id"] for d in decisions if not d["keep"]]
    right = sum(name[i][:5] == name[stands[i]][:5] for i in out)
    recall = {what: round(float(np.mean(those)), 4) for what, those in sorted(hits.items())}
    return {"recall": recall, "precision": round(right / max(len(out), 1), 4), "rows_out": len(out)}


# ---- 2. and 3. purity and selectors


def pool_of(data: Path, noise: float) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Return (pool, test): photographs with a class; `said` is the label that the pool has, wrong for a share."""
    rows = [r for r in unique(pq.read_table(data / "caltech_a/all.parquet").to_pylist()) if r["label"] >= 0]
    names = sorted({r["label_name"] for r in rows})
    for row in rows:
        drawn = int(hashlib.sha256(row["id"].encode()).hexdigest()[:12], 16)
        row["test"] = drawn % 4 == 0
        wrong = (drawn // 4) % 1000 < noise * 1000
        row["said"] = (
            names[(names.index(row["label_name"]) + 1 + drawn // 4000 % (len(names) - 1)) % len(names)]
            if wrong
            else row["label_name"]
        )
    return [r for r in rows if not r["test"]], [r for r in rows if r["test"]]


def features(rows: list[dict[str, Any]], mobile: MobileNet) -> np.ndarray:
    found = [
        mobile(np.stack([prepare(decode(r["image"])) for r in rows[at : at + 64]])) for at in range(0, len(rows), 64)
    ]
    return np.concatenate(found)


def accuracy(train: np.ndarray, said: list[str], test: np.ndarray, truth: list[str]) -> tuple[float, float]:
    """Return (share right, mean over classes of it) of a linear classifier."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.preprocessing import StandardScaler

    scale = StandardScaler().fit(train)
    model = LogisticRegression(C=0.05, max_iter=300).fit(scale.transform(train), said)
    right = model.predict(scale.transform(test)) == np.array(truth)
    by_class = [right[np.array(truth) == name].mean() for name in sorted(set(truth))]
    return float(right.mean()), float(np.mean(by_class))


def clusters_of(method: str) -> Cluster:
    levels: dict[str, Any] = {"levels": [CONCEPTS, CONCEPTS // 5]} if method == "hierarchical" else {"k": CONCEPTS}
    return Cluster(encoder="mobile", resources=CORES, **levels)


def selectors(spine: Spine, folder: Path, data: Path, seeds: int, noise: float, weights: Path) -> list[dict[str, Any]]:
    """Return a row for every selector, fraction and seed, and for the whole pool."""
    from pydantic import TypeAdapter

    pool, test = pool_of(data, noise)
    mobile = MobileNet(weights)
    held_out, truth = features(test, mobile), [r["label_name"] for r in test]
    tar = write_tar(
        folder / f"pool{round(noise * 100)}.tar",
        [(f"{i:05d}", r["image"], f"a photo of a {r['said']}", r["said"]) for i, r in enumerate(pool)],
    )
    prune = TypeAdapter(AnyPrune)
    found = []
    for seed in range(seeds):
        for name, fields in SELECTORS.items():
            for keep in FRACTIONS:
                stage = prune.validate_python({"use": "prune", "keep": keep, "resources": {"cpus": 2}} | fields)
                dataset, plan = spine.run(tar, [*spine.pixels(), clusters_of(str(fields["method"])), stage], seed)
                found.append(arm(dataset, plan, pool, held_out, truth) | {"selector": name, "keep": keep, "seed": seed})
                print(found[-1], file=sys.stderr, flush=True)
        everything = arm(dataset, plan, pool, held_out, truth, everything=True)
        found.append(everything | {"selector": "all", "keep": 1.0, "seed": seed} | purity(dataset, plan, pool))
        print(found[-1], file=sys.stderr, flush=True)
    return [row | {"noise": noise} for row in found]


def arm(
    dataset: Dataset,
    plan: Plan,
    pool: list[dict[str, Any]],
    test: np.ndarray,
    truth: list[str],
    everything: bool = False,
) -> dict[str, Any]:
    """Train on what one selector kept."""
    embeddings = table(dataset, plan, "embed")
    decisions = table(dataset, plan, "prune")
    rows = np.stack(embeddings.column("mobile").to_pylist()).astype(np.float32)
    ids = embeddings.column("sample_id").to_numpy()
    kept_ids = decisions.column("sample_id").to_numpy()[decisions.column("keep").to_numpy(zero_copy_only=False)]
    kept = np.ones(len(ids), bool) if everything else np.isin(ids, kept_ids)
    at = (ids & ((1 << 24) - 1))[kept]  # one tar, one part: the row is the place in the pool
    micro, macro = accuracy(rows[kept], [pool[i]["said"] for i in at], test, truth)
    wrong = np.mean([pool[i]["said"] != pool[i]["label_name"] for i in at])
    return {
        "rows": int(kept.sum()),
        "accuracy": round(micro, 4),
        "class_accuracy": round(macro, 4),
        "wrong_labels_kept": round(float(wrong), 4),
    } | covered(pool, at)


def covered(pool: list[dict[str, Any]], kept: np.ndarray) -> dict[str, float]:
    """Return the share of classes with a kept row, and the share kept of the rows of the tail.

    The tail: the smallest classes that together hold 20 % of the rows.
    """
    labels = np.array([r["label_name"] for r in pool])
    names, sizes = np.unique(labels, return_counts=True)
    order = np.argsort(sizes, kind="stable")
    tail = names[order[np.cumsum(sizes[order]) <= 0.2 * len(labels)]]
    chosen = labels[kept]
    return {
        "label_coverage": round(len(np.unique(chosen)) / len(names), 4),
        "tail_coverage": round(float(np.isin(chosen, tail).sum() / np.isin(labels, tail).sum()), 4),
    }


def purity(dataset: Dataset, plan: Plan, pool: list[dict[str, Any]]) -> dict[str, float]:
    """Return the share of rows whose class is the commonest of their cluster."""
    rows = table(dataset, plan, "cluster").to_pylist()
    members: dict[int, list[str]] = defaultdict(list)
    for row in rows:
        members[row["cluster"]].append(pool[row["sample_id"] & ((1 << 24) - 1)]["label_name"])
    right = sum(max(map(names.count, set(names))) for names in members.values())
    return {"purity": round(right / len(rows), 4)}


def summary(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return mean and standard deviation over seeds."""
    groups: dict[tuple[float, str, float], list[dict[str, Any]]] = defaultdict(list)
    for row in rows:
        groups[row["noise"], row["selector"], row["keep"]].append(row)
    found = []
    for (noise, selector, keep), those in groups.items():
        numbers = [k for k, v in those[0].items() if isinstance(v, float) and k not in ("noise", "keep")]
        stats = {k: [round(float(f([t[k] for t in those])), 4) for f in (np.mean, np.std)] for k in numbers}
        found.append({"noise": noise, "selector": selector, "keep": keep, "rows": those[0]["rows"], **stats})
    return found


def main() -> None:
    """Measure everything; print, and write the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path(__file__).parents[3] / "shared" / "data")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--noise", type=float, nargs="+", default=[0.0, 0.15])
    parser.add_argument("--only", choices=["duplicates", "selectors"])
    parser.add_argument("--json", type=Path)
    words = parser.parse_args()
    weights = words.data / "weights" / "mobilenet_v1_025_224.safetensors"
    if not weights.exists():
        parser.error(f"no {weights}: this experiment needs the shared data")
    result: dict[str, Any] = {"name": "real_data"}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        spine = Spine(folder, weights)
        if words.only != "selectors":
            result["duplicates"] = duplicates(spine, folder, words.data)
        if words.only != "duplicates":
            arms = [
                row
                for noise in words.noise
                for row in selectors(spine, folder, words.data, words.seeds, noise, weights)
            ]
            result["selectors"] = summary(arms)
    print(json.dumps(result, indent=1))
    if words.json:
        words.json.write_text(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
