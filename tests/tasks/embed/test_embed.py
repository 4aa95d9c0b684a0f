"""`embed` against a plain open_clip loop, on bad data, and with rows in any batches."""

import json
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from pydantic import ValidationError

from catalog.errors import RecipeError, UserError
from catalog.schema import IMAGES, SOURCE, role
from tasks.embed import Embed
from tests.pictures import encoded, jpeg, picture

AVAILABLE = {"images": IMAGES, "source": SOURCE}
CAPTIONS = ["a red car", "une école à Noël", "猫 🐈 on a mat", "a cat\0with a zero", "", "   ", None, "a " * 500]


def rows(images: Sequence[bytes | None], captions: Sequence[str | None] | None = None) -> pa.Table:
    captions = captions or [f"picture number {i}" for i in range(len(images))]
    image = pa.array(images, pa.large_binary())
    return pa.table({"sample_id": pa.array(range(len(images)), pa.int64()), "image": image, "caption": captions})


def embed(stage: Embed, *batches: pa.Table, device: str = "cpu") -> pa.Table:
    return pa.concat_tables(stage.open(device, {})(iter(batches))).combine_chunks()


def matrix(table: pa.Table, column: str) -> np.ndarray:
    return np.stack(table[column].to_pylist()).astype(np.float32)


def plain_open_clip(config: Path, weights: Path, images: list[bytes], captions: list[str]) -> tuple[Any, Any]:
    """Return unit float32 vectors as in open_clip's README, one image at a time."""
    import io

    import open_clip
    import torch
    from PIL import Image

    open_clip.add_model_config(config)
    model, _, preprocess = open_clip.create_model_and_transforms(config.stem, pretrained=str(weights))
    tokenizer = open_clip.get_tokenizer(config.stem)
    model.eval()
    with torch.no_grad():
        seen = [model.encode_image(preprocess(Image.open(io.BytesIO(b)))[None]) for b in images]
        read = [model.encode_text(tokenizer([caption])) for caption in captions]
    unit = [torch.nn.functional.normalize(torch.cat(x), dim=1).numpy() for x in (seen, read)]
    return unit[0], unit[1]


def test_vectors_are_those_of_a_plain_open_clip_loop(tiny_clip: tuple[Path, Path]) -> None:
    config, weights = tiny_clip
    images = [encoded(picture(40 + 9 * i, 90 - 5 * i, seed=i), "PNG") for i in range(11)]
    captions = [f"picture {i} of a garden" for i in range(11)]
    encoder = {"name": "clip", "model": str(config), "pretrained": str(weights), "dtype": "float32"}
    found = embed(Embed(encoders=[encoder], batch_size=4), rows(images, captions))
    image, text = plain_open_clip(config, weights, images, captions)
    assert found["embed_reason"].null_count == 11
    np.testing.assert_allclose(matrix(found, "clip"), image, atol=5e-4)  # float16 near 0.5 has steps of 5e-4
    np.testing.assert_allclose(matrix(found, "clip_text"), text, atol=5e-4)
    np.testing.assert_allclose(found["clip_score"].to_numpy(), (image * text).sum(1), atol=1e-5)


def test_the_written_schema_is_the_declared_one(tiny_clip: tuple[Path, Path]) -> None:
    config, weights = map(str, tiny_clip)
    stage = Embed(
        encoders=[
            {"name": "one", "model": config, "pretrained": weights},
            {"name": "two", "model": config, "pretrained": "random", "text": False},
        ]
    )
    schema = stage.output(AVAILABLE)
    found = embed(stage, rows([jpeg(seed=i) for i in range(3)]))
    assert schema.names == ["sample_id", "one", "one_text", "one_score", "two", "embed_reason"]
    assert found.cast(schema).num_rows == 3
    assert [role(field) for field in schema] == ["", "vector", "vector", "score", "vector", ""]
    assert not np.allclose(matrix(found, "one"), matrix(found, "two"), atol=0.05)


def test_one_decode_serves_every_encoder(tiny_clip: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    import tasks.images

    calls: list[int] = []
    real = tasks.images.decode
    monkeypatch.setattr(tasks.images, "decode", lambda data: calls.append(1) or real(data))
    config, weights = map(str, tiny_clip)
    encoders = [{"name": name, "model": config, "pretrained": weights} for name in ("a", "b", "c")]
    embed(Embed(encoders=encoders), rows([jpeg(seed=i) for i in range(5)]))
    assert len(calls) == 5


@pytest.mark.parametrize("sizes", [(23,), (1, 22), (7, 7, 9), (4, 0, 4, 15)])
def test_the_batches_of_the_input_change_no_bit(tiny_clip: tuple[Path, Path], sizes: tuple[int, ...]) -> None:
    config, weights = map(str, tiny_clip)
    stage = Embed(encoders=[{"name": "clip", "model": config, "pretrained": weights}], batch_size=5, decode_threads=3)
    table = rows([jpeg(64, 48, seed=i) if i % 6 else b"junk" for i in range(23)])
    starts = np.cumsum((0, *sizes[:-1]))
    pieces = [table.slice(start, size) for start, size in zip(starts, sizes, strict=True)]
    assert embed(stage, *pieces).equals(embed(stage, table))


def test_bad_images_lose_their_vector_and_nothing_else(tiny_clip: tuple[Path, Path]) -> None:
    config, weights = map(str, tiny_clip)
    good = jpeg()
    images = [good, b"", None, b"\xff\xd8\xff nonsense", good[: len(good) // 3], encoded(picture(9, 500), "PNG")]
    stage = Embed(encoders=[{"name": "clip", "model": config, "pretrained": weights}])
    found = embed(stage, rows(images))
    gone = [reason == "undecodable" for reason in found["embed_reason"].to_pylist()]
    assert gone[:4] == [False, True, True, True]
    assert gone[5] is False
    assert found["clip"].is_null().to_pylist() == found["clip_score"].is_null().to_pylist() == gone
    assert found["clip_text"].null_count == 0
    alone = embed(stage, rows([good]))
    np.testing.assert_allclose(matrix(found.slice(0, 1), "clip"), matrix(alone, "clip"), atol=1e-3)


def test_captions_of_any_kind(tiny_clip: tuple[Path, Path]) -> None:
    config, weights = map(str, tiny_clip)
    stage = Embed(encoders=[{"name": "clip", "model": config, "pretrained": weights}])
    found = embed(stage, rows([jpeg()] * len(CAPTIONS), CAPTIONS))
    blank = [caption is None or not caption.strip() for caption in CAPTIONS]
    assert found["clip_text"].is_null().to_pylist() == found["clip_score"].is_null().to_pylist() == blank
    assert found["embed_reason"].null_count == len(CAPTIONS)
    assert found["clip"].null_count == 0


def test_broken_utf8_in_captions_is_replaced(tiny_clip: tuple[Path, Path]) -> None:
    config, weights = map(str, tiny_clip)
    broken = pa.array([b"caf\xe9 table"]).view(pa.string())
    table = pa.table({"sample_id": [0], "image": pa.array([jpeg()], pa.large_binary()), "caption": broken})
    stage = Embed(encoders=[{"name": "clip", "model": config, "pretrained": weights}])
    assert embed(stage, table)["clip_text"].null_count == 0


@pytest.mark.parametrize("tower", ["visual.", "token_embedding"])
def test_weights_that_are_not_finite_give_a_reason(tiny_clip: tuple[Path, Path], tmp_path: Path, tower: str) -> None:
    from safetensors.torch import load_file, save_file

    config, weights = tiny_clip
    state = load_file(weights)
    for name, tensor in state.items():
        if name.startswith(tower):
            tensor.fill_(float("nan"))
    save_file(state, tmp_path / "nan.safetensors")
    encoders = [
        {"name": "sick", "model": str(config), "pretrained": str(tmp_path / "nan.safetensors")},
        {"name": "well", "model": str(config), "pretrained": str(weights)},
    ]
    found = embed(Embed(encoders=encoders), rows([jpeg(), b"junk"]))
    assert found["embed_reason"].to_pylist() == ["not_finite", "undecodable"]
    assert found["sick"].is_null()[0].as_py() is (tower == "visual.")
    assert found["sick_text"].is_null()[0].as_py() is (tower == "token_embedding")
    assert found["sick_score"].null_count == 2
    assert found["well"].null_count == found["well_score"].null_count == 1


def test_errors_of_the_input_are_raised(tiny_clip: tuple[Path, Path]) -> None:
    config, weights = map(str, tiny_clip)

    def broken() -> Iterator[pa.Table]:
        yield rows([jpeg()] * 3)
        raise OSError("disk gone")

    step = Embed(encoders=[{"name": "clip", "model": config, "pretrained": weights}], batch_size=2).open("cpu", {})
    with pytest.raises(OSError, match="disk gone"):
        list(step(broken()))


def test_a_folder_that_open_clip_saved(tiny_clip: tuple[Path, Path], tmp_path: Path) -> None:
    config, weights = tiny_clip
    described = {"model_cfg": json.loads(config.read_text()), "preprocess_cfg": {"mean": [0.4] * 3, "std": [0.2] * 3}}
    (tmp_path / "open_clip_config.json").write_text(json.dumps(described))
    (tmp_path / "open_clip_model.safetensors").write_bytes(weights.read_bytes())
    stage = Embed(encoders=[{"name": "clip", "model": str(tmp_path)}])
    assert stage.output(AVAILABLE).field("clip").type == pa.list_(pa.float16(), 32)
    found = embed(stage, rows([jpeg()]))
    other = embed(Embed(encoders=[{"name": "clip", "model": str(config), "pretrained": str(weights)}]), rows([jpeg()]))
    np.testing.assert_allclose(matrix(found, "clip_text"), matrix(other, "clip_text"), atol=1e-3)
    assert not np.allclose(matrix(found, "clip"), matrix(other, "clip"), atol=1e-2)  # another mean and deviation


def test_bfloat16_is_close_to_float32(tiny_clip: tuple[Path, Path]) -> None:
    config, weights = map(str, tiny_clip)
    encoders = [{"name": d, "model": config, "pretrained": weights, "dtype": d} for d in ("float32", "bfloat16")]
    found = embed(Embed(encoders=encoders), rows([jpeg(seed=i) for i in range(6)]))
    cosine = (matrix(found, "float32") * matrix(found, "bfloat16")).sum(1)
    assert cosine.min() > 0.999
    assert not np.array_equal(matrix(found, "float32"), matrix(found, "bfloat16"))


def test_fingerprint_depends_on_content_and_not_on_path(tiny_clip: tuple[Path, Path], tmp_path: Path) -> None:
    config, weights = tiny_clip
    moved = tmp_path / "elsewhere.safetensors"
    moved.write_bytes(weights.read_bytes())

    def parameters(path: Path, **fields: Any) -> dict[str, Any]:
        encoders = [{"name": "clip", "model": str(config), "pretrained": str(path)}]
        return Embed(encoders=encoders, **fields).parameters()

    assert parameters(moved) == parameters(weights) == parameters(weights, decode_threads=9)
    moved.write_bytes(weights.read_bytes()[:-4] + b"\0\0\0\1")
    assert parameters(moved) != parameters(weights)


def test_unreadable_weights_are_a_one_line_error(tiny_clip: tuple[Path, Path], tmp_path: Path) -> None:
    config, weights = tiny_clip
    for name in ("short.safetensors", "short.pt"):
        short = tmp_path / name
        short.write_bytes(weights.read_bytes()[:1000])
        stage = Embed(encoders=[{"name": "clip", "model": str(config), "pretrained": str(short)}])
        with pytest.raises(UserError, match=rf"encoder 'clip': cannot load .*tiny-clip\.json with .*{name}: "):
            stage.open("cpu", {})


def test_two_columns_cannot_share_a_name() -> None:
    encoders = [{"name": n, "model": "ViT-B-32", "pretrained": "openai"} for n in ("clip", "clip_text")]
    with pytest.raises(ValidationError, match="two columns would be named 'clip_text'"):
        Embed(encoders=encoders)


def test_missing_input_tables_are_refused() -> None:
    stage = Embed(encoders=[{"name": "clip", "model": "ViT-B-32", "pretrained": "openai"}])
    with pytest.raises(RecipeError, match="embed needs the table 'images'"):
        stage.inputs({"source": SOURCE})


def test_import_is_cheap() -> None:
    heavy = "{m for m in ('torch', 'open_clip', 'torchvision', 'cv2', 'sklearn', 'PIL') if m in sys.modules}"
    modules = "tasks.embed, tasks.train, tasks.encoders.open_clip_config, tasks.encoders.torchvision_on_cpu"
    code = f"import sys, {modules}; sys.exit(str({heavy} or ''))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stderr.strip() == ""
