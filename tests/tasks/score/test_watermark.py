"""The watermark detector against its published loop, on generated pictures, with random weights."""

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from catalog.errors import RecipeError, UserError
from catalog.schema import IMAGES
from tasks.score import Score, ScoreImages
from tasks.score.watermark import MEAN, STD, network
from tests.pictures import encoded, picture
from tests.tasks.score.embeddings import run, saved


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the path of random weights whose scores differ from picture to picture."""
    path = tmp_path_factory.mktemp("watermark") / "watermark.pt"
    saved(net().state_dict(), path)
    return path


def net() -> Any:
    """Return a network with random weights, batch norms that have seen pictures, and scores that are not saturated.

    Made once: what its batch norms saw depends on the number of threads and on the processor, in the last bits. Deep
    networks of random weights make much of that, so two that are made alike can differ.
    """
    import torch

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        model = network()
        for module in model.modules():
            if isinstance(module, torch.nn.BatchNorm2d):
                module.momentum = None
        with torch.no_grad():
            # Pictures like those that are scored: on any others, its scores would be thousands.
            seen = [picture(256, 256, seed=i) for i in range(100, 108)]
            pictures = (torch.from_numpy(np.stack(seen)).permute(0, 3, 1, 2).float() / 255 - 0.45) / 0.225
            model.train()(pictures)
            last = model.classifier[5]
            logits = model.eval()(pictures)
            spread = 16 * logits.std(0)
            last.weight.div_(spread[:, None])
            last.bias.sub_(logits.mean(0)).div_(spread)
    return model.eval()


def stage(weights: Path, **fields: Any) -> ScoreImages:
    scorers = [{"use": "watermark", "weights": str(weights)}]
    (made,) = Score.model_validate({"scorers": scorers} | fields).expand()
    assert isinstance(made, ScoreImages)
    return made


def rows(images: Sequence[bytes | None]) -> pa.Table:
    return pa.table({"sample_id": range(len(images)), "image": pa.array(images, pa.large_binary())})


def test_against_the_published_loop(weights: Path) -> None:
    import torch
    from PIL import Image
    from torchvision import transforms

    from tasks.files.weights import Weights

    images = [encoded(picture(300 - 40 * i, 90 + 30 * i, seed=i), "PNG") for i in range(5)]
    steps = [transforms.Resize((256, 256)), transforms.ToTensor(), transforms.Normalize(MEAN, STD)]
    preprocess, model = transforms.Compose(steps), network()
    model.load_state_dict(Weights(weights=str(weights)).read())
    model.eval().double()
    batch = torch.stack([preprocess(Image.open(io.BytesIO(data)).convert("RGB")) for data in images])
    with torch.no_grad():
        expected = model(batch.double()).softmax(1)[:, 0].numpy()
    assert expected.std() > 1e-3
    assert 0.01 < expected.min() <= expected.max() < 0.99, "saturated scores would hide differences"
    found = run(stage(weights, batch_size=2), rows(images))
    assert found.schema.names == ["sample_id", "watermark"]
    np.testing.assert_allclose(found["watermark"].to_numpy(), expected, atol=1e-5)


def test_the_published_names_of_the_weights(weights: Path) -> None:
    from tasks.files.weights import Weights

    state = Weights(weights=str(weights)).read()
    names = {"conv_stem.weight", "bn1.running_mean", "blocks.0.0.conv_dw.weight", "conv_head.weight", "bn2.weight"}
    assert names | {"classifier.0.weight", "classifier.3.bias", "classifier.5.weight"} <= state.keys()
    assert state["classifier.0.weight"].shape == (625, 1536)
    assert state["classifier.3.weight"].shape == (256, 625)
    assert state["classifier.5.weight"].shape == (2, 256)


def test_wrong_weights_are_a_one_line_error(tmp_path: Path) -> None:
    import torch

    path = Path(saved({"fc.weight": torch.zeros(2, 3)}, tmp_path / "other.pt"))
    with pytest.raises(UserError, match="weights of 'watermark': not those of an efficientnet_b3 with its head: "):
        stage(path).open("cpu", {})


def test_missing_weights_are_refused_before_anything_runs(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"gone\.pt': no such file"):
        stage(tmp_path / "gone.pt").inputs({"images": IMAGES})
