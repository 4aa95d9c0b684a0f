"""A CLIP trained on planted pairs: it learns, it repeats itself, it survives a kill, it skips what is no pair."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from catalog.errors import RecipeError, UserError
from catalog.inputs import Inputs
from catalog.schema import IMAGES, SOURCE
from tasks.embed import Embed
from tasks.stage import Run
from tasks.train import TrainClip
from tasks.train.train_clip import batch_rows, learning_rate_at
from tests.helpers import LocalRun
from tests.pictures import encoded

COLOURS = {"red": (200, 40, 40), "green": (40, 180, 40), "blue": (40, 40, 200), "grey": (128, 128, 128)}
SHAPES = ("disc", "bars", "cross")
TINY = {
    "embed_dim": 16,
    "vision_cfg": {"image_size": 32, "layers": [1, 1, 1, 1], "width": 8, "head_width": 64},
    "text_cfg": {"context_length": 8, "vocab_size": 99, "width": 32, "heads": 2, "layers": 1, "mlp_ratio": 2.0},
}


def drawing(colour: str, shape: str, chance: np.random.Generator) -> np.ndarray:
    """Return one noisy 40 x 40 picture of a coloured shape, uint8."""
    y, x = np.mgrid[-1:1:40j, -1:1:40j] + chance.uniform(-0.2, 0.2, (2, 1, 1))
    inside = {"disc": x**2 + y**2 < 0.4, "bars": np.sin(9 * x) > 0, "cross": np.minimum(abs(x), abs(y)) < 0.2}[shape]
    picture = np.where(inside[..., None], np.array(COLOURS[colour]), 235) + chance.normal(0, 12, (40, 40, 3))
    return picture.clip(0, 255).astype(np.uint8)


def planted(n: int, seed: int, wrong: float = 0.0) -> tuple[Inputs, list[str], np.ndarray]:
    """Return pairs, their captions, and which captions are wrong."""
    chance = np.random.default_rng(seed)
    kinds = [(c, s) for c in COLOURS for s in SHAPES]
    images, captions, is_wrong = [], [], chance.random(n) < wrong
    for i in range(n):
        kind = int(chance.integers(len(kinds)))
        facts = (kind + int(chance.integers(1, len(kinds)))) % len(kinds) if is_wrong[i] else kind
        images.append(encoded(drawing(*kinds[kind], chance), "PNG"))
        captions.append(chance.choice(["a {} {}", "this is a {} {}"]).format(*kinds[facts]))
    return pairs(images, captions), captions, is_wrong


def pairs(images: Sequence[bytes | None], captions: Sequence[str | None]) -> Inputs:
    ids = pa.array(range(len(images)), pa.int64())
    return Inputs.of(
        images=pa.table({"sample_id": ids, "image": pa.array(images, pa.large_binary())}),
        source=pa.table({"sample_id": ids, "caption": pa.array(captions, pa.string())}),
    )


def train(stage: TrainClip, inputs: Inputs, run: Run) -> dict[str, Any]:
    (table,) = stage.run(inputs, run)
    assert table.schema.equals(stage.output({}), check_metadata=True)
    (row,) = table.to_pylist()
    return row | {"table": table}


def scores(stage: TrainClip, models: pa.Table, inputs: Inputs) -> np.ndarray:
    """Return the score of every pair, by the `embed` stage."""
    embed = Embed(encoders=[{"name": "clip", "trained": stage.model_name}])
    available = {"images": IMAGES, "source": SOURCE, "models": stage.output({})}
    assert embed.sides(available) == ("models",)
    step = embed.open("cpu", {"models": models})
    found = pa.concat_tables(step(inputs.batches(embed.inputs(available))))
    assert found.schema.names == embed.output(available).names
    return np.asarray(found["clip_score"])


def auc(good: np.ndarray, bad: np.ndarray) -> float:
    """Return the chance that a good pair scores above a bad one (Mann and Whitney's U, by definition)."""
    return float((good[:, None] > bad[None, :]).mean() + 0.5 * (good[:, None] == bad[None, :]).mean())


@pytest.mark.parametrize("seed", [0, *(pytest.param(seed, marks=pytest.mark.slow) for seed in (1, 2))])
def test_it_learns_which_caption_is_wrong(tmp_path: Path, seed: int) -> None:
    stage = TrainClip(config=TINY, steps=50, batch_size=64, learning_rate=4e-3)
    inputs, _, _ = planted(400, seed)
    row = train(stage, inputs, LocalRun(tmp_path / "trained", seed))
    untrained = train(stage.model_copy(update={"steps": 1}), inputs, LocalRun(tmp_path / "untrained", seed))
    unseen, _, wrong = planted(300, seed + 100, wrong=0.3)
    found, floor = (scores(stage, r["table"], unseen) for r in (row, untrained))
    assert auc(found[~wrong], found[wrong]) > 0.9 > auc(floor[~wrong], floor[wrong])
    losses = json.loads(row["metrics"])["loss"]
    assert losses[-1] < 0.8 * losses[0]


def test_same_seed_same_bytes_other_seed_other_bytes(tmp_path: Path) -> None:
    stage = TrainClip(config=TINY, steps=5, batch_size=16)
    inputs, _, _ = planted(40, 0)
    one, two, other = (
        train(stage, inputs, LocalRun(tmp_path / name, seed))["table"] for name, seed in (("a", 3), ("b", 3), ("c", 4))
    )
    assert one.equals(two)
    assert one["sha256"] != other["sha256"]


class Killed(BaseException):
    """What a kill is to the code that it hits: nothing catches it."""


class KilledRun(LocalRun):
    """Dies when so many steps are done."""

    def __init__(self, folder: Path, at: int) -> None:
        super().__init__(folder, seed=5)
        self.at = at

    def progress(self, done: int, total: int, unit: str = "rows") -> None:
        if done == self.at:
            raise Killed


def test_a_killed_training_ends_with_the_same_weights(tmp_path: Path) -> None:
    stage = TrainClip(config=TINY, steps=14, batch_size=16, checkpoint_every_s=0)
    inputs, _, _ = planted(40, 0)
    whole = train(stage, inputs, LocalRun(tmp_path / "whole", seed=5))
    for at in (4, 11):
        with pytest.raises(Killed):
            train(stage, inputs, KilledRun(tmp_path / "killed", at))
    last = LocalRun(tmp_path / "killed", seed=5)
    again = train(stage, inputs, last)
    assert last.progressed[0][0] == 11  # a kill in step 11 loses that step only
    assert again["table"].equals(whole["table"])


def test_what_is_no_pair_is_left_out_and_counted(tmp_path: Path) -> None:
    chance = np.random.default_rng(0)
    good = [encoded(drawing("red", "disc", chance), "PNG") for _ in range(6)]
    images = [*good, b"junk", None, *good]
    captions = ["red disc"] * 6 + ["fine", "fine", None, "", " \0 ", "a", "猫 🐈", "b\0c"]
    run = LocalRun(tmp_path)
    row = train(TrainClip(config=TINY, steps=2, batch_size=64), pairs(images, captions), run)
    assert run.notes["pairs"] == 9
    assert run.notes["skipped"] == {"undecodable": 2, "no_caption": 3}
    assert json.loads(row["trained_on"])["pairs"] == 9


def test_too_few_pairs(tmp_path: Path) -> None:
    chance = np.random.default_rng(0)
    inputs = pairs([encoded(drawing("red", "disc", chance), "PNG"), b"junk"], ["red disc", "junk"])
    with pytest.raises(UserError, match="1 usable image-caption pairs, at least 2 are needed"):
        train(TrainClip(config=TINY, steps=2), inputs, LocalRun(tmp_path))


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ("nowhere.json", "no model 'nowhere.json' in open_clip, and no such file"),
        ({"embed_dim": 4}, "config is not a CLIP configuration: it lacks vision_cfg, text_cfg"),
        ("ViT-B-33", "did you mean 'ViT-B-32'"),
    ],
)
def test_wrong_configurations_fail_before_anything_runs(config: Any, message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        TrainClip(config=config).inputs({"images": IMAGES, "source": SOURCE})


def test_parameters_hold_the_configuration_and_not_its_place(tmp_path: Path) -> None:
    path = tmp_path / "model.json"
    path.write_text(json.dumps(TINY))
    assert TrainClip(config=str(path)).parameters() == TrainClip(config=TINY, checkpoint_every_s=9).parameters()
    assert TrainClip(config=TINY).parameters() != TrainClip(config=TINY | {"embed_dim": 8}).parameters()


@pytest.mark.parametrize(("rows", "size"), [(10, 3), (12, 4), (5, 64), (2, 2)])
def test_every_epoch_sees_every_row_once_but_for_the_rest(rows: int, size: int) -> None:
    size_now = min(size, rows)
    steps = rows // size_now
    first, second = (
        [batch_rows(rows, size, epoch * steps + step, seed=1) for step in range(steps)] for epoch in (0, 1)
    )
    for epoch in (first, second):
        seen = np.concatenate(epoch)
        assert len(set(seen.tolist())) == len(seen) == steps * size_now
    assert rows < 5 or not np.array_equal(np.concatenate(first), np.concatenate(second))


def test_learning_rate_rises_and_falls() -> None:
    rates = [learning_rate_at(step, 100, 0.1) for step in range(100)]
    assert rates[9] == rates[10] == max(rates) == 1
    assert rates[:10] == sorted(rates[:10])
    assert rates[10:] == sorted(rates[10:], reverse=True)
    assert 0 < rates[-1] < 0.001
