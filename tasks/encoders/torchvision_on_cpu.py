"""Make a CUDA-built torchvision importable with a CPU-only torch. Does nothing if torchvision's extension loads.

The wheel's compiled extension links libtorch_cuda, so on a CPU torch it does not load, and `import torchvision` (and
with it timm and open_clip) fails with `RuntimeError: operator torchvision::nms does not exist`. Only two operator
declarations (`nms`, `qnms`) are missing at import time. They are declared here, `nms` with a plain
implementation; everything else of torchvision that is written in Python then works. `torchvision.ops.nms` and
`torchvision.io.decode_jpeg` still raise torchvision's own clear error (decode with Pillow or OpenCV).

Call `ensure_torchvision()` before anything imports torchvision, timm or open_clip: a failed import leaves
half-imported modules behind, which cannot be repaired.
"""

import sys
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    import torch

Torchvision = Literal["native", "shim", "absent"]

_found: Torchvision | None = None
_library: "torch.library.Library | None" = None
"""A reference that keeps the operators: they are removed with the Library object that declared them."""


def ensure_torchvision() -> Torchvision:
    """Return what `import torchvision` will find: its own operators, ours, or no torchvision. Idempotent.

    Like torchvision, it first tries to load the extension; it declares operators only if that fails.
    """
    global _found
    if _found is None:
        _found = _prepare()
    return _found


def _prepare() -> Torchvision:
    if sys.modules.get("torchvision") is not None:  # imported already, so its operators are there
        return "native"
    spec = find_spec("torchvision")
    if spec is None or spec.origin is None:
        return "absent"
    if _extension_loads(Path(spec.origin).parent):
        return "native"
    _declare_operators()
    return "shim"


def _extension_loads(package: Path) -> bool:
    import torch

    for extension in sorted(package.glob("_C*.so")) + sorted(package.glob("_C*.pyd")):
        try:
            torch.ops.load_library(extension)
        except OSError:  # from the linker: a missing library
            return False
        return True
    return False


def _declare_operators() -> None:
    global _library
    import torch

    _library = torch.library.Library("torchvision", "DEF")
    for name in ("nms", "qnms"):
        _library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    _library.impl("nms", non_maximum_suppression, "CPU")


def non_maximum_suppression(boxes: "torch.Tensor", scores: "torch.Tensor", iou_threshold: float) -> "torch.Tensor":
    """Return the indices of boxes that no better box overlaps by more than `iou_threshold`, best first.

    boxes: (n, 4) as x1, y1, x2, y2; scores: (n,); result: int64 (kept,). Greedy, as torchvision's own; slow.
    """
    import torch

    order = scores.argsort(descending=True, stable=True)
    area = (boxes[:, 2:] - boxes[:, :2]).prod(1)
    kept: list[torch.Tensor] = []
    while order.numel():
        best, rest = order[0], order[1:]
        kept.append(best)
        low = torch.maximum(boxes[best, :2], boxes[rest, :2])
        high = torch.minimum(boxes[best, 2:], boxes[rest, 2:])
        overlap = (high - low).clamp(min=0).prod(1)
        order = rest[overlap / (area[best] + area[rest] - overlap) <= iou_threshold]
    return torch.stack(kept) if kept else torch.empty(0, dtype=torch.long)
