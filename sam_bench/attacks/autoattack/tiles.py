"""The patterns that Square adds in L2: two opposed bumps, side by side (arXiv 1912.00049, section 3.3)."""

from __future__ import annotations

import torch
from torch import Tensor


def bump(height: int, width: int) -> Tensor:
    """Nested rectangles whose weight falls with the square of their number; float32 [height, width], norm 1."""
    pattern = torch.zeros(height, width)
    row, column = height // 2, width // 2
    for ring in range(max(row, column) + 1):
        length = 2 * ring + 1
        top, left = row - ring, column - ring
        pattern[max(top, 0) : min(top + length, height), max(left, 0) : min(left + length, width)] += (
            1.0 / (torch.tensor(ring + 1.0)) ** 2
        )
    unit: Tensor = pattern / (pattern**2).sum().sqrt()
    return unit


def tile(side: int) -> Tensor:
    """A bump above a bump of opposite sign; float32 [side, side], norm 1."""
    half = side // 2
    pattern = torch.zeros(side, side)
    pattern[:half] = bump(half, side)
    pattern[half:] = -bump(side - half, side)
    unit: Tensor = pattern / (pattern**2).sum().sqrt()
    return unit


def tile_table(sides: list[int], *, device: torch.device) -> Tensor:
    """The tile of each side, upright and turned: float32 [largest + 1, 2, largest, largest], the rest zero."""
    largest = max(sides)
    table = torch.zeros(largest + 1, 2, largest, largest)
    for side in sides:
        upright = tile(side)
        table[side, 0, :side, :side] = upright
        table[side, 1, :side, :side] = upright.t()
    return table.to(device)
