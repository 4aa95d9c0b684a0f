"""Random views of pictures, for a whole batch at once: crop, stretch, mirror, brightness and tint."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class Changes:
    """How much a view may differ from its picture."""

    area: tuple[float, float] = (0.5, 1.0)
    """The range of the share of the picture in a view."""
    aspect: float = 0.25
    """The maximum absolute log aspect ratio of a view."""
    brightness: float = 0.2
    """The maximum deviation from 1 of the factor of all channels."""
    tint: float = 0.06
    """The maximum absolute number added to each channel, of a range of 0..1."""


CHANGES: Final = Changes()


def random_views(
    pictures: "torch.Tensor", side_px: int, generator: "torch.Generator", changes: Changes = CHANGES
) -> "torch.Tensor":
    """Return float32 (n, 3, side_px, side_px) in about 0..1 of uint8 (n, 3, height, width).

    Crop, stretch and mirror are one bilinear resampling. All random numbers come from `generator` (on the CPU), so the
    views are equal on every device, up to rounding.
    """
    import torch
    from torch.nn import functional

    n = len(pictures)

    def uniform(low: float, high: float, *shape: int) -> torch.Tensor:
        return torch.empty(n, *shape).uniform_(low, high, generator=generator)

    scale, aspect = uniform(*changes.area).sqrt(), uniform(-changes.aspect, changes.aspect).exp().sqrt()
    width, height = (scale * aspect).clamp(max=1), (scale / aspect).clamp(max=1)
    x, y = uniform(-1, 1) * (1 - width), uniform(-1, 1) * (1 - height)
    mirror = torch.where(uniform(0, 1) < 0.5, -1.0, 1.0)
    light = uniform(1 - changes.brightness, 1 + changes.brightness, 1, 1, 1)
    tint = uniform(-changes.tint, changes.tint, 3, 1, 1)

    zero = torch.zeros(n)
    placed = torch.stack([torch.stack([width * mirror, zero, x], 1), torch.stack([zero, height, y], 1)], 1)
    device = pictures.device
    grid = functional.affine_grid(placed.to(device), [n, 3, side_px, side_px], align_corners=False)
    views = functional.grid_sample(pictures.float() / 255, grid, padding_mode="reflection", align_corners=False)
    return views * light.to(device) + tint.to(device)
