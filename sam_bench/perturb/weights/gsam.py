"""Surrogate gap guided SAM."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from pydantic import Field
from torch import Tensor

from sam_bench.perturb.weights.ascent import scale_to
from sam_bench.perturb.weights.base import WEIGHT_PERTURBATIONS, inner_product
from sam_bench.perturb.weights.groups import GroupedAscent
from sam_bench.perturb.weights.loss import BatchLoss
from sam_bench.perturb.weights.mixed import two_gradients


@WEIGHT_PERTURBATIONS.register("gsam")
class GSAM(GroupedAscent):
    """Surrogate gap guided SAM (Zhuang et al. 2022, arXiv 2203.08065, algorithm 1).

    `g' - alpha g_o`, where `g_o = g - <g, g'> / ||g'||^2 g'` is the part of the plain gradient that is orthogonal
    to SAM's. Going up along it lowers the gap between the perturbed loss and the plain one, to first order without
    a change of the perturbed loss. With alpha 0 it is SAM. The radius is constant.
    """

    rho: float = Field(default=0.05, ge=0, description="radius of the ascent in weight space (L2 over all parameters)")
    alpha: float = Field(default=0.4, ge=0, description="weight of the step that lowers the surrogate gap")

    def due(self, batch: BatchLoss) -> bool:
        """Not at radius 0, where both gradients are one."""
        return self.rho > 0 and super().due(batch)

    def perturbation(self, batch: BatchLoss, parameters: Sequence[Tensor], gradients: list[Tensor]) -> None:
        """`rho g / ||g||`."""
        scale_to(gradients, self.rho)

    def perturbed_step(self, batch: BatchLoss) -> Tensor:
        """`g' - alpha g_o`; the loss at `w`."""
        found = two_gradients(self, batch)
        plain, sharp = found.plain, found.sharp
        along = inner_product(plain, sharp) / (inner_product(sharp, sharp) + 1e-30)
        torch._foreach_mul_(sharp, 1 + self.alpha * along)
        torch._foreach_add_(sharp, plain, alpha=-self.alpha)
        if not batch.runner.sync_ascent:
            batch.runner.average(sharp)
        return found.loss
