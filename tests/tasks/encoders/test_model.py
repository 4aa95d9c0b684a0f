"""A loaded encoder: its part of open_clip's transform, its precision, and missing weights."""

from pathlib import Path

import numpy as np
import pytest

from catalog.errors import UserError
from tasks.encoders.encoder import Encoder
from tasks.encoders.model import fast_at_bfloat16, load
from tasks.train import TrainClip
from tests.pictures import picture


@pytest.mark.parametrize("size", [(32, 32), (300, 200), (33, 90), (20, 31), (1, 700)])
def test_prepare_and_arithmetic_are_open_clips_transform(tiny_clip: tuple[Path, Path], size: tuple[int, int]) -> None:
    import torch
    from open_clip.transform import PreprocessCfg, image_transform_v2
    from PIL import Image

    model = load(Encoder(name="clip", model=str(tiny_clip[0]), pretrained="random"), "cpu", {})
    image = Image.fromarray(picture(*size))
    expected = image_transform_v2(PreprocessCfg(size=32), is_train=False)(image)
    small = model.prepare(image)
    assert small.shape == model.shape == (32, 32, 3)
    ours = (torch.from_numpy(small.copy()).permute(2, 0, 1).float() / 255 - model._mean[0]) / model._std[0]
    torch.testing.assert_close(ours, expected, atol=1e-6, rtol=0)


def test_random_weights_are_always_the_same(tiny_clip: tuple[Path, Path]) -> None:
    import torch

    encoder = Encoder(name="clip", model=str(tiny_clip[0]), pretrained="random")
    state = torch.get_rng_state()
    one = load(encoder, "cpu", {}).images(np.zeros((1, 32, 32, 3), np.uint8))
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(1)
    np.testing.assert_array_equal(load(encoder, "cpu", {}).images(np.zeros((1, 32, 32, 3), np.uint8)), one)


def test_bfloat16_only_where_the_processor_has_it() -> None:
    flags = Path("/proc/cpuinfo")
    if not flags.exists():
        pytest.skip("no /proc/cpuinfo to compare with")
    words = flags.read_text().split()
    assert fast_at_bfloat16("cpu") == ("avx512_bf16" in words or "amx_bf16" in words)


def test_a_model_that_the_table_lacks() -> None:
    models = TrainClip().output({}).empty_table()
    with pytest.raises(UserError, match="the models table has no 'small-clip'"):
        load(Encoder(name="clip", trained="small-clip"), "cpu", {"models": models})


def test_texts_and_images_become_unit_vectors_and_missing_ones_zero(tiny_clip: tuple[Path, Path]) -> None:
    from tasks.images import encode

    model = load(Encoder(name="clip", model=str(tiny_clip[0]), pretrained="random"), "cpu", {})
    texts = model.unit_texts(["a cat", "a dog", "a cat"], batch=2)
    np.testing.assert_allclose(np.linalg.norm(texts, axis=1), 1, atol=1e-5)
    np.testing.assert_allclose(texts[0], texts[2], atol=1e-6)
    images, good = model.unit_images([encode(picture(40, 30)), b"no image", None, encode(picture(20, 50))], batch=3)
    assert good.tolist() == [True, False, False, True]
    np.testing.assert_allclose(np.linalg.norm(images, axis=1), [1, 0, 0, 1], atol=1e-5)
    assert model.unit_images([])[0].shape == (0, 32)
