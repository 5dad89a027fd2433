"""PGD on the margin, with Adam and many starts: a strong attack that shares neither loss nor steps with AutoAttack."""

from __future__ import annotations

import torch
from pydantic import Field
from torch import Tensor

from sam_bench.attacks.autoattack import losses
from sam_bench.attacks.base import ATTACKS
from sam_bench.attacks.gradient import RestartedAscent, Steps
from sam_bench.perturb.ball import Ball
from sam_bench.perturb.inputs import LossPerExample

_MEMORY = 0.9, 0.999  # Adam's beta 1 and beta 2
_TINY = 1e-12
# Published for Linf 8/255 as .1, a tenth of it from half of the steps, a hundredth of that from three quarters.
_SIZES = ((0.0, 0.1), (0.5, 0.01), (0.75, 0.0001))
_PUBLISHED_EPS = 8 / 255


class AdamSteps:
    """Adam (Kingma and Ba 2015) inside a ball, its step falling as the ascent goes on.

    In Linf each coordinate is scaled by the mean square of its own gradient; in L2 all of an example's
    are scaled by the mean square of their norm, so that a step has the length asked for in either norm.

    Args:
        ball: Where to move.
        steps: How many there will be.
    """

    def __init__(self, ball: Ball, steps: int) -> None:
        self._ball, self._steps, self._done = ball, steps, 0
        self._mean = self._square = torch.zeros(())

    def size(self) -> float:
        """Length of the next step: the published ones are in proportion to the radius."""
        share = self._done / self._steps
        return [size for begin, size in _SIZES if share >= begin][-1] / _PUBLISHED_EPS * self._ball.eps

    def move(self, x_adv: Tensor, x: Tensor, gradient: Tensor) -> Tensor:
        """See `Steps.move`."""
        gradient = self._ball.usable(gradient)
        size, square = self.size(), gradient.square()
        if self._ball.norm == "L2":
            square = square.flatten(1).sum(1).view(-1, *[1] * (gradient.dim() - 1))
        if not self._done:
            self._mean, self._square = torch.zeros_like(gradient), torch.zeros_like(square)
        self._done += 1
        self._mean = self._mean.lerp(gradient, 1 - _MEMORY[0])
        self._square = self._square.lerp(square, 1 - _MEMORY[1])
        mean, square = self._mean / (1 - _MEMORY[0] ** self._done), self._square / (1 - _MEMORY[1] ** self._done)
        return self._ball.project(x_adv + size * mean / (square.sqrt() + _TINY), x)

    def keep(self, rows: Tensor) -> None:
        """See `Steps.keep`."""
        if self._done:
            self._mean, self._square = self._mean[rows], self._square[rows]


@ATTACKS.register("pgd-margin")
class PGDMarginAttack(RestartedAscent):
    """PGD with Adam on the margin, the largest wrong logit less the right one, from ten starts.

    Loss, optimiser and falling steps are those of the evaluation code that Gowal et al. published (2020, arXiv
    2010.03593; 2019, arXiv 1910.09338, compares such choices). Their steps, given for Linf 8/255, are taken
    in proportion to the radius here, and carried over to L2.
    """

    steps: int = Field(default=100, ge=1, description="steps of the ascent")
    restarts: int = Field(default=10, ge=1, description="random starts tried for each example")

    @property
    def loss(self) -> LossPerExample:
        """Positive where the example is misclassified."""
        return lambda logits, y: -losses.margin(logits, y)

    def steps_in(self, ball: Ball) -> Steps:
        """Adam's, falling."""
        return AdamSteps(ball, self.steps)
