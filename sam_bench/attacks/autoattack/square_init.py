"""The patterns that Square adds in L2 and L1: two opposed bumps, side by side (arXiv 1912.00049, section 3.3)."""

from __future__ import annotations

import torch
from torch import Tensor

from sam_bench.records import Norm

_FALL: dict[Norm, int] = {"L2": 2, "L1": 4}


def bump(height: int, width: int, norm: Norm) -> Tensor:
    """Nested rectangles whose weight falls with a power of their number; float32 [height, width], norm 1."""
    pattern = torch.zeros(height, width)
    row, column = height // 2, width // 2
    for ring in range(max(row, column) + 1):
        length = 2 * ring + 1
        top, left = row - ring, column - ring
        pattern[max(top, 0) : min(top + length, height), max(left, 0) : min(left + length, width)] += (
            1.0 / (torch.tensor(ring + 1.0)) ** _FALL[norm]
        )
    return _unit(pattern, norm)


def tile(side: int, norm: Norm) -> Tensor:
    """A bump above a bump of opposite sign; float32 [side, side], norm 1."""
    half = side // 2
    pattern = torch.zeros(side, side)
    pattern[:half] = bump(half, side, norm)
    pattern[half:] = -bump(side - half, side, norm)
    return _unit(pattern, norm)


def _unit(pattern: Tensor, norm: Norm) -> Tensor:
    length: Tensor = pattern.abs().sum() if norm == "L1" else (pattern**2).sum().sqrt()
    return pattern / length


def tile_table(sides: list[int], *, norm: Norm, device: torch.device) -> Tensor:
    """The tile of each side, in their order, upright and turned: float32 [S, 2, largest, largest], the rest zero."""
    largest = max(sides)
    table = torch.zeros(len(sides), 2, largest, largest)
    for number, side in enumerate(sides):
        upright = tile(side, norm)
        table[number, 0, :side, :side] = upright
        table[number, 1, :side, :side] = upright.t()
    return table.to(device)


def channel_norm(images: Tensor, norm: Norm, window: tuple[int, int, int] | None = None) -> Tensor:
    """L2 or L1 norm of each channel, or of a window (side, top, left) of it, [B, C, 1, 1]."""
    if window is not None:
        side, top, left = window
        images = images[:, :, top : top + side, left : left + side]
    if norm == "L1":
        return images.abs().sum(dim=(-2, -1), keepdim=True)
    return (images**2).sum(dim=(-2, -1), keepdim=True).sqrt()
