"""Friendly SAM."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from pydantic import Field
from torch import Tensor

from sam_bench.perturb.weights.ascent import scale_to
from sam_bench.perturb.weights.base import WEIGHT_PERTURBATIONS
from sam_bench.perturb.weights.loss import BatchLoss
from sam_bench.perturb.weights.running_mean import RunningMeanAscent


@WEIGHT_PERTURBATIONS.register("fsam-friendly")
class FriendlySAM(RunningMeanAscent):
    """Friendly SAM (Li et al. 2024, arXiv 2403.12350).

    `e = rho d / ||d||` with `d = g - sigma mean`: the ascent follows what this minibatch has beyond the others.
    The mean stands for the gradient of all examples: `mean <- lambda mean + (1 - lambda) g` after the step's `d`
    is taken. The first step, which has no mean yet, is SAM's. With sigma 0 all are.
    """

    mean_weight: float = Field(
        default=1.0, ge=0, description="share of the running mean that is taken off (the paper's sigma)"
    )
    mean_decay: float = Field(
        default=0.9, ge=0, lt=1, description="what the running mean keeps at a step (the paper's lambda)"
    )

    def perturbation(self, batch: BatchLoss, parameters: Sequence[Tensor], gradients: list[Tensor]) -> None:
        """`rho d / ||d||`."""
        first = not self._mean
        mean = self.mean_before(gradients)
        if not first:
            newest = [each.clone() for each in gradients]
            torch._foreach_add_(gradients, mean, alpha=-self.mean_weight)
            torch._foreach_lerp_(mean, newest, 1 - self.mean_decay)
        scale_to(gradients, self.rho)
