"""APGD in L1 (Croce and Hein 2021, arXiv 2103.01208): sparse steps, and first of all in larger balls."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from sam_bench.attacks.autoattack.ascent import Ascent, AscentState
from sam_bench.attacks.autoattack.state import wide
from sam_bench.perturb.l1 import l1_correction

_STAGES = ((3.0, 0.3), (2.0, 0.3), (1.0, 0.4))  # radii in eps, and their shares of the iterations
_FIRST_SHARE = 0.2  # of the coordinates that the first steps of a random start move
_SPARSER = 1.5  # steps move so many times fewer coordinates than the best perturbation has
_CHECK_EVERY = 0.04  # of a stage's iterations
_FELL = 0.95  # a perturbation that has less than this share of its coordinates left has become sparser
_SHRINK, _MOST_SHRUNK = 1.5, 10.0
_TINY = 1e-10


@dataclass
class SparseState(AscentState):
    """What a trial remembers besides.

    Attributes:
        share: float32: share of the coordinates that a step moves.
        changed: int64: coordinates changed at the best point, as of the last checkpoint.
    """

    share: Tensor
    changed: Tensor


def stages(eps: float, iterations: int, *, widened: bool) -> list[tuple[float, int]]:
    """Radii and steps of the stages of a trial: one, or three of which two are in larger balls."""
    if not widened:
        return [(eps, iterations)]
    steps = [math.ceil(share * iterations) for _, share in _STAGES[:-1]]
    steps.append(max(iterations - sum(steps), 0))  # the start of the last stage counts, too
    return [(factor * eps, each) for (factor, _), each in zip(_STAGES, steps, strict=True)]


class SparseAPGD(Ascent[SparseState]):
    """Steps that share their length among the steepest coordinates, fewer as the best perturbation gets sparser.

    Args:
        widened: Begin in balls of three and two times the radius; each stage begins at the best point
            of the one before, and only the last one finds candidates.
    """

    def __init__(self, *args: Any, widened: bool = False, **settings: Any) -> None:
        super().__init__(*args, **settings)
        self._widened = widened
        self._stages = stages(self.ball.eps, self._iterations, widened=widened)
        radii, target, shortest = [], [], []
        starts, checked, ends, counts = [], [], [], []
        for number, (radius, steps) in enumerate(self._stages):
            last = number == len(self._stages) - 1
            following = radius if last else self._stages[number + 1][0]
            every = max(int(_CHECK_EVERY * steps), 1)
            # The first tick of a stage only evaluates its start.
            for tick in range(steps + 1):
                radii.append(radius)
                target.append(following if tick == steps else radius)
                shortest.append(radius / _MOST_SHRUNK)
                starts.append(tick == 0)
                checked.append(tick > 0 and tick % every == 0)
                ends.append(tick == steps)
                counts.append(last)
        numbers: dict[str, Any] = {"dtype": self.examples.x.dtype, "device": self.device}
        self._radius, self._target, self._shortest = (torch.tensor(e, **numbers) for e in (radii, target, shortest))
        self._starts, self._checked, self._ends, self._counts = (
            torch.tensor(each, device=self.device) for each in (starts, checked, ends, counts)
        )

    @property
    def steps(self) -> int:
        """Steps, and the evaluation of each stage's start."""
        return len(self._starts)

    def starting(self, state: SparseState) -> Tensor:
        """At the first tick of each stage."""
        return self._starts[state.iteration]

    def counting(self, state: SparseState) -> Tensor:
        """In the last stage."""
        return self._counts[state.iteration]

    def init(self, row: Tensor, trial: Tensor) -> SparseState:
        """At the projection of a normal perturbation."""
        common = self.initial(row, trial)
        clean, radius = common["clean"], self._stages[0][0]
        where, shape = (common["row"], common["trial"], common["iteration"]), tuple(clean.shape[1:])
        noise = self.rng.normal(*where, shape, stream=0)
        if self._widened:
            point = clean + noise
            for _ in range(2):  # as upstream: what rounding left outside is projected again
                point = point + self._correction(point - clean, clean, radius)
            if self.rng.in_step:  # upstream draws a start for every stage, and does not use it
                for _ in self._stages:
                    self.rng.normal(*where, shape, stream=0)
        else:
            point = clean + noise + self._correction(noise, clean, radius)
        point = point.clamp(0.0, 1.0)
        fields = self.begun(common, point, radius)
        if self._widened:
            changed = _changed(point, clean)
            share = self._share(changed, clean)
        else:
            changed = torch.full_like(common["row"], clean[0].numel())
            share = torch.full_like(fields["step"], _FIRST_SHARE, dtype=torch.float32)
        return SparseState(**fields, share=share, changed=changed)

    def advance(self, state: SparseState, loss: Tensor, gradient: Tensor, start: Tensor) -> None:
        """Look how sparse the best point has become, then make a step, or go to the next stage."""
        back = self._check(state)
        point = torch.where(wide(back, state.best), state.best, state.point)
        gradient = torch.where(wide(back, gradient), state.best_gradient, gradient)
        ends, radius = self._ends[state.iteration], self._target[state.iteration]
        moved = torch.where(wide(ends, point), state.best, point + self._step(state, gradient))
        delta = moved - state.clean
        # Upstream's sums, since what is counted as changed includes their rounding.
        base = torch.where(wide(ends, moved), moved, state.clean + delta)
        moved = base + self._correction(delta, state.clean, radius)
        state.point = torch.where(wide(ends, moved), moved.clamp(0.0, 1.0), moved)
        begun = _changed(state.point, state.clean)
        state.changed = torch.where(ends, begun, state.changed)
        state.share = torch.where(ends, self._share(begun, state.clean), state.share)
        state.step = torch.where(ends, radius, state.step)

    def _check(self, state: SparseState) -> Tensor:
        """Which rows start again from their best point, bool [B]: those whose best has become sparser."""
        checked = self._checked[state.iteration]
        radius, shortest = self._radius[state.iteration], self._shortest[state.iteration]
        changed = _changed(state.best, state.clean)
        sparser = checked & (changed / state.changed < _FELL)
        step = torch.where(sparser, radius, state.step / _SHRINK).clamp(shortest, radius)
        state.step = torch.where(checked, step, state.step)
        state.share = torch.where(checked, self._share(changed, state.clean), state.share)
        state.changed = torch.where(checked, changed, state.changed)
        return sparser

    def _correction(self, delta: Tensor, clean: Tensor, radius: float | Tensor) -> Tensor:
        return l1_correction(delta, clean, radius, as_upstream=self.rng.in_step)

    def _share(self, changed: Tensor, clean: Tensor) -> Tensor:
        return changed / clean[0].numel() / _SPARSER

    def _step(self, state: SparseState, gradient: Tensor) -> Tensor:
        """Signs of the steepest coordinates, scaled to the step's length in L1."""
        size = gradient.abs()
        count = gradient[0].numel()
        place = count - 1 - ((1.0 - state.share) * count).clamp(0, count - 1).long()
        largest = size.flatten(1).topk(int(place.max()) + 1, dim=1)[0]
        least = largest.gather(1, place[:, None]).squeeze(1)
        signs = (gradient * (size >= wide(least, size))).sign()
        return wide(state.step, signs) * signs / (wide(signs.abs().flatten(1).sum(1), signs) + _TINY)


def _changed(point: Tensor, clean: Tensor) -> Tensor:
    """Coordinates in which they differ, int64 [B]."""
    return (point != clean).flatten(1).sum(1)
