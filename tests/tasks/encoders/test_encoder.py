"""The configuration of an encoder is checked before anything is loaded."""

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from pydantic import ValidationError

from catalog.errors import RecipeError
from catalog.schema import vector
from tasks.encoders.encoder import Encoder, encoder_of
from tasks.train import TrainClip

TRAINED = {"models": TrainClip(model_name="small-clip").output({})}


@pytest.mark.parametrize(
    ("said", "message"),
    [
        ({"model": "ViT-B-33", "pretrained": "openai"}, "no model 'ViT-B-33' in open_clip.*did you mean 'ViT-B-32'"),
        ({"model": "ViT-B-32", "pretrained": "laion2b_s34b_b79"}, "did you mean 'laion2b_s34b_b79k'"),
        ({"model": "ViT-B-32"}, "specify `pretrained`, the weights of ViT-B-32; there is: .*openai"),
        ({"model": "nowhere/clip.json", "pretrained": "random"}, "no such file"),
        ({"model": "hf-hub:org/repo"}, "specify `dim`"),
        ({"trained": "small_clip"}, "no earlier stage trains 'small_clip'; did you mean 'small-clip'"),
    ],
)
def test_wrong_names_get_the_nearest_right_one(said: dict[str, Any], message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        Encoder(name="clip", **said).check(TRAINED)


@pytest.mark.parametrize(
    ("said", "message"),
    [
        ({}, "specify either `model` or `trained`"),
        ({"model": "ViT-B-32", "trained": "small-clip"}, "specify either `model` or `trained`"),
        ({"trained": "small-clip", "pretrained": "openai"}, "`pretrained` requires `model`"),
        ({"model": "ViT-B-32", "pretrained": "openai", "dim": 3}, "`dim` is for hf-hub"),
        ({"model": "ViT-B-32", "weights": "openai"}, "Extra inputs"),
    ],
)
def test_contradictions_are_refused(said: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        Encoder(name="clip", **said)


@pytest.mark.parametrize("name", ["Clip", "a-b", "1st", ""])
def test_names_are_column_names(name: str) -> None:
    with pytest.raises(ValidationError, match=r"name\n  String should match pattern"):
        Encoder(name=name, model="ViT-B-32", pretrained="openai")


@pytest.mark.parametrize(
    ("said", "dim"),
    [
        ({"model": "ViT-B-32", "pretrained": "laion2b_s34b_b79k"}, 512),
        ({"model": "ViT-L-14", "pretrained": "openai"}, 768),
        ({"model": "ViT-L-14-quickgelu", "pretrained": "dfn2b"}, 768),
        ({"model": "ViT-B-16-SigLIP", "pretrained": "webli"}, 768),
        ({"model": "hf-hub:org/repo", "dim": 640}, 640),
        ({"trained": "small-clip"}, 64),
    ],
)
def test_the_length_of_vectors_is_known_before_loading(said: dict[str, Any], dim: int) -> None:
    assert Encoder(name="clip", **said).check(TRAINED) == dim


def test_files_that_are_not_a_configuration(tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    path.write_text("{nonsense")
    with pytest.raises(RecipeError, match="is not a model configuration"):
        Encoder(name="clip", model=str(path), pretrained="random").check({})
    path.write_text(json.dumps({"embed_dim": 4, "vision_cfg": {}}))
    with pytest.raises(RecipeError, match="lacks text_cfg"):
        Encoder(name="clip", model=str(path), pretrained="random").check({})


def test_a_small_vocabulary_requires_its_tokenizer() -> None:
    model = str(Path(__file__).parents[3] / "configs/models/tiny_vit.json")
    with pytest.raises(RecipeError, match="4100 tokens, CLIP's tokenizer 49408"):
        Encoder(name="clip", model=model, pretrained="random").check({})
    assert Encoder(name="clip", model=model, pretrained="random", text=False).check({}) == 64


def test_a_model_that_no_stage_trains() -> None:
    with pytest.raises(RecipeError, match="no earlier stage trains 'small-clip'; there is none"):
        Encoder(name="clip", trained="small-clip").check({})


def test_a_column_records_its_encoder(tiny_clip: tuple[Path, Path]) -> None:
    encoder = Encoder(name="clip", model=str(tiny_clip[0]), pretrained=str(tiny_clip[1]))
    schema = pa.schema(encoder.fields({}))
    assert encoder_of(schema, "clip") == encoder_of(schema, "clip_text") == encoder
    with pytest.raises(RecipeError, match="did you mean"):
        encoder_of(schema, "clap")
    with pytest.raises(RecipeError, match="run `embed` again"):
        encoder_of(pa.schema([vector("old", 2, "")]), "old")
