"""Weights of small models: from a local file, or fetched once from a URL and verified by their digest.

A recipe specifies `weights:` (a path or an http(s) URL) and `sha256:`, which a URL requires. Fetched files are cached
in `$XDG_CACHE_HOME/espalier/weights` (default `~/.cache/espalier/weights`), named by their digest. The bytes are
hashed each time that they are read, before they are used. Nothing here unpickles code: safetensors, NumPy arrays
without objects, and torch files with `weights_only=True`.
"""

import hashlib
import io
import os
import re
import tempfile
from collections.abc import Iterator, Mapping
from http.client import HTTPException
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, Final
from urllib.error import URLError
from urllib.parse import urlsplit
from urllib.request import Request, urlopen

from pydantic import Field, model_validator

from catalog.errors import RecipeError, UserError, nearest
from catalog.user_file import NOT_THERE, unreadable
from tasks.files.cache import cache_folder
from tasks.files.digest import digest_of
from tasks.stage import Config

if TYPE_CHECKING:
    import torch

State = dict[str, "torch.Tensor"]
"""Tensors on the CPU, by their names in the file; a NumPy file has one, named `array`."""

MAX_BYTES: Final = 2 << 30
"""The largest file that is read or fetched: these are heads and small networks."""
TIMEOUT_S: Final = 60.0
"""How long a server may be silent."""
_PIECE_BYTES: Final = 1 << 20
_DIGEST: Final = re.compile(r"[0-9a-f]{64}")
_WRAPPERS: Final = ("state_dict", "weights", "model")
"""Keys under which published torch files nest the tensors."""


class Weights(Config):
    """The base of configurations with weights."""

    weights: str = Field(min_length=1, description="a local file, or an http(s) URL, which needs sha256")
    sha256: str | None = Field(None, description="hex digest of the file, verified on every read")

    @model_validator(mode="after")
    def _digest_is_there(self) -> "Weights":
        if self.sha256 is not None and not _DIGEST.fullmatch(self.sha256):
            raise ValueError(f"`sha256` is 64 lower-case hex digits, not {self.sha256!r}")
        if is_url(self.weights) and self.sha256 is None:
            raise ValueError(f"weights from a URL need `sha256`: {self.weights}")
        return self

    def check_weights(self) -> None:
        """Raise RecipeError if a local file does not exist, or a URL has another scheme. Fetches and loads nothing."""
        scheme = urlsplit(self.weights).scheme
        if is_url(self.weights) or (why := unreadable(self.weights)) is None:
            return
        if why != NOT_THERE:
            raise RecipeError(f"weights {self.weights!r} cannot be read: {why}")
        if len(scheme) > 1:  # one letter is a drive of Windows
            raise RecipeError(f"weights {self.weights!r}: expected a local file or an http(s) URL, found {scheme}://")
        beside = [str(path) for path in sorted(Path(self.weights).parent.glob("*")) if path.is_file()]
        raise RecipeError(f"weights {self.weights!r}: no such file{nearest(self.weights, beside[:50])}")

    def digest(self) -> str:
        """Return the identity of the weights in a fingerprint: `sha256:...` of their content, not of their location.

        Raises RecipeError if a local file does not exist. Fetches nothing.
        """
        if self.sha256 is not None:
            return f"sha256:{self.sha256}"
        self.check_weights()
        return f"sha256:{digest_of(Path(self.weights))}"

    def read(self, max_bytes: int = MAX_BYTES) -> State:
        """Return the tensors. Raises UserError, with one line: missing, too large, wrong digest, not weights."""
        return parse(read_bytes(self.weights, self.sha256, max_bytes), self.weights)


def is_url(reference: str) -> bool:
    """Return whether weights are fetched over the network."""
    return urlsplit(reference).scheme.lower() in ("http", "https")


def read_bytes(reference: str, sha256: str | None, max_bytes: int = MAX_BYTES) -> bytes:
    """Return the verified content of a local file, or of a URL, which is fetched unless it is cached.

    A cached file whose digest is wrong is fetched again. Raises UserError.
    """
    if not is_url(reference):
        return _verified(_read_file(Path(reference), max_bytes), sha256, reference)
    if sha256 is None:
        raise UserError(f"weights from a URL need `sha256`: {reference}")
    cached = cache_folder("weights") / sha256
    if cached.is_file():
        data = _read_file(cached, max_bytes)
        if hashlib.sha256(data).hexdigest() == sha256:
            return data
    try:
        _fetch(reference, sha256, cached, max_bytes)
    except OSError as error:
        raise UserError(f"weights {reference}: cannot write {cached.parent}: {error.strerror or error}") from error
    return _verified(_read_file(cached, max_bytes), sha256, reference)


def _read_file(path: Path, max_bytes: int) -> bytes:
    try:
        size = path.stat().st_size
        if size > max_bytes:
            raise UserError(f"weights {path}: {size:,} bytes, more than the {max_bytes:,} that are read")
        return path.read_bytes()
    except OSError as error:
        raise UserError(f"weights {path}: cannot be read: {error.strerror or error}") from error


def _verified(data: bytes, sha256: str | None, reference: str) -> bytes:
    if sha256 is not None and (found := hashlib.sha256(data).hexdigest()) != sha256:
        raise UserError(f"weights {reference}: found sha256 {found}, expected {sha256}")
    return data


def _fetch(url: str, sha256: str, target: Path, max_bytes: int) -> None:
    """Fetch to a temporary name, verify, rename: other processes see the whole file or none."""
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile(dir=target.parent, prefix=".fetch-", delete=False) as file:
        temporary = Path(file.name)
        try:
            found = hashlib.sha256()
            for piece in _download(url, max_bytes):
                found.update(piece)
                file.write(piece)
            file.flush()
            os.fsync(file.fileno())
            if found.hexdigest() != sha256:
                raise UserError(f"weights {url}: found sha256 {found.hexdigest()}, expected {sha256}")
            temporary.replace(target)
        finally:
            temporary.unlink(missing_ok=True)


def _download(url: str, max_bytes: int) -> Iterator[bytes]:
    seen = 0
    try:
        with urlopen(Request(url, headers={"User-Agent": "espalier"}), timeout=TIMEOUT_S) as answer:  # noqa: S310  # is_url
            expected = int(answer.headers.get("Content-Length") or 0)
            while seen <= max_bytes and expected <= max_bytes and (piece := answer.read(_PIECE_BYTES)):
                seen += len(piece)
                yield piece
    except (URLError, HTTPException, OSError, ValueError) as error:  # HTTPError is a URLError, a timeout an OSError
        raise UserError(f"weights {url}: cannot be fetched: {' '.join(str(error).split())}") from error
    if max(seen, expected) > max_bytes:
        raise UserError(f"weights {url}: more than the {max_bytes:,} bytes that are fetched")
    if seen < expected:
        raise UserError(f"weights {url}: the answer ended after {seen:,} of {expected:,} bytes")


def parse(data: bytes, name: str) -> State:
    """Return the tensors of a safetensors, torch or NumPy file, recognised by content. Raises UserError.

    A torch file is a state dict, or holds one under `state_dict`, `weights` or `model`.
    """
    try:
        if data.startswith(b"\x93NUMPY"):
            return {"array": _numpy(io.BytesIO(data))}
        if data[8:9] == b"{":
            from safetensors.torch import load

            return dict(load(data))
        return _tensors(_torch(io.BytesIO(data)))
    except Exception as error:  # damaged files cause some fifteen types of errors, also TokenError
        expected = "expected safetensors, a torch state dict of plain tensors, or a NumPy array"
        raise UserError(f"weights {name}: {expected}: {_line(error)}") from error


def _torch(file: BinaryIO) -> Any:
    import torch

    return torch.load(file, map_location="cpu", weights_only=True)


def _numpy(file: BinaryIO) -> "torch.Tensor":
    import numpy as np
    import torch

    return torch.from_numpy(np.load(file, allow_pickle=False))


def _tensors(found: Any) -> State:
    import torch

    for key in _WRAPPERS:
        if isinstance(found, Mapping) and isinstance(found.get(key), Mapping):
            found = found[key]
    if not isinstance(found, Mapping) or not all(isinstance(value, torch.Tensor) for value in found.values()):
        raise ValueError(f"found {type(found).__name__}")
    for key, value in found.items():
        plain = value.layout is torch.strided and value.device.type == "cpu" and not value.is_quantized
        if not isinstance(key, str) or not plain or value.is_complex():
            raise ValueError(f"found {key!r}, {value.dtype} on {value.device}, {value.layout}")
    return dict(found)


def _line(error: Exception) -> str:
    return (" ".join(str(error).split()) or type(error).__name__)[:200]
