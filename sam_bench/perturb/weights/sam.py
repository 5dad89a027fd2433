"""Sharpness-aware minimization."""

from __future__ import annotations

import torch
from pydantic import Field
from torch import Tensor

from sam_bench.perturb.weights.base import WEIGHT_PERTURBATIONS, WeightPerturbation, displaced, global_norm
from sam_bench.perturb.weights.loss import BatchLoss


@WEIGHT_PERTURBATIONS.register("sam")
class SAM(WeightPerturbation):
    """Sharpness-aware minimization (Foret et al. 2021, equations 2 and 3).

    The gradient is taken at `w + rho g / ||g||`, the norm running over all parameters together.
    BatchNorm's running statistics see the batch once, at `w`.
    """

    rho: float = Field(default=0.05, ge=0, description="radius of the ascent in weight space (L2 over all parameters)")

    @property
    def passes(self) -> tuple[float, float]:
        """Two gradients a step."""
        return (2, 2)

    def differentiate(self, batch: BatchLoss) -> Tensor:
        """The gradient at the perturbed weights."""
        loss = batch.differentiate(ascent=True)
        parameters, ascent = batch.gradients()
        # The scale stays on the device: no synchronisation. The gradients themselves become the
        # perturbation, since the second pass replaces them.
        torch._foreach_mul_(ascent, self.rho / (global_norm(ascent) + 1e-12))
        with displaced(parameters, ascent):
            batch.differentiate(keep_statistics=True)
        return loss
