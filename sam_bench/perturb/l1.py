"""The nearest point of an L1 ball and the box of valid images (Croce and Hein 2021, arXiv 2103.01208, section 2)."""

from __future__ import annotations

import torch
from torch import Tensor

_USUAL_STEPS, _MOST_STEPS = 20, 120
_CHECK_EVERY = 4  # asking whether all rows have arrived waits for the device


def l1_correction(delta: Tensor, x: Tensor, eps: float | Tensor, *, as_upstream: bool = False) -> Tensor:
    """What takes perturbations to the nearest point of the L1 ball and the box.

    Every coordinate gives up the same amount, the level, but at least what lies outside the box and at
    most itself. What is left of the norm is a falling, piecewise linear function of the level.

    Args:
        delta: Perturbations, float [B, ...].
        x: Clean inputs in [0, 1], same shape.
        eps: Radius, or one for each row, [B].
        as_upstream: Find the level by sorting, with the roundings of AutoAttack's own implementation;
            else by Newton's method, which is several times quicker.

    Returns:
        float [B, ...]: `delta` plus this is the projection. It is returned by itself because upstream
        adds it to `x + delta`, whose rounding its attacks can see.
    """
    flat, clean = delta.flatten(1), x.flatten(1)
    size = flat.abs()
    outside = torch.minimum(1 - clean - flat, clean + flat).clamp_max(0.0).neg()
    find = _level_by_sorting if as_upstream else _level_by_newton
    level = find(size, outside, torch.as_tensor(eps, dtype=size.dtype, device=size.device).expand(len(size)))
    amount = torch.maximum(outside, level[:, None]).minimum(size)
    return (-flat.sign() * amount).view_as(delta)


def _level_by_sorting(size: Tensor, outside: Tensor, eps: Tensor) -> Tensor:
    """The level, [B]; 0 where the box alone leaves at most eps.

    Along the level each coordinate bends the sum of what is given up twice: first it begins to give, then
    it has nothing left. Sorted, the bends lead to the piece on which enough is given.
    """
    given, excess = outside.sum(1), size.sum(1) - eps
    bends, order = torch.cat([outside, size], 1).sort(1)
    moving = (2.0 * (order < size.shape[1]).to(size) - 1.0).cumsum(1)
    end = torch.cat([bends[:, 1:], torch.zeros_like(bends[:, :1])], 1)
    by_end = given[:, None] + ((end - bends) * moving).cumsum(1)
    by_start = torch.cat([given[:, None], by_end[:, :-1]], 1)
    piece = (by_end < excess[:, None]).sum(1, keepdim=True).clamp_max(bends.shape[1] - 1)
    level = (excess[:, None] - by_start.gather(1, piece)) / moving.gather(1, piece) + bends.gather(1, piece)
    return torch.where(given < excess, level.squeeze(1), torch.zeros_like(given))


def _level_by_newton(size: Tensor, outside: Tensor, eps: Tensor) -> Tensor:
    """The same by Newton's method from 0, bisecting where a step would leave the bracket, and when it takes long.

    A row stops after the step that begins within rounding of the root: its number does not depend on
    the other rows.
    """
    room, rounding = size - outside, torch.finfo(size.dtype).eps
    level, low, high = torch.zeros_like(eps), torch.zeros_like(eps), size.amax(1)
    going = room.sum(1) > eps
    for step in range(1, _MOST_STEPS + 1):
        kept = (size - level[:, None]).clamp_min_(0.0).minimum(room)
        too_much = kept.sum(1) - eps
        slope = torch.count_nonzero((kept > 0) & (kept < room), dim=1)
        low, high = torch.where(too_much > 0, level, low), torch.where(too_much > 0, high, level)
        near = too_much.abs() <= rounding * (8 * eps + 4 * slope * level)
        following = level + too_much / slope
        # Strictly: where the function bends, a step from either end of the bracket can lead to the other for ever.
        inside = (following > low) & (following < high)
        if step > _USUAL_STEPS and step % 2:
            inside = torch.zeros_like(inside)  # no row is left to crawl from bend to bend
        following = torch.where(inside, following, torch.where(near, level, (low + high) / 2))
        level = torch.where(going, following, level)
        going = going & ~near
        if step % (1 if level.is_cpu else _CHECK_EVERY) == 0 and not bool(going.any()):
            break
    return level
