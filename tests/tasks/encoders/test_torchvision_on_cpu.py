"""The shim, in new interpreters, as torchvision can be imported only once per process."""

import subprocess
import sys

import pytest

ROOM = "import sys; from tasks.encoders.torchvision_on_cpu import ensure_torchvision as ensure\n"


def python(code: str) -> str:
    done = subprocess.run([sys.executable, "-c", ROOM + code], capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_torchvision_imports_with_any_wheel() -> None:
    code = "print(ensure(), ensure())\nfrom torchvision.ops import box_iou; import torchvision.transforms"
    assert python(code) in ("native native", "shim shim")


def test_absent_torchvision_is_reported() -> None:
    assert python("sys.modules['torchvision'] = None\nprint(ensure())") == "absent"


def test_nothing_is_declared_where_the_extension_loads() -> None:
    code = (
        "import tasks.encoders.torchvision_on_cpu as shim, torch\n"
        "shim._extension_loads = lambda package: True\n"
        "print(ensure(), shim._library, hasattr(torch.ops.torchvision, 'nms') and shim._library is not None)"
    )
    assert python(code) == "native None False"


@pytest.mark.parametrize("threshold", [0.1, 0.5, 0.9])
def test_non_maximum_suppression_against_a_loop(threshold: float) -> None:
    import torch

    from tasks.encoders.torchvision_on_cpu import non_maximum_suppression

    chance = torch.Generator().manual_seed(0)
    corner = torch.rand(60, 2, generator=chance) * 10
    boxes = torch.cat([corner, corner + 1 + 3 * torch.rand(60, 2, generator=chance)], 1)
    scores = torch.rand(60, generator=chance)

    def iou(a: list[float], b: list[float]) -> float:
        width = max(0.0, min(a[2], b[2]) - max(a[0], b[0]))
        height = max(0.0, min(a[3], b[3]) - max(a[1], b[1]))
        areas = (a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1])
        return width * height / (areas - width * height)

    kept: list[int] = []
    for i in sorted(range(60), key=lambda i: -scores[i].item()):
        if all(iou(boxes[i].tolist(), boxes[j].tolist()) <= threshold for j in kept):
            kept.append(i)
    assert non_maximum_suppression(boxes, scores, threshold).tolist() == kept
    assert (len(kept) < 60) == (threshold < 0.9)
    assert non_maximum_suppression(boxes[:0], scores[:0], threshold).tolist() == []
