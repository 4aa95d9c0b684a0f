"""open_clip models: read a configuration without building the model, build it, and a small tokenizer.

Shared by `train`, which writes models, and `embed`, which reads them. A model is described as in open_clip's
`open_clip_config.json` (`model_cfg`, `preprocess_cfg`), with one more key for models that were trained here: `words`,
the vocabulary. Importing this module, and reading a configuration, imports neither torch nor open_clip (which takes
seconds).
"""

import ast
import json
import logging
import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from catalog.errors import RecipeError, nearest

if TYPE_CHECKING:
    import torch

FOLDER_CONFIG: Final = "open_clip_config.json"
"""The file that makes a folder a model, for open_clip (its `local-dir:`)."""
BPE_WORDS: Final = 49408
"""Vocabulary size of CLIP's tokenizer."""

ModelConfig = dict[str, Any]
"""`embed_dim`, `vision_cfg`, `text_cfg`, and other arguments of open_clip's model classes."""


def read_config(model: str) -> ModelConfig:
    """Return the configuration of an open_clip model name, of a JSON file, or of a folder that open_clip saved.

    Raises RecipeError if the model does not exist, or the file is not a CLIP configuration.
    """
    path = config_file(model)
    if path is None:
        raise RecipeError(f"no model {model!r} in open_clip, and no such file{nearest(model, builtin_models())}")
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise RecipeError(f"{path} is not a model configuration: {error}") from error
    config = found.get("model_cfg", found) if isinstance(found, dict) else None
    return check_config(config, str(path))


def check_config(config: object, where: str) -> ModelConfig:
    """Return `config` if it has the keys of a CLIP configuration. Raises RecipeError."""
    wanted = ("embed_dim", "vision_cfg", "text_cfg")
    missing = [key for key in wanted if not isinstance(config, dict) or key not in config]
    if missing or not isinstance(config, dict):
        raise RecipeError(f"{where} is not a CLIP configuration: it lacks {', '.join(missing)}")
    return config


def config_file(model: str) -> Path | None:
    """Return the JSON file that describes a model, or None if there is none."""
    path = Path(model)
    if path.suffix == ".json":
        return path if path.is_file() else None
    if path.is_dir():
        return path / FOLDER_CONFIG
    builtin = _package() / "model_configs" / f"{model.replace('/', '-')}.json"
    return builtin if builtin.is_file() else None


def builtin_models() -> list[str]:
    """Return the names of open_clip's models, sorted."""
    return sorted(path.stem for path in (_package() / "model_configs").glob("*.json"))


@cache
def pretrained_tags(model: str) -> frozenset[str]:
    """Return the tags of the weights that open_clip offers for a model; empty if they are unknown.

    Read from the source text of `open_clip/pretrained.py`, because importing it imports torch.
    """
    values: dict[str, ast.expr] = {}
    for node in ast.parse((_package() / "pretrained.py").read_text(encoding="utf-8")).body:
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
            values.setdefault(node.targets[0].id, node.value)
    models = values.get("_PRETRAINED")
    if not isinstance(models, ast.Dict):
        return frozenset()
    wanted = model.replace("/", "-").removesuffix("-quickgelu")  # open_clip lists these under both names
    for key, value in zip(models.keys, models.values, strict=True):
        if isinstance(key, ast.Constant) and key.value == wanted:
            tags = values.get(value.id) if isinstance(value, ast.Name) else value  # a variable, or dict(tag=...)
            return (
                frozenset(word.arg for word in tags.keywords if word.arg) if isinstance(tags, ast.Call) else frozenset()
            )
    return frozenset()


def _package() -> Path:
    spec = find_spec("open_clip")
    if spec is None or spec.origin is None:
        raise RecipeError("open_clip is not installed: pip install open-clip-torch")
    return Path(spec.origin).parent


def build(config: ModelConfig, preprocess: dict[str, Any] | None = None, **options: Any) -> "torch.nn.Module":
    """Return open_clip's model of a configuration, with random weights from torch's global generator.

    `options` are passed to `open_clip.create_model` (`precision`, `device`, ...). `preprocess` overrides open_clip's
    defaults, and is stored in the model (`model.visual.preprocess_cfg`).
    """
    import open_clip

    with TemporaryDirectory(prefix="clip-") as folder:
        described = {"model_cfg": config, "preprocess_cfg": preprocess or {}}
        (Path(folder) / FOLDER_CONFIG).write_text(json.dumps(described), encoding="utf-8")
        with _quiet():
            model: torch.nn.Module = open_clip.create_model(f"local-dir:{folder}", pretrained_text=False, **options)
    return model


@contextmanager
def _quiet() -> Iterator[None]:
    """Suppress open_clip's warning, on the root logger, that the weights are random, which is intended here."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(before)


class WordTokenizer:
    """A word-level tokenizer, for models that are trained here on a small vocabulary.

    0 is padding; 1..n are the words; n + 1 is any other word, n + 2 begins a caption, n + 3 ends it (the largest
    number, because open_clip's text tower takes the caption's vector there).
    Words are runs of letters and digits, in lower case, after NFKC normalisation.
    """

    def __init__(self, words: Sequence[str], context_length: int) -> None:
        self.words = list(words)
        self.context_length = context_length
        self.vocab_size = len(self.words) + 4
        self._number = {word: number for number, word in enumerate(self.words, start=1)}

    @classmethod
    def of(cls, captions: Iterable[str], limit: int, context_length: int, at_least: int = 2) -> "WordTokenizer":
        """Build a tokenizer of the `limit` most frequent words that occur `at_least` times; ties alphabetically."""
        counts = Counter(word for caption in captions for word in _split(caption))
        ranked = sorted((-count, word) for word, count in counts.items() if count >= at_least)
        return cls([word for _, word in ranked[:limit]], context_length)

    def numbers(self, captions: Sequence[str]) -> np.ndarray:
        """Return int32 (len(captions), context_length); longer captions are truncated, and keep the end token."""
        other, begin, end = self.vocab_size - 3, self.vocab_size - 2, self.vocab_size - 1
        out = np.zeros((len(captions), self.context_length), np.int32)
        for row, caption in zip(out, captions, strict=True):
            words = [self._number.get(word, other) for word in _split(caption)[: self.context_length - 2]]
            row[: len(words) + 2] = [begin, *words, end]
        return out

    def __call__(self, captions: Sequence[str]) -> "torch.Tensor":
        """Tokenize as open_clip's tokenizers do: int64 (len(captions), context_length)."""
        import torch

        return torch.from_numpy(self.numbers(captions).astype(np.int64))


def _split(caption: str) -> list[str]:
    return re.findall(r"\w+", unicodedata.normalize("NFKC", caption).lower())
