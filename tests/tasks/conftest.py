"""A tiny CLIP with random weights, as a user would have it: a JSON file and a checkpoint."""

import json
from pathlib import Path

import pytest

TINY = {
    "embed_dim": 32,
    "vision_cfg": {"image_size": 32, "layers": 2, "width": 32, "head_width": 16, "patch_size": 8, "mlp_ratio": 2.0},
    "text_cfg": {"context_length": 20, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 1, "mlp_ratio": 2.0},
}


@pytest.fixture(scope="session")
def tiny_clip(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Return the paths of a configuration and of safetensors weights."""
    from safetensors.torch import save_file

    from tasks.encoders.open_clip_config import build
    from tasks.encoders.torchvision_on_cpu import ensure_torchvision

    ensure_torchvision()
    import torch

    folder = tmp_path_factory.mktemp("clip")
    config, weights = folder / "tiny-clip.json", folder / "tiny-clip.safetensors"
    config.write_text(json.dumps(TINY))
    torch.manual_seed(7)
    save_file({k: v.contiguous() for k, v in build(TINY).state_dict().items()}, weights)
    return config, weights
