"""Rows of a matrix as float32 unit vectors on a device."""

from typing import TYPE_CHECKING, Final

import numpy as np

from tasks.vectors import mapped

if TYPE_CHECKING:
    import torch

HELD_BYTES: Final = 1 << 30
"""Rows are kept on the device as float32 up to this size; above it they are converted block by block."""


class UnitRows:
    """Rows of a matrix as float32 unit vectors on a device, read a range at a time; kept there if they are few.

    `rows`: (n, d), float16 or float32, in memory or mapped. A row without a direction (`mapped.usable`) becomes NaN.
    """

    def __init__(self, rows: np.ndarray, device: str, held_bytes: int = HELD_BYTES) -> None:
        """Convert all rows now if they have at most `held_bytes` as float32."""
        self._rows, self._device = rows, device
        self._held = self._load(0, len(rows)) if rows.size * 4 <= held_bytes else None

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, span: slice) -> "torch.Tensor":
        if self._held is not None:
            return self._held[span]
        return self._load(span.start, span.stop)

    def _load(self, start: int, stop: int) -> "torch.Tensor":
        piece = units(self._rows[start:stop], self._device)
        mapped.release(self._rows)
        return piece


def units(rows: np.ndarray, device: str) -> "torch.Tensor":
    """Return rows as float32 unit vectors, (n, d) on a device; NaN where a row has no direction."""
    import torch

    piece = torch.from_numpy(np.array(rows)).to(device).float()
    norms = torch.linalg.vector_norm(piece, dim=1, keepdim=True)
    return piece.div_(norms.masked_fill_((norms == 0) | norms.isinf(), torch.nan))
