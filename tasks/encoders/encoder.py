"""The configuration of one encoder, and its properties that need no model to be loaded."""

from pathlib import Path
from typing import Any, Final, Literal

import pyarrow as pa
from pydantic import Field, model_validator

from catalog.errors import RecipeError, nearest
from catalog.schema import score, vector
from tasks.encoders.open_clip_config import BPE_WORDS, pretrained_tags, read_config
from tasks.files.digest import digest_of
from tasks.stage import Config, Tables

RANDOM: Final = "random"
"""`pretrained: random` uses seeded random weights: to measure speed, and as a lower bound of quality."""


ENCODER: Final = "encoder"
"""Key of a vector field's metadata: the encoder that made it, as JSON."""


class Encoder(Config):
    """One model: its image vector is column `name`, its caption vector `<name>_text`, their cosine `<name>_score`."""

    name: str = Field(pattern=r"^[a-z][a-z0-9_]*$", description="the column of its vectors")
    model: str | None = Field(
        None, description="an open_clip model name, a JSON configuration, or a folder that open_clip saved"
    )
    pretrained: str | None = Field(None, description="open_clip's tag, a local checkpoint, or `random`")
    trained: str | None = Field(None, description="instead of model: the name of a model that the recipe trains")
    text: bool = Field(True, description="also embed the caption, and score how well it matches")
    dim: int | None = Field(None, gt=0, description="length of the vectors, for `hf-hub:` models only")
    dtype: Literal["auto", "float32", "bfloat16"] = Field(
        "auto", description="auto: bfloat16 on devices with fast bfloat16, else float32"
    )

    @model_validator(mode="after")
    def _one_source(self) -> "Encoder":
        if (self.model is None) == (self.trained is None):
            raise ValueError(f"encoder {self.name!r}: specify either `model` or `trained`")
        if self.pretrained is not None and self.trained is not None:
            raise ValueError(f"encoder {self.name!r}: `pretrained` requires `model`")
        if self.dim is not None and not (self.model or "").startswith("hf-hub:"):
            raise ValueError(f"encoder {self.name!r}: `dim` is for hf-hub: models only; that of others is known")
        return self

    def fields(self, available: Tables) -> list[pa.Field]:
        """Return the columns that it writes. Raises RecipeError if the model or its weights do not exist."""
        label = self.trained or " ".join(Path(word).name for word in (self.model, self.pretrained) if word)
        dim = self.check(available)
        mine = {ENCODER: self.model_dump_json(exclude_defaults=True)}
        found = [vector(self.name, dim, f"image vector of {label}, length 1", **mine)]
        if self.text:
            found.append(vector(f"{self.name}_text", dim, f"caption vector of {label}, length 1", **mine))
            found.append(score(f"{self.name}_score", f"clip:{label}", 1, "cosine of image and caption"))
        return found

    def check(self, available: Tables) -> int:
        """Return the length of its vectors. Raises RecipeError; loads nothing."""
        if self.trained is not None:
            return self._check_trained(self.trained, available)
        assert self.model is not None
        if self.model.startswith("hf-hub:"):
            if self.dim is None:
                raise RecipeError(f"encoder {self.name!r}: specify `dim`, the length of the vectors of {self.model}")
            return self.dim
        config = read_config(self.model)
        self._check_weights(self.model)
        self._check_words(self.model, config)
        return int(config["embed_dim"])

    def _check_trained(self, wanted: str, available: Tables) -> int:
        known = available["models"].field("weights").metadata or {} if "models" in available else {}
        name = known.get(b"model", b"").decode()
        if not name or wanted != name:
            there = [name] if name else []
            raise RecipeError(f"encoder {self.name!r}: no earlier stage trains {wanted!r}{nearest(wanted, there)}")
        return int(known[b"embed_dim"])

    def _check_weights(self, model: str) -> None:
        if Path(model).is_dir():
            return
        if self.pretrained is None:
            raise RecipeError(f"encoder {self.name!r}: specify `pretrained`, the weights of {model}{_offer(model)}")
        tags = pretrained_tags(model)
        tag = self.pretrained.lower().replace("-", "_")  # as open_clip reads them
        if self.pretrained != RANDOM and not Path(self.pretrained).is_file() and tag not in tags:
            raise RecipeError(
                f"encoder {self.name!r}: {self.pretrained!r} is neither a file nor weights of {model}"
                f"{nearest(self.pretrained, tags)}"
            )

    def _check_words(self, model: str, config: dict[str, Any]) -> None:
        text = config["text_cfg"]
        own = any(key in text for key in ("hf_tokenizer_name", "hf_model_name")) or "siglip" in model.lower()
        if self.text and not own and text.get("vocab_size", BPE_WORDS) < BPE_WORDS:
            raise RecipeError(
                f"encoder {self.name!r}: {model} has {text['vocab_size']} tokens, CLIP's tokenizer {BPE_WORDS}: "
                "set `text: false`, or train it with `use: train_clip`, which makes a tokenizer for it"
            )

    def parameters(self) -> dict[str, Any]:
        """Return the parameters that determine its vectors, with local files by content."""
        found = self.settings()
        for key in ("model", "pretrained"):
            if found[key] is not None and found[key] != RANDOM:
                found[key] = _content(found[key])
        return found


def encoder_of(schema: pa.Schema, column: str) -> Encoder:
    """Return the encoder that made a vector column of `embeddings`. Raises RecipeError if its metadata lacks it."""
    if column not in schema.names:
        raise RecipeError(f"no embedding column {column!r}{nearest(column, schema.names)}")
    made = made_by(schema, column)
    if made is None:
        raise RecipeError(f"the metadata of embedding column {column!r} has no encoder: run `embed` again")
    return Encoder.model_validate_json(made)


def made_by(schema: pa.Schema, column: str) -> str | None:
    """Return the encoder that made a vector column, as its metadata has it (JSON); None if it has none."""
    found = (schema.field(column).metadata or {}).get(ENCODER.encode())
    return None if found is None else str(found.decode())


def _offer(model: str) -> str:
    tags = pretrained_tags(model)
    return f"; there is: {', '.join(sorted(tags))}, or a file" if tags else " (a file)"


def _content(reference: str) -> str:
    """Return a local file's or folder's digest, or the reference itself if it is neither."""
    path = Path(reference)
    if path.is_dir():
        return "folder:" + ",".join(f"{p.name}={digest_of(p)}" for p in sorted(path.iterdir()) if p.is_file())
    return f"sha256:{digest_of(path)}" if path.is_file() else reference
