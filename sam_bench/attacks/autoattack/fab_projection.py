"""Projection onto a hyperplane within the box [0, 1], which FAB does twice a step (arXiv 1907.02044, equation 4).

A point t is moved until w.t = b by the smallest change, in Linf, L2 or L1, that keeps every coordinate
in the box; where that cannot be, every coordinate goes to its bound. In Linf and L2 the amount moved is
a concave, piecewise linear function of one number per row, so that Newton's method from zero climbs to
the root without overshooting and without the sort over all coordinates that the textbook solution needs.
In L1 one coordinate after the other goes to its bound, the one of the largest weight first.
"""

from __future__ import annotations

import torch
from torch import Tensor

_NEGLIGIBLE = 1e-8  # upstream leaves coordinates of smaller weight alone, in L2 and L1
_HARDLY = 1e12  # upstream's largest key
_FEW = 64  # coordinates that are looked at first in L1
_CHECK_EVERY = 4  # asking whether all rows have arrived waits for the device


def project(t: Tensor, w: Tensor, b: Tensor, *, norm: str, as_upstream: bool = False) -> Tensor:
    """The change that takes points to their hyperplanes.

    Args:
        t: Points, float [B, D] in [0, 1].
        w: Normals of the hyperplanes, [B, D].
        b: Their offsets, [B].
        norm: "Linf", "L2" or "L1": the norm whose change is smallest.
        as_upstream: In L1, of coordinates of equal weight take the one that upstream's sort has first; else the first.

    Returns:
        The change [B, D]: t plus it is in the box, and on the hyperplane where the box reaches it.
    """
    distance = (w * t).sum(1) - b
    down = torch.where(distance >= 0, 1.0, -1.0).to(w.dtype)
    w = w * down[:, None]
    distance = distance.abs()
    weight = w.abs()
    # How far each coordinate can go in the direction that lowers w.t.
    room = torch.where(w < 0, 1.0 - t, t)
    if norm == "L1":
        change = _steepest_first(weight, room, distance, as_upstream=as_upstream)
        return torch.where(w < 0, change, -change)
    if norm == "Linf":
        speed = (weight > 0).to(w.dtype)
    else:
        weight = torch.where(weight > _NEGLIGIBLE, weight, torch.zeros_like(weight))
        speed = weight
    reach = _reach(weight, speed, room, distance)
    change = torch.minimum(reach[:, None] * speed, room)
    full = distance >= (weight * room).sum(1)
    change = torch.where(full[:, None], room * (speed > 0), change)
    return torch.where(w < 0, change, -change)


def _steepest_first(weight: Tensor, room: Tensor, distance: Tensor, *, as_upstream: bool) -> Tensor:
    """How far each coordinate goes, [B, D] in [0, room], for the distance to be covered by the fewest changes."""
    # Upstream's key: rounding makes ties of its own.
    key, covers, most = (1.0 / weight).clamp_max(_HARDLY), weight * room, weight.shape[1]
    count = most if as_upstream else min(_FEW, most)
    while True:
        order = key.argsort(dim=1) if as_upstream else _smallest(key, count)
        left = torch.cat([distance[:, None], -covers.gather(1, order)], 1).cumsum(1)
        if count == most or bool((left[:, -1] <= 0).all()):
            break
        count = min(4 * count, most)
    steep = weight.gather(1, order)
    change = (left[:, :-1] / steep).clamp_min(0.0).minimum(room.gather(1, order))
    change = torch.where(steep > _NEGLIGIBLE, change, torch.zeros_like(change))
    return torch.zeros_like(weight).scatter(1, order, change)


def _smallest(key: Tensor, count: int) -> Tensor:
    """Places of the smallest of positive keys [B, D], int64 [B, count]; of equal keys the first is the smallest.

    Which of them `topk` takes depends on how many it is asked for, and so on the other rows of the batch.
    """
    if key.dtype != torch.float32:
        return key.argsort(dim=1, stable=True)[:, :count]
    # Positive floats are ordered as their bits are; with their places behind them no two are equal.
    unequal = (key.view(torch.int32).long() << 32) + torch.arange(key.shape[1], device=key.device)
    return unequal.topk(count, dim=1, largest=False)[1]


def _reach(weight: Tensor, speed: Tensor, room: Tensor, distance: Tensor) -> Tensor:
    """The root r of sum_i weight_i min(speed_i r, room_i) = distance, [B]; any number where there is none."""
    slope = weight * speed
    # The first step from r = 0, at which no coordinate with room has met its bound.
    steepest = (slope * (room > 0)).sum(1)
    reach = distance / steepest.clamp_min(torch.finfo(slope.dtype).tiny)
    for step in range(1, 101):
        free = speed * reach[:, None] < room
        rest = distance - (weight * torch.where(free, 0.0, room)).sum(1)
        steep = (slope * free).sum(1)
        # With the same coordinates free as before this gives the same number: the root.
        following = torch.where(steep > 0, rest / steep.clamp_min(torch.finfo(slope.dtype).tiny), reach)
        arrived = following <= reach
        reach = torch.maximum(following, reach)
        if step % (1 if reach.is_cpu else _CHECK_EVERY) == 0 and bool(arrived.all()):
            break
    return reach
