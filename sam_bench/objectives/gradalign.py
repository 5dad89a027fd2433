"""GradAlign: gradients that point the same way all over the ball."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from sam_bench.objectives.base import OBJECTIVES, Objective
from sam_bench.objectives.slopes import loss_and_slope
from sam_bench.perturb.inputs import at_least_float32
from sam_bench.perturb.weights import Score


@OBJECTIVES.register("gradalign")
class GradAlign(Objective):
    """CE(x') + weight (1 - cos(slope at x, slope at x + eta)) (Andriushchenko, Flammarion 2020, arXiv 2007.02617).

    A slope is the gradient of the cross-entropy with respect to the input, and `eta` is uniform in the Linf ball
    in which `x'` lies: its radius is the largest distance of a pixel of `x'` from `x`. One-step training overfits
    to its step where slopes turn within the ball; this penalty keeps them aligned. As in the authors' code, the slope
    at `x` is held fixed. An example whose slope is zero at either point has no penalty.
    """

    compares_inputs = True
    differentiates_slopes = True

    align_weight: float = Field(
        default=0.2, ge=0, description="weight of the misalignment of slopes (the paper's lambda)"
    )
    label_smoothing: float = Field(default=0.0, ge=0, lt=1, description="share of a label spread over all classes")

    @property
    def passes(self) -> tuple[int, int]:
        """A slope at each of two points, of which one is differentiated; and the perturbed inputs."""
        return (3, 4)

    @property
    def slopes(self) -> int:
        """At the clean inputs and at noisy ones."""
        return 2

    @property
    def weight_gradients(self) -> int:
        """All but the slope that is held fixed."""
        return 3

    def losses(self, score: Score, x: Tensor, x_adv: Tensor, y: Tensor) -> Tensor:
        """Cross-entropy at the perturbed inputs, and the misalignment of the slopes around the clean ones."""
        _, here = loss_and_slope(score, x, y, differentiable=False)
        radius = (x_adv - x).detach().abs().flatten(1).amax(1).view(-1, *[1] * (x.dim() - 1))
        # From the global stream, like dropout: the training step seeds it for every pass.
        noise = radius * (2 * torch.rand_like(x) - 1)
        _, there = loss_and_slope(score, (x + noise).clamp(0.0, 1.0), y, differentiable=True)
        logits = at_least_float32(score(x_adv))
        losses = F.cross_entropy(logits, y, label_smoothing=self.label_smoothing, reduction="none")
        return losses + self.align_weight * misalignment(here, there)


def misalignment(one: Tensor, other: Tensor) -> Tensor:
    """1 - cos of each pair of rows, [B]; 0 where either is zero.

    Args:
        one: [B, ...].
        other: The same shape.
    """
    first, second = one.flatten(1), other.flatten(1)
    moving = first.ne(0).any(1) & second.ne(0).any(1)
    # Scaled before their norms: the square of the slope of a learned example is nothing in float32.
    first, second = (
        torch.where(moving[:, None], each, 1.0) / torch.where(moving, each.detach().abs().amax(1), 1.0)[:, None]
        for each in (first, second)
    )
    cosine = (first * second).sum(1) / (first.norm(dim=1) * second.norm(dim=1))
    return torch.where(moving, 1 - cosine, 0.0)
