"""Sharpness-aware minimization."""

from __future__ import annotations

from collections.abc import Sequence

from pydantic import Field
from torch import Tensor

from sam_bench.perturb.weights.ascent import scale_to
from sam_bench.perturb.weights.base import WEIGHT_PERTURBATIONS
from sam_bench.perturb.weights.groups import GroupedAscent
from sam_bench.perturb.weights.loss import BatchLoss


@WEIGHT_PERTURBATIONS.register("sam")
class SAM(GroupedAscent):
    """Sharpness-aware minimization (Foret et al. 2021, arXiv 2010.01412, equations 2 and 3).

    The gradient is taken at `w + rho g / ||g||`, the norm running over all perturbed parameters
    together. BatchNorm's running statistics see the batch once, at `w`.
    """

    rho: float = Field(default=0.05, ge=0, description="radius of the ascent in weight space (L2 over all parameters)")

    def perturbation(self, batch: BatchLoss, parameters: Sequence[Tensor], gradients: list[Tensor]) -> None:
        """`rho g / ||g||`."""
        scale_to(gradients, self.rho)
