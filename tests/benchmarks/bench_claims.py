"""Do the selectors do what their papers say? On web-like pools of real photographs, against random, over seeds.

    python tests/benchmarks/bench_claims.py [--data ../shared/data] [--seeds 3] [--only CLAIM ...] [--json out.json]

Pools are drawn from 20,000 photographs of CIFAR-10 (`web_pools.py`), another one for every seed; everything runs
through the product's stages on the spine. Two learners are trained on what is kept and tested on 5,000 other
photographs, 500 a class: a linear one on the selecting encoder's features (MobileNet, ImageNet), and one on patches,
which knows nothing but the pixels that it is given. Sizes, shares and penalties were settled on other draws of the
same photographs, with the same test; what the methods are shown is what was published, but epsilon.

1. duplicates (SemDeDup): 4,000 photographs and as many near-copies, Zipf. Half of the rows, by meaning, should give
   what all give, and more than half of them at random. Epsilon is the one of a few that leaves nearest to half.
2. density (DBP): 4,000 photographs, 5,000 views of 40 scenes, 2,000 near-copies; deduplicated first. Simple concepts
   should be cut more, and what is left be better than as many rows at random, or the hardest without any balance.
3. crossover (prototypes): half of 300, 1,200, 5,000, 20,000 photographs. Hard ones should win where there are many,
   easy ones where there are few.
4. long_tail (hierarchical): classes of 2,000 down to 40 rows. A balanced sample should be better than a random one.
5. score (DataComp's CLIP filter): a quarter of the captions is of another class; a small CLIP is trained on that very
   pool. The best by its score should be better than as many at random.
"""

import argparse
import json
import sys
import tempfile
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
from pydantic import TypeAdapter

from catalog.schema import SAMPLE_ID, vector
from tasks.cluster import Cluster
from tasks.deduplicate import Deduplicate
from tasks.download import Download
from tasks.embed import Embed
from tasks.prune import AnyPrune
from tasks.stage import Batches, Columns, MapStage, Resources, Stage, Step, Tables
from tasks.train import TrainClip
from tests.benchmarks.bench_real_data import Spine, table, write_tar
from tests.benchmarks.mobilenet import DIM
from tests.benchmarks.web_pools import CLASSES, Learners, Photographs, Pool, copied, mobile, viewed, zipf

CORES = Resources(cpus=1)
PHOTOGRAPHS = 20_000
EPSILONS = (0.1, 0.2, 0.3, 0.4)
SMALL_CLIP = {
    "embed_dim": 64,
    "vision_cfg": {"image_size": 32, "layers": [1, 1, 1, 1], "width": 16, "head_width": 64},
    "text_cfg": {"context_length": 16, "vocab_size": 4100, "width": 64, "heads": 2, "layers": 2, "mlp_ratio": 2.0},
}
"""The small CLIP of `train_clip`, for photographs of 32 pixels."""
NAMES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")


class Vectors(MapStage):
    """Writes `embeddings`: MobileNet's features less a mean that is theirs, not the pool's; length 1.

    Features behind a ReLU are never negative, so that all of them point one way, and cosines say little. Without their
    mean, pictures that have nothing in common are at right angles, as with the encoders of the papers, and a published
    temperature or epsilon means what it means there. The mean of a pool would not do: that of a long tail is nearly its
    head, whose pictures would then look less alike than they are.
    """

    table = "embeddings"
    use: Literal["vectors"] = "vectors"
    weights: str
    mean: str
    """A file with the mean, float32 (d,)."""

    def inputs(self, available: Tables) -> Columns:
        return {"images": ("image",)}

    def output(self, available: Tables) -> pa.Schema:
        return pa.schema([SAMPLE_ID, vector("mobile", DIM, "MobileNet v1 0.25, pooled, centred, length 1")])

    def open(self, device: str, sides: Mapping[str, pa.Table]) -> Step:
        encode, mean = mobile(Path(self.weights)), np.load(self.mean)

        def step(batches: Iterator[pa.Table]) -> Batches:
            rows = pa.concat_tables(batches)
            found = encode(rows.column("image").to_pylist()) - mean
            found /= np.linalg.norm(found, axis=1, keepdims=True)
            values = pa.array(found.astype(np.float16).ravel())
            yield pa.table([rows.column("sample_id"), pa.FixedSizeListArray.from_arrays(values, DIM)], self.output({}))

        return step


class Bench:
    """What all claims need: photographs, a place to run recipes, learners; and `rows`, what was found."""

    def __init__(self, folder: Path, data: Path) -> None:
        self._folder = folder
        self._weights = data / "weights" / "mobilenet_v1_025_224.safetensors"
        self._spine = Spine(folder, self._weights)
        self.photographs = Photographs(data, PHOTOGRAPHS)
        self._learners = Learners(self.photographs, self._weights)
        self._mean = folder / "mean.npy"
        np.save(self._mean, mobile(self._weights)(self.photographs.images[:2000]).mean(0))
        self.rows: list[dict[str, Any]] = []

    def vectors(self) -> list[Stage]:
        vectors = Vectors(weights=str(self._weights), mean=str(self._mean), resources=CORES)
        return [Download(resources=CORES), vectors]

    def written(self, name: str, pool: Pool) -> Path:
        samples = [
            (f"{i:06d}", image, f"a photo of a {NAMES[said]}", NAMES[said])
            for i, (image, said) in enumerate(zip(pool.images, pool.said, strict=True))
        ]
        return write_tar(self._folder / f"{name}.tar", samples)

    def kept(self, tar: Path, stages: list[Stage], seed: int) -> np.ndarray:
        """Return the rows that the last stage keeps: their places in the pool, int64, ascending."""
        dataset, plan = self._spine.run(tar, stages, seed)
        decisions = table(dataset, plan, stages[-1].name)
        ids: np.ndarray = decisions.filter(decisions["keep"])["sample_id"].to_numpy()
        return np.sort(ids & ((1 << 24) - 1))  # one tar, one part: the row is the place in the pool

    def learn(self, claim: str, arm: str, seed: int, pool: Pool, kept: np.ndarray, **facts: Any) -> None:
        """Train on what is kept, and note how well that went."""
        chosen = np.zeros(len(pool), bool)
        chosen[kept] = True
        by_class = self._learners.by_class(pool, chosen)
        row = {"claim": claim, "arm": arm, "seed": seed, "rows": len(kept)} | facts
        self.rows.append(row | {name: float(found.mean()) for name, found in by_class.items()})
        print(self.rows[-1], file=sys.stderr, flush=True)


def prune(method: str, **fields: Any) -> Stage:
    stage: Stage = TypeAdapter(AnyPrune).validate_python(
        {"use": "prune", "method": method, "resources": {"cpus": 1}} | fields
    )
    return stage


def clusters(k: int) -> Cluster:
    return Cluster(k=k, resources=CORES)


def concepts(*levels: int) -> Cluster:
    return Cluster(levels=levels, resources=CORES)


def semantic(epsilon: float) -> Deduplicate:
    return Deduplicate(semantic={"epsilon": epsilon}, resources=CORES)


# ---- the claims


def duplicates(bench: Bench, seed: int) -> None:
    rng = np.random.default_rng([1, seed])
    photos = rng.permutation(PHOTOGRAPHS)[:4000]
    of = photos[zipf(len(photos), 4000, rng)]
    pool = bench.photographs.pool((photos, "photo", None), (of, "copy", bench.photographs.made(of, copied, rng)))
    tar, whole = bench.written(f"duplicates{seed}", pool), np.arange(len(pool))
    learn = partial(bench.learn, "duplicates", seed=seed, pool=pool)
    found = {e: bench.kept(tar, [*bench.vectors(), semantic(e)], seed) for e in EPSILONS}
    epsilon = min(found, key=lambda e: abs(len(found[e]) - len(pool) / 2))
    half = found[epsilon]
    draw = bench.kept(tar, [*bench.vectors(), prune("random", keep_rows=len(half))], seed)
    for arm, kept in (("all", whole), ("random", draw), ("semantic", half), ("photographs alone", whole[:4000])):
        distinct = len(np.unique(pool.origin[kept])) / len(photos)
        learn(arm, kept=kept, keep=0.5, distinct=distinct, epsilon=epsilon)


def density(bench: Bench, seed: int) -> None:
    rng = np.random.default_rng([2, seed])
    drawn = rng.permutation(PHOTOGRAPHS)
    photos, scenes = drawn[:4000], drawn[4000:4040]
    seen, of = scenes[zipf(len(scenes), 5000, rng)], photos[zipf(len(photos), 2000, rng)]
    make = bench.photographs.made
    pool = bench.photographs.pool(
        (photos, "photo", None), (seen, "view", make(seen, viewed, rng)), (of, "copy", make(of, copied, rng))
    )
    tar = bench.written(f"density{seed}", pool)
    before = [*bench.vectors(), semantic(0.15)]
    arms: dict[str, tuple[Cluster, dict[str, Any]]] = {
        "random": (clusters(100), {"method": "random"}),
        "density": (clusters(100), {"method": "density"}),
        "density, any of a cluster": (clusters(100), {"method": "density", "which": "random"}),
        "prototypes, no balance": (clusters(100), {"method": "prototypes", "balance": 0.0}),
        "prototypes": (clusters(100), {"method": "prototypes"}),
        "hierarchical": (concepts(100, 20), {"method": "hierarchical"}),
    }

    def learn(arm: str, kept: np.ndarray, keep: float) -> None:
        views = float((pool.kind[kept] == "view").mean())
        bench.learn("density", arm, seed, pool, kept, keep=keep, views=views)

    learn("all", bench.kept(tar, before, seed), 1.0)
    for keep in (0.2, 0.4):
        for arm, (cluster, fields) in arms.items():
            learn(arm, bench.kept(tar, [*before, cluster, prune(keep=keep, **fields)], seed), keep)


def crossover(bench: Bench, seed: int) -> None:
    drawn = np.random.default_rng([3, seed]).permutation(PHOTOGRAPHS)
    for size in (300, 1200, 5000, 20_000):
        pool = bench.photographs.pool((drawn[:size], "photo", None))
        tar = bench.written(f"crossover{size}_{seed}", pool)
        for arm, fields in (
            ("random", {"method": "random"}),
            ("hard", {"method": "prototypes", "which": "hard"}),
            ("easy", {"method": "prototypes", "which": "easy"}),
        ):
            kept = bench.kept(tar, [*bench.vectors(), clusters(CLASSES), prune(keep=0.5, **fields)], seed)
            bench.learn("crossover", arm, seed, pool, kept, keep=0.5, pool_rows=size)


def long_tail(bench: Bench, seed: int) -> None:
    rng = np.random.default_rng([4, seed])
    sizes = [int(2000 * 50 ** (-place / (CLASSES - 1))) for place in range(CLASSES)]
    order = rng.permutation(CLASSES)
    label = bench.photographs.label
    photos = [rng.permutation(np.flatnonzero(label == name))[:size] for name, size in zip(order, sizes, strict=True)]
    pool = bench.photographs.pool((np.concatenate(photos), "photo", None))
    tar = bench.written(f"tail{seed}", pool)
    arms: dict[str, tuple[Cluster, dict[str, Any]]] = {
        "random": (clusters(200), {"method": "random"}),
        "hierarchical": (concepts(200, 20), {"method": "hierarchical"}),
        "one level": (clusters(200), {"method": "hierarchical"}),
        "density": (clusters(200), {"method": "density"}),
        "prototypes": (clusters(200), {"method": "prototypes"}),
    }

    def learn(arm: str, kept: np.ndarray, keep: float) -> None:
        tail = float(np.isin(pool.label[kept], order[CLASSES // 2 :]).mean())
        bench.learn("long_tail", arm, seed, pool, kept, keep=keep, rows_of_tail=tail)

    learn("all", np.arange(len(pool)), 1.0)
    for keep in (0.2, 0.4):
        for arm, (cluster, fields) in arms.items():
            learn(arm, bench.kept(tar, [*bench.vectors(), cluster, prune(keep=keep, **fields)], seed), keep)


def score(bench: Bench, seed: int) -> None:
    rng = np.random.default_rng([5, seed])
    clean = bench.photographs.pool((rng.permutation(PHOTOGRAPHS)[:6000], "photo", None))
    wrong = rng.random(len(clean)) < 0.25
    other = (clean.label + rng.integers(1, CLASSES, len(clean))) % CLASSES
    pool = Pool(clean.images, clean.label, np.where(wrong, other, clean.label), clean.kind, clean.origin)
    tar = bench.written(f"score{seed}", pool)
    before = [
        Download(resources=CORES),
        TrainClip(config=SMALL_CLIP, steps=300, resources=CORES),
        Embed(encoders=[{"name": "clip", "trained": "small-clip"}], resources=CORES),
    ]

    def learn(arm: str, kept: np.ndarray, keep: float) -> None:
        bench.learn("score", arm, seed, pool, kept, keep=keep, wrong=float(wrong[kept].mean()))

    learn("all", np.arange(len(pool)), 1.0)
    for keep in (0.3, 0.5, 0.7):
        for arm, fields in (("random", {"method": "random"}), ("score", {"method": "score", "column": "clip_score"})):
            learn(arm, bench.kept(tar, [*before, prune(keep=keep, **fields)], seed), keep)


CLAIMS: dict[str, Callable[[Bench, int], None]] = {
    "duplicates": duplicates, "density": density, "crossover": crossover, "long_tail": long_tail, "score": score,
}  # fmt: skip


def summary(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return mean and standard deviation over seeds, and of the difference to random, seed by seed."""
    groups: dict[tuple[Any, ...], list[dict[str, Any]]] = defaultdict(list)
    for row in rows:
        groups[row["claim"], row.get("pool_rows"), row["keep"], row["arm"]].append(row)
    found = []
    for (claim, size, keep, arm), those in groups.items():
        base = groups.get((claim, size, keep, "random"), [])
        numbers = [k for k, v in those[0].items() if isinstance(v, float) and k not in ("keep", "epsilon")]
        entry: dict[str, Any] = {
            k: those[0][k] for k in ("claim", "arm", "keep", "pool_rows", "epsilon") if k in those[0]
        }
        entry |= {"rows": round(float(np.mean([t["rows"] for t in those])))}
        entry |= {k: _spread([t[k] for t in those]) for k in numbers}
        if arm != "random" and base:
            for learner in ("mobile", "patches"):
                gains = [t[learner] - b[learner] for t, b in zip(those, base, strict=True)]
                entry[f"{learner}_over_random"] = [*_spread(gains), sum(gain > 0 for gain in gains)]
        found.append(entry)
    return found


def _spread(values: list[float]) -> list[float]:
    return [round(float(f(values)), 4) for f in (np.mean, np.std)]


def main() -> None:
    """Try every claim; print, and write the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path(__file__).parents[3] / "shared" / "data")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--only", choices=list(CLAIMS), nargs="+", default=list(CLAIMS))
    parser.add_argument("--json", type=Path)
    words = parser.parse_args()
    if not (words.data / "cifar10_jpeg").exists():
        parser.error(f"no {words.data / 'cifar10_jpeg'}: this experiment needs the shared data")
    with tempfile.TemporaryDirectory() as name:
        bench = Bench(Path(name), words.data)
        for claim in words.only:
            for seed in range(words.seeds):
                CLAIMS[claim](bench, seed)
    result = {"name": "claims", "seeds": words.seeds, "found": summary(bench.rows)}
    print(json.dumps(result, indent=1))
    if words.json:
        words.json.write_text(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
