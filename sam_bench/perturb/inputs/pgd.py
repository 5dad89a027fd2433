"""Projected gradient descent: adversarial training as it is meant by default."""

from __future__ import annotations

from typing import Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from sam_bench import graphs
from sam_bench.perturb.ball import Ball, normal
from sam_bench.perturb.inputs.base import INPUT_PERTURBATIONS, GradientAscent
from sam_bench.perturb.inputs.losses import LossPerExample, cross_entropy, input_gradient, kl_divergence
from sam_bench.records import RadiusGiven

_TRADES_START = 1e-3  # standard deviation of TRADES' start


def check_restarts(restarts: int, *, random_start: bool) -> None:
    """Refuse to go the same way twice.

    Raises:
        ValueError: More than one restart without random starts.
    """
    if restarts > 1 and not random_start:
        raise ValueError(
            "restarts: more than one needs random_start: from the clean input all are the same; give restarts 1"
        )


@INPUT_PERTURBATIONS.register("pgd")
class PGD(GradientAscent):
    """Projected gradient descent: adversarial training (Madry et al. 2018, equation 2.1).

    With `loss: kl` and `start: gaussian` the search of TRADES (Zhang et al. 2019, algorithm 1).
    """

    steps: int = Field(default=10, ge=1, description="steps of the ascent")
    step_size: RadiusGiven | None = Field(default=None, description="length of a step; default: eps/4")
    random_start: bool = Field(default=True, description="start at a random point of the ball")
    start: Literal["uniform", "gaussian"] = Field(
        default="uniform",
        description="how a random start is drawn: from the whole ball (uniform), or .001 N(0, 1) around the input "
        "(gaussian, as TRADES does)",
    )
    restarts: int = Field(default=1, ge=1, description="random starts; each example keeps where its loss is highest")
    iterate: Literal["last", "best"] = Field(
        default="last",
        description="which point of an ascent is taken: the last, or the one of highest loss for a forward pass more",
    )
    loss: Literal["cross-entropy", "kl"] = Field(
        default="cross-entropy",
        description="what is climbed: cross-entropy, or the KL divergence from the prediction at the clean input",
    )

    @model_validator(mode="after")
    def _check(self) -> PGD:
        if self.loss == "kl" and not self.random_start:
            raise ValueError("loss: kl needs random_start: at the clean input its slope is zero")
        check_restarts(self.restarts, random_start=self.random_start)
        return self

    @property
    def passes(self) -> tuple[int, int]:
        """One gradient of the input a step; one look at an end that is compared; one at the clean input for KL."""
        ends = self.restarts if self._compares else 0
        return (self.restarts * self.steps + ends + (self.loss == "kl"), self.restarts * self.steps)

    @property
    def _compares(self) -> bool:
        return self.iterate == "best" or self.restarts > 1

    def perturb(self, model: nn.Module, x: Tensor, y: Tensor, *, generator: torch.Generator) -> Tensor:
        """Where the ascent ends; of several points that are compared, the one of highest loss."""
        with self._searching(model):
            loss = self._climbed(model, x)
            if not self._compares:
                return self._ascend(model, x, y, loss, start=self.starting_points(x, generator=generator))
            best = _Highest()
            for _ in range(self.restarts):
                seen = best if self.iterate == "best" else None
                end = self._ascend(model, x, y, loss, start=self.starting_points(x, generator=generator), seen=seen)
                with torch.no_grad():
                    best.offer(end, loss(model(end), y))
            return best.points

    def starting_points(self, x: Tensor, *, generator: torch.Generator) -> Tensor:
        """Where the first ascent begins."""
        if not self.random_start:
            return x
        if self.start == "uniform":
            return self.ball.sample(x, generator)
        return self.ball.project(x + _TRADES_START * normal(x.shape, x, generator), x)

    def _climbed(self, model: nn.Module, x: Tensor) -> LossPerExample:
        if self.loss == "cross-entropy":
            return cross_entropy
        with torch.no_grad():
            clean = model(x)
        return lambda logits, _: kl_divergence(clean, logits)

    def _ascend(
        self,
        model: nn.Module,
        x: Tensor,
        y: Tensor,
        loss: LossPerExample,
        *,
        start: Tensor,
        seen: _Highest | None = None,
    ) -> Tensor:
        x_adv = start
        size = float(self.eps) / 4 if self.step_size is None else float(self.step_size)
        # What is differentiated by `torch.func` cannot move statistics.
        whole = seen is None and self.bn_mode != "update"
        for _ in range(self.steps):
            if whole:
                moved = graphs.in_one_graph(_moved, model, x_adv, x, y, loss, self.ball, size)
                if moved is not None:
                    x_adv = moved
                    continue
            logits, gradient = input_gradient(model, x_adv, y, loss)
            if seen is not None:
                seen.offer(x_adv, loss(logits, y))
            x_adv = self.ball.step(x_adv, x, gradient, size)
        return x_adv


def _moved(
    model: nn.Module, x_adv: Tensor, x: Tensor, y: Tensor, loss: LossPerExample, ball: Ball, size: float
) -> Tensor:
    """A step of the ascent, as `torch.compile` takes it whole: without autograd around it."""

    def climbed(at: Tensor) -> Tensor:
        return loss(model(at), y).sum()

    return ball.step(x_adv, x, torch.func.grad(climbed)(x_adv), size)


class _Highest:
    """Of the points offered for each example, the first with the highest loss."""

    points: Tensor

    def __init__(self) -> None:
        self._losses: Tensor | None = None

    def offer(self, points: Tensor, losses: Tensor) -> None:
        if self._losses is None:
            self.points, self._losses = points, losses
            return
        higher = losses > self._losses
        self.points = torch.where(higher.view(-1, *[1] * (points.dim() - 1)), points, self.points)
        self._losses = torch.where(higher, losses, self._losses)
