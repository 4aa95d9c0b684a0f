"""A loaded encoder: from pictures and captions to float32 vectors. Not normalised."""

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from pickle import UnpicklingError
from typing import TYPE_CHECKING, Any, Final, Literal

import numpy as np
import pyarrow as pa

from catalog.errors import UserError
from tasks.encoders.encoder import RANDOM, Encoder
from tasks.encoders.open_clip_config import WordTokenizer, build, read_config
from tasks.encoders.torchvision_on_cpu import ensure_torchvision

if TYPE_CHECKING:
    import torch
    from PIL.Image import Image

FAST_BFLOAT16: Final = (8, 0)
"""The lowest CUDA compute capability with bfloat16 on tensor cores (Ampere)."""


class Model:
    """An open_clip model with its tokenizer and transform."""

    def __init__(self, model: Any, tokenizer: Any, precision: str, device: str) -> None:
        import open_clip
        import torch
        from open_clip.transform import PreprocessCfg, image_transform_v2

        self._model = model.eval().requires_grad_(False)
        if device == "cpu" and type(model.visual).__name__ == "ModifiedResNet":
            self._model.visual.to(memory_format=torch.channels_last)  # convolutions: a third cheaper
        self._tokenizer = tokenizer
        self._device = device
        self._dtype = open_clip.get_input_dtype(precision) or torch.float32
        preprocess = PreprocessCfg(**model.visual.preprocess_cfg)
        _, height, width = preprocess.input_size
        self.shape = (height, width, 3)
        steps = image_transform_v2(preprocess, is_train=False).transforms
        *self._geometry, _to_tensor, normalise = steps
        self._mean = torch.tensor(normalise.mean, device=device).view(1, 3, 1, 1)
        self._std = torch.tensor(normalise.std, device=device).view(1, 3, 1, 1)

    def prepare(self, picture: "Image") -> np.ndarray:
        """Return uint8 (height, width, 3) at the model's size: open_clip's transform up to its ToTensor.

        The rest of the transform is arithmetic, which `images` does for a whole batch on the device.
        """
        for step in self._geometry:
            picture = step(picture)
        return np.asarray(picture)

    def images(self, prepared: np.ndarray) -> np.ndarray:
        """Return float32 (n, dim) of uint8 (n, height, width, 3)."""
        import torch

        with torch.inference_mode():
            x = torch.from_numpy(prepared).to(self._device, non_blocking=True).permute(0, 3, 1, 2)
            x = x.float().div_(255).sub_(self._mean).div_(self._std)
            return _numpy(self._model.encode_image(x.to(self._dtype)))

    def tokens(self, captions: Sequence[str]) -> "torch.Tensor":
        """Return the captions as int64 (n, context length), on the CPU."""
        tokens: torch.Tensor = self._tokenizer(list(captions))
        return tokens

    def texts(self, tokens: "torch.Tensor") -> np.ndarray:
        """Return float32 (n, dim)."""
        import torch

        with torch.inference_mode():
            return _numpy(self._model.encode_text(tokens.to(self._device)))

    def unit_texts(self, captions: Sequence[str], batch: int = 256) -> np.ndarray:
        """Return float32 (n, dim), rows of length 1; zero for rows without a usable vector."""
        pieces = [captions[start : start + batch] for start in range(0, len(captions), batch)]
        return unit(np.concatenate([self.texts(self.tokens(piece)) for piece in pieces]))[0]

    def unit_images(self, images: Iterable[bytes | None], batch: int = 64) -> tuple[np.ndarray, np.ndarray]:
        """Return (float32 (n, dim) of length 1, bool (n,)) of encoded images; zero and false for rows without a vector.

        Sequential, for a few thousand images; use stage `embed` for more.
        """
        vectors, good = [], []
        for pictures in _batches(images, batch):
            ready = np.zeros((len(pictures), *self.shape), np.uint8)
            decoded = np.array([self._decode(data, into) for data, into in zip(pictures, ready, strict=True)])
            found, usable = unit(self.images(ready), decoded)
            vectors.append(found)
            good.append(usable)
        if not vectors:
            return self.images(np.zeros((1, *self.shape), np.uint8))[:0], np.zeros(0, bool)
        return np.concatenate(vectors), np.concatenate(good)

    def _decode(self, data: bytes | None, into: np.ndarray) -> bool:
        from PIL import Image

        from tasks.images import ImageError, decode

        try:
            into[:] = self.prepare(Image.fromarray(decode(data or b"")))
        except ImageError:
            return False
        return True


def unit(features: np.ndarray, wanted: np.ndarray | None = None) -> tuple[np.ndarray, np.ndarray]:
    """Normalise rows: (float32 (n, d) of length 1 or all zero, bool (n,): wanted, finite and not zero)."""
    length = np.linalg.norm(np.nan_to_num(features, nan=0, posinf=0, neginf=0), axis=1, keepdims=True)
    good = np.isfinite(features).all(axis=1) & np.isfinite(length[:, 0]) & (length[:, 0] > 0)
    if wanted is not None:
        good &= wanted
    scaled = np.divide(features, length, out=np.zeros_like(features), where=good[:, None])
    return scaled, good


def _batches(images: Iterable[bytes | None], size: int) -> Iterator[list[bytes | None]]:
    waiting = iter(images)
    while batch := list(islice(waiting, size)):
        yield batch


def load(encoder: Encoder, device: str, sides: Mapping[str, pa.Table]) -> Model:
    """Load an encoder. Raises UserError, with one line, if its weights cannot be loaded."""
    ensure_torchvision()
    if encoder.trained is not None:
        return _load_trained(encoder, encoder.trained, device, sides["models"])
    from safetensors import SafetensorError

    precision = _precision(encoder.dtype, device)
    try:
        model, tokenizer = _load_named(encoder, precision, device)
    except (RuntimeError, OSError, ValueError, LookupError, EOFError, UnpicklingError, SafetensorError) as error:
        weights = f" with {encoder.pretrained}" if encoder.pretrained else ""
        line = " ".join(str(error).split())[:300]
        raise UserError(f"encoder {encoder.name!r}: cannot load {encoder.model}{weights}: {line}") from error
    return Model(model, tokenizer, precision, device)


def _load_named(encoder: Encoder, precision: str, device: str) -> tuple[Any, Any]:
    import open_clip
    import torch

    name = str(encoder.model)
    weights = None if encoder.pretrained == RANDOM else encoder.pretrained
    options: dict[str, Any] = {"precision": precision, "device": device}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        if name.endswith(".json"):
            config = read_config(name)
            model, tokenizer = build(config, **options), _tokenizer(config["text_cfg"])
        elif Path(name).is_dir():
            name = f"local-dir:{name}"
            model = open_clip.create_model(name, require_pretrained=encoder.pretrained is None, **options)
            tokenizer = open_clip.get_tokenizer(name)
        else:
            return open_clip.create_model(name, pretrained=weights, **options), open_clip.get_tokenizer(name)
    if weights is not None:
        open_clip.load_checkpoint(model, weights)
    return model, tokenizer


def _tokenizer(text: Mapping[str, Any]) -> Any:
    from open_clip.tokenizer import HFTokenizer, SimpleTokenizer

    length = text.get("context_length", 77)
    if text.get("hf_tokenizer_name"):
        return HFTokenizer(text["hf_tokenizer_name"], context_length=length)
    return SimpleTokenizer(context_length=length)


def _load_trained(encoder: Encoder, name: str, device: str, models: pa.Table) -> Model:
    from safetensors.torch import load as load_safetensors

    row = next((row for row in models.to_pylist() if row["name"] == name), None)
    if row is None:
        raise UserError(f"encoder {encoder.name!r}: the models table has no {name!r}")
    config = json.loads(row["config"])
    precision = _precision(encoder.dtype, device)
    model = build(config["model_cfg"], config["preprocess_cfg"], precision=precision, device=device)
    model.load_state_dict(load_safetensors(row["weights"]))
    tokenizer = WordTokenizer(config["words"], config["model_cfg"]["text_cfg"]["context_length"])
    return Model(model, tokenizer, precision, device)


def _precision(dtype: Literal["auto", "float32", "bfloat16"], device: str) -> str:
    """Return open_clip's name of a dtype."""
    if dtype == "auto":
        return "bf16" if fast_at_bfloat16(device) else "fp32"
    return "bf16" if dtype == "bfloat16" else "fp32"


def fast_at_bfloat16(device: str) -> bool:
    """Return whether a device has instructions for bfloat16 products; without them bfloat16 is slower than float32 (2.5
    times on an AVX-512 CPU)."""
    import torch

    if device == "cuda":
        return torch.cuda.get_device_capability() >= FAST_BFLOAT16
    capabilities = torch.cpu.get_capabilities()
    return bool(capabilities.get("avx512_bf16") or capabilities.get("amx_bf16"))


def _numpy(features: "torch.Tensor") -> np.ndarray:
    vectors: np.ndarray = features.float().cpu().numpy()
    return vectors
