"""How far another runtime's outputs are from torch's, on images of several kinds."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from ark.errors import ConfigError
from ark.exporting.graph import Graph

# of the greatest difference, see `difference`
TOLERANCES = {"float32": 1e-4, "float16": 5e-2}
Runs = Callable[[Tensor], Sequence[Tensor]]


def pictures(size: int) -> list[Tensor]:
    """Batches of 1 and 3, gray and RGB, uint8: noise, smooth ones as photographs are, black."""
    generator = torch.Generator().manual_seed(0)

    def noise(*shape: int) -> Tensor:
        return torch.randint(0, 256, shape, generator=generator, dtype=torch.uint8)

    def smooth(batch: int, channels: int) -> Tensor:
        coarse = torch.rand(batch, channels, 6, 6, generator=generator) * 255
        fine = F.interpolate(coarse, (size, size), mode="bicubic").clamp(0, 255)
        grain = torch.randn(fine.shape, generator=generator) * 4
        return (fine + grain).clamp(0, 255).to(torch.uint8)

    black = torch.zeros(1, 1, size, size, dtype=torch.uint8)
    return [noise(1, 3, size, size), noise(3, 1, size, size), smooth(3, 3), smooth(1, 1), black]


@torch.no_grad()
def differences(reference: Graph, runs: Runs, dtype: torch.dtype, size: int) -> dict[str, float]:
    """Of each output the greatest `difference` over all `pictures`.

    Args:
        reference: torch's, in float32.
        runs: the other runtime: images -> outputs, in the reference's order.
        dtype: of the images: uint8, or float32 in 0..1.
    """
    found: dict[str, float] = {}
    for images in pictures(size):
        given = images if dtype == torch.uint8 else images.to(dtype) / 255
        expected = reference.named(given)
        for (name, mine), other in zip(expected.items(), runs(given), strict=True):
            found[name] = max(found.get(name, 0.0), difference(other, mine))
    return found


def difference(other: Tensor, mine: Tensor) -> float:
    """The greatest absolute one, as a share of the greatest value where that is above 1 (numbers
    in the dataset's units, boxes in pixels); infinite where shapes differ or a value is none."""
    if other.shape != mine.shape or not other.isfinite().all():
        return float("inf")
    if not mine.numel():
        return 0.0
    return float((other.float() - mine).abs().max() / mine.abs().max().clamp(min=1))


def check(found: dict[str, float], tolerance: float, path: str) -> str:
    """A line for each output.

    Raises:
        ConfigError: one is further from torch than `tolerance`.
    """
    name, worst = max(found.items(), key=lambda item: item[1])
    if not worst <= tolerance:
        raise ConfigError(
            f"{path}: output {name!r} differs from torch's by {worst:.2g}; expected at most "
            f"{tolerance:g} (--tolerance); nothing was kept"
        )
    return "\n".join(
        f"  {name:40s} differs from torch by {value:.1e}" for name, value in found.items()
    )
