"""APGD in Linf and L2 (Croce and Hein 2020, arXiv 2003.01690, algorithm 1), each row with its own step and checks."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from sam_bench.attacks.autoattack.ascent import Ascent, AscentState
from sam_bench.attacks.autoattack.state import norms, wide

_MOMENTUM = 0.75
_RISES = 0.75  # rho: a step size is kept where the loss rose in more than this share of the steps
_TINY = 1e-12


@dataclass
class APGDState(AscentState):
    """What a trial remembers besides.

    Attributes:
        low, high: What ball and box leave of each coordinate; Linf only.
        previous: The point before.
        last_loss: float32: loss at the last point.
        rises: How often the loss rose since the last checkpoint.
        checked_loss: The highest loss at the last checkpoint.
        reduced: bool: the step size was halved at the last checkpoint.
    """

    low: Tensor
    high: Tensor
    previous: Tensor
    last_loss: Tensor
    rises: Tensor
    checked_loss: Tensor
    reduced: Tensor


def checkpoint_windows(iterations: int) -> list[int]:
    """For each iteration the number of steps its checkpoint looks back on, 0 where there is none."""
    window, shortest, shrink = (max(int(share * iterations), 1) for share in (0.22, 0.06, 0.03))
    windows, since = [0] * iterations, 0
    for each in range(iterations):
        since += 1
        if since == window:
            windows[each] = window
            window, since = max(window - shrink, shortest), 0
    return windows


class APGD(Ascent[APGDState]):
    """Ascent with momentum; at checkpoints, rows that stopped rising halve their step and go back to their best."""

    def __init__(self, *args: Any, **settings: Any) -> None:
        super().__init__(*args, **settings)
        # The first step only evaluates the start, so that iteration i of the paper ends in step i + 1.
        self._window = torch.tensor([0, *checkpoint_windows(self._iterations)], device=self.device)

    @property
    def steps(self) -> int:
        """Steps, and the evaluation of the start."""
        return self._iterations + 1

    def init(self, row: Tensor, trial: Tensor) -> APGDState:
        """A random start on the sphere, clipped to the box."""
        common = self.initial(row, trial)
        clean, eps = common["clean"], self.ball.eps
        point = (clean + eps * self._normalised(self._noise(common))).clamp(0.0, 1.0)
        fields = self.begun(common, point, 2.0 * eps)
        own, none = fields["best_loss"], clean[:, :0]
        linf = self.ball.norm == "Linf"
        return APGDState(
            **fields,
            low=(clean - eps).clamp_min(0.0) if linf else none,
            high=(clean + eps).clamp_max(1.0) if linf else none,
            previous=point.clone(),
            last_loss=torch.zeros_like(own, dtype=torch.float32),
            rises=torch.zeros_like(own, dtype=torch.float32),
            checked_loss=own.clone(),
            reduced=torch.ones_like(own, dtype=torch.bool),
        )

    def _noise(self, state: dict[str, Tensor]) -> Tensor:
        where = state["row"], state["trial"], state["iteration"]
        shape = tuple(state["clean"].shape[1:])
        if self.ball.norm == "Linf":
            return 2.0 * self.rng.uniform(*where, shape, stream=0) - 1.0
        return self.rng.normal(*where, shape, stream=0)

    def advance(self, state: APGDState, loss: Tensor, gradient: Tensor, start: Tensor) -> None:
        """Look whether a step is to be halved, and make one."""
        state.checked_loss = torch.where(start, loss, state.checked_loss)
        # Upstream compares losses in float32, and the first of them with zero instead of the start's.
        now = loss.float()
        state.rises = state.rises + (~start & (now > state.last_loss))
        state.last_loss = torch.where(start, torch.zeros_like(now), now)

        back = self._check(state)
        point = torch.where(wide(back, state.best), state.best, state.point)
        gradient = torch.where(wide(back, gradient), state.best_gradient, gradient)
        state.previous, state.point = point, self._move(state, point, gradient, start)

    def _check(self, state: APGDState) -> Tensor:
        """Which rows halve their step and go back to their best point, bool [B]."""
        window = self._window[state.iteration]
        checked = window > 0
        stalls = state.rises <= window * _RISES
        no_gain = ~state.reduced & (state.checked_loss >= state.best_loss)
        back = checked & (stalls | no_gain)
        state.reduced = torch.where(checked, back, state.reduced)
        state.checked_loss = torch.where(checked, state.best_loss, state.checked_loss)
        state.rises = torch.where(checked, torch.zeros_like(state.rises), state.rises)
        state.step = torch.where(back, state.step / 2.0, state.step)
        return back

    def _move(self, state: APGDState, point: Tensor, gradient: Tensor, start: Tensor) -> Tensor:
        """Steepest ascent, then momentum, each projected (algorithm 1, lines 7 and 8)."""
        share = wide(torch.where(start, 1.0, _MOMENTUM), point)
        momentum = (point - state.previous) * (1.0 - share)
        step = wide(state.step, point)
        if self.ball.norm == "Linf":
            ascended = (point + step * gradient.sign()).clamp(state.low, state.high)
            return (point + (ascended - point) * share + momentum).clamp(state.low, state.high)
        ascended = self._into_l2(point + step * self._normalised(gradient), state.clean)
        return self._into_l2(point + (ascended - point) * share + momentum, state.clean)

    def _into_l2(self, point: Tensor, clean: Tensor) -> Tensor:
        delta = point - clean
        length = norms(delta, "L2")
        direction = delta / (wide(length, delta) + _TINY)
        return (clean + direction * wide(length.clamp_max(self.ball.eps), delta)).clamp(0.0, 1.0)

    def _normalised(self, images: Tensor) -> Tensor:
        return images / (wide(norms(images, self.ball.norm), images) + _TINY)
