"""SAM with variance suppression."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from pydantic import Field
from torch import Tensor

from sam_bench.perturb.weights.ascent import scale_to
from sam_bench.perturb.weights.base import WEIGHT_PERTURBATIONS
from sam_bench.perturb.weights.loss import BatchLoss
from sam_bench.perturb.weights.running_mean import RunningMeanAscent


@WEIGHT_PERTURBATIONS.register("vasso")
class VaSSO(RunningMeanAscent):
    """Variance suppressed SAM (Li, Giannakis 2023, arXiv 2309.15639, algorithm 2).

    `e = rho d / ||d||` with `d <- (1 - theta) d + theta g`, a running mean of the minibatches' gradients, which
    varies less from step to step than each of them. It begins with the first gradient. With theta 1 it is SAM.
    """

    theta: float = Field(default=0.9, gt=0, le=1, description="weight of the newest gradient in the running mean")

    def perturbation(self, batch: BatchLoss, parameters: Sequence[Tensor], gradients: list[Tensor]) -> None:
        """`rho d / ||d||`."""
        mean = self.mean_before(gradients)
        torch._foreach_lerp_(mean, gradients, self.theta)
        torch._foreach_copy_(gradients, mean)
        scale_to(gradients, self.rho)
