"""`train_clip`: a small CLIP, trained on the recipe's own image-caption pairs.

It is for corpora for which no pretrained model is permitted or available, and for the demo: thousands of pairs, minutes
on a CPU. It is not for training a large CLIP: it runs in one process, on one device.

The order of an epoch and the views of a batch are functions of the seed and the step. So a training run that was killed
resumes from its checkpoint and ends with the same weights, bit for bit, on the same machine with the same number of
threads (another number of threads sums in another order).

Source: CLIP, Radford et al., ICML 2021, arXiv:2103.00020, sections 2.3 to 2.5.
"""

import hashlib
import json
import math
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Final, Literal, Self

import numpy as np
import pyarrow as pa
from pydantic import Field

from catalog.errors import RecipeError, UserError, nearest
from catalog.inputs import Inputs
from catalog.schema import MODELS
from tasks.encoders.open_clip_config import ModelConfig, WordTokenizer, build, check_config, read_config
from tasks.encoders.torchvision_on_cpu import ensure_torchvision
from tasks.stage import Batches, Columns, Resources, Run, Size, Tables, TableStage
from tasks.train._pairs import Pairs, read_pairs
from tasks.vectors.seeds import derived_seed

if TYPE_CHECKING:
    import torch

SMALL_CLIP: Final = Path(__file__).parent / "small_clip.json"
"""A ResNet of 1.3 million weights on 64 x 64 pixels: of the small vision towers tried, the best per CPU time."""
MARGIN: Final = 9 / 8
"""Pictures are stored this much larger than the model's input, so that crops lose little resolution."""
MAX_SCALE: Final = 100.0
"""CLIP's limit of the logit scale."""
TRAINING_WORK: Final = 3
"""Time to train on a picture relative to decoding it (SMALL_CLIP, one core: 8.8 ms and 2.9 ms)."""
LOSS_EVERY: Final = 10
"""Steps between two points of the loss curve."""


class TrainClip(TableStage):
    """Train a small CLIP. Writes one row of `models`: safetensors weights, and the configuration of the model.

    Rows without a caption or a decodable image are skipped, and counted. Raises UserError if fewer than two pairs
    remain.
    """

    table: ClassVar[str] = "models"
    rows_per_sample = "none"
    grows_with = "steps"
    seeded: ClassVar[bool] = True

    use: Literal["train_clip"] = "train_clip"
    model_name: str = Field("small-clip", min_length=1, description="its name for later stages (`trained: small-clip`)")
    config: str | dict[str, Any] | None = Field(
        None, description="an open_clip configuration: a model name, a JSON file, or inline; default: a small ResNet"
    )
    steps: int = Field(100, gt=0, description="batches to train on")
    batch_size: int = Field(128, gt=1)
    learning_rate: float = Field(2e-3, gt=0, description="AdamW's maximum")
    warmup: float = Field(0.1, ge=0, lt=1, description="share of the steps with a linearly rising rate; then a cosine")
    weight_decay: float = Field(0.1, ge=0)
    vocabulary: int = Field(4096, gt=0, description="words of the tokenizer, the most frequent ones")
    checkpoint_every_s: float = Field(30, ge=0, description="seconds between two checkpoints; 0: every step")
    licence: str = Field("unknown: trained on the recipe's own samples", description="of the weights")
    resources: Resources = Resources(gpus="auto")

    def inputs(self, available: Tables) -> Columns:
        """Return the image and the caption."""
        for table in ("images", "source"):
            if table not in available:
                raise RecipeError(f"train_clip needs the table {table!r}{nearest(table, available)}")
        self._described()
        return {"images": ("image",), "source": ("caption",)}

    def output(self, available: Tables) -> pa.Schema:
        """Return MODELS; the metadata of `weights` has the model's name and `embed_dim`, for later stages."""
        at = MODELS.get_field_index("weights")
        known = MODELS.field(at).metadata | {
            b"model": self.model_name,
            b"embed_dim": str(self._described()["embed_dim"]),
        }
        return MODELS.set(at, MODELS.field(at).with_metadata(known))

    def parameters(self) -> dict[str, Any]:
        """Return the fields, with the configuration by content, without the checkpoint interval."""
        return super().parameters() | {"config": self._described(), "checkpoint_every_s": None}

    def work(self, size: Size) -> float:
        """Return the pictures that are decoded, and those of all batches; a batch is no larger than the rows."""
        return size.rows + self.steps * min(self.batch_size, size.rows) * TRAINING_WORK

    def reduced(self, rows: int, of: int) -> Self:
        """Return the stage with as large a share of the steps as the probe has of the rows."""
        return self.model_copy(update={"steps": max(1, round(self.steps * rows / of))})

    def run(self, inputs: Inputs, run: Run) -> Batches:
        """Train, and yield one row."""
        threads = max(1, min(int(self.resources.cpus), os.cpu_count() or 1))
        described = self._described()
        pairs = read_pairs(inputs, run.scratch, round(MARGIN * _image_side(described)), threads)
        if len(pairs) < 2:
            raise UserError(f"train_clip: {len(pairs)} usable image-caption pairs, at least 2 are needed")
        text = described["text_cfg"]
        tokenizer = WordTokenizer.of(pairs.captions, self.vocabulary, text.get("context_length", 77))
        config = described | {"text_cfg": text | {"vocab_size": tokenizer.vocab_size}}
        ensure_torchvision()
        with _deterministic(threads):
            training = _Training(self, config, tokenizer, pairs, run)
            training.finish()
        run.note(pairs=len(pairs), skipped=pairs.skipped, words=len(tokenizer.words), loss=training.losses[-1])
        yield self._row(training, tokenizer, pairs)

    def _described(self) -> ModelConfig:
        if isinstance(self.config, dict):
            return check_config(self.config, "train_clip's config")
        return read_config(str(SMALL_CLIP) if self.config is None else self.config)

    def _row(self, training: "_Training", tokenizer: WordTokenizer, pairs: Pairs) -> pa.Table:
        from safetensors.torch import save

        weights = save({name: tensor.cpu().contiguous() for name, tensor in training.model.state_dict().items()})
        config = {"model_cfg": training.config, "preprocess_cfg": training.preprocess, "words": tokenizer.words}
        row = {
            "name": self.model_name,
            "family": "open_clip",
            "config": json.dumps(config, ensure_ascii=False, sort_keys=True),
            "sha256": hashlib.sha256(weights).hexdigest(),
            "weights": weights,
            "licence": self.licence,
            "trained_on": json.dumps({"tables": ["images", "source"], "pairs": len(pairs), "skipped": pairs.skipped}),
            "metrics": json.dumps({"steps": self.steps, "loss_every_steps": LOSS_EVERY, "loss": training.losses}),
        }
        return pa.Table.from_pylist([row], schema=self.output({}))


def _image_side(config: ModelConfig) -> int:
    size = config["vision_cfg"].get("image_size", 224)
    return int(size if isinstance(size, int) else max(size))


@contextmanager
def _deterministic(threads: int) -> Iterator[None]:
    """Set a fixed number of threads and deterministic algorithms of torch; restore the settings afterwards."""
    import torch

    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # read when CUDA starts; products differ without it
    before = torch.get_num_threads(), torch.are_deterministic_algorithms_enabled()
    torch.set_num_threads(threads)
    torch.use_deterministic_algorithms(True)
    try:
        with torch.random.fork_rng():
            yield
    finally:
        torch.set_num_threads(before[0])
        torch.use_deterministic_algorithms(before[1])


@dataclass
class _Training:
    """The state of a training run, with its checkpoints and steps."""

    stage: TrainClip
    config: ModelConfig
    tokenizer: WordTokenizer
    pairs: Pairs
    run: Run
    losses: list[float] = field(default_factory=list)
    done: int = 0

    def __post_init__(self) -> None:
        import torch

        self.side_px = _image_side(self.config)
        self.preprocess = {"size": self.side_px, "resize_mode": "squash", "interpolation": "bicubic"}
        torch.manual_seed(self.run.seed)
        self.model = build(self.config, self.preprocess, device=self.run.device, output_dict=True).train()
        self._layout = torch.channels_last if self.run.device == "cpu" else torch.contiguous_format
        visual: Any = self.model.visual
        visual.to(memory_format=self._layout)  # convolutions on a CPU: a third cheaper
        self._mean = torch.tensor(visual.preprocess_cfg["mean"], device=self.run.device).view(1, 3, 1, 1)
        self._std = torch.tensor(visual.preprocess_cfg["std"], device=self.run.device).view(1, 3, 1, 1)
        matrices = [p for p in self.model.parameters() if p.ndim >= 2]
        others = [p for p in self.model.parameters() if p.ndim < 2]  # gains, biases, the logit scale: no decay
        groups = [
            {"params": matrices, "weight_decay": self.stage.weight_decay},
            {"params": others, "weight_decay": 0.0},
        ]
        self.optimizer = torch.optim.AdamW(groups, lr=self.stage.learning_rate, betas=(0.9, 0.98))
        self._tokens = self.tokenizer.numbers(self.pairs.captions)
        self._caption_ids = np.unique(self._tokens, axis=0, return_inverse=True)[1].reshape(-1)

    def finish(self) -> None:
        """Resume from the last checkpoint, if there is one, and train to the last step."""
        self._resume()
        saved_at = time.monotonic()
        while self.done < self.stage.steps:
            self._step()
            self.run.progress(self.done, self.stage.steps, "steps")
            if time.monotonic() - saved_at >= self.stage.checkpoint_every_s and self.done < self.stage.steps:
                self._save()
                saved_at = time.monotonic()

    def _step(self) -> None:
        import torch
        from torch.nn.functional import normalize

        from tasks.train._contrastive import contrastive_loss

        for group in self.optimizer.param_groups:
            group["lr"] = self.stage.learning_rate * learning_rate_at(self.done, self.stage.steps, self.stage.warmup)
        torch.manual_seed(derived_seed(self.run.seed, self.done))  # for dropout, where a configuration has it
        views, tokens, caption_ids = self._batch()
        model: Any = self.model
        images = normalize(model.encode_image(views), dim=1)
        texts = normalize(model.encode_text(tokens), dim=1)
        loss = contrastive_loss(images, texts, model.logit_scale.exp(), caption_ids)
        self.optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()
        with torch.no_grad():
            model.logit_scale.clamp_(0, math.log(MAX_SCALE))
        if self.done % LOSS_EVERY == 0 or self.done == self.stage.steps - 1:
            self.losses.append(round(loss.item(), 6))
        self.done += 1

    def _batch(self) -> "tuple[torch.Tensor, torch.Tensor, torch.Tensor]":
        """Return views float32 (b, 3, side, side), tokens int64 (b, context) and caption ids int64 (b,) of a step."""
        import torch

        from tasks.train._augment import random_views

        rows = batch_rows(len(self.pairs), self.stage.batch_size, self.done, self.run.seed)
        device = self.run.device
        pictures = torch.from_numpy(np.ascontiguousarray(self.pairs.pictures[rows])).to(device).permute(0, 3, 1, 2)
        chance = torch.Generator().manual_seed(derived_seed(self.run.seed, self.done))
        views = (random_views(pictures, self.side_px, chance) - self._mean) / self._std
        tokens = torch.from_numpy(self._tokens[rows].astype(np.int64)).to(device)
        caption_ids = torch.from_numpy(self._caption_ids[rows].astype(np.int64)).to(device)
        return views.contiguous(memory_format=self._layout), tokens, caption_ids

    def _save(self) -> None:
        import torch

        path = self.run.checkpoints / "training.pt"
        temporary = path.with_suffix(".tmp")
        state = {"done": self.done, "losses": self.losses}
        with temporary.open("wb") as file:
            torch.save(state | {"model": self.model.state_dict(), "optimizer": self.optimizer.state_dict()}, file)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)

    def _resume(self) -> None:
        import torch

        path = self.run.checkpoints / "training.pt"
        if not path.exists():
            return
        state = torch.load(path, map_location=self.run.device, weights_only=True)
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.done, self.losses = state["done"], state["losses"]


def learning_rate_at(step: int, steps: int, warmup: float) -> float:
    """Return the share of the highest rate at a step: linear to 1 over `warmup` of the steps, then a cosine to 0."""
    rising = max(1, round(warmup * steps))
    if step < rising:
        return (step + 1) / rising
    return 0.5 + 0.5 * math.cos(math.pi * (step - rising) / max(1, steps - rising))


def batch_rows(rows: int, batch_size: int, step: int, seed: int) -> np.ndarray:
    """Return the rows of one step, int64: every epoch is a new permutation, split into batches; the rest is dropped."""
    size = min(batch_size, rows)
    epoch, place = divmod(step, rows // size)
    order = np.random.default_rng([seed & 0xFFFFFFFFFFFFFFFF, epoch]).permutation(rows)
    return order[place * size : (place + 1) * size]
