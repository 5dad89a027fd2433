"""Fisher SAM."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from pydantic import Field
from torch import Tensor

from sam_bench.perturb.weights.base import WEIGHT_PERTURBATIONS
from sam_bench.perturb.weights.groups import GroupedAscent
from sam_bench.perturb.weights.loss import BatchLoss


@WEIGHT_PERTURBATIONS.register("fsam")
class FisherSAM(GroupedAscent):
    """SAM in the ellipsoid of the Fisher information (Kim et al. 2022, arXiv 2206.04920).

    `e = rho F^-1 g / sqrt(g' F^-1 g)` with the diagonal `F = 1 + eta g^2`, where `g` is the
    batch's gradient instead of single examples': the worst case to first order under `e' F e <= rho^2`.
    """

    rho: float = Field(default=0.1, ge=0, description="radius of the ascent in the Fisher norm (the paper's gamma)")
    eta: float = Field(default=1.0, ge=0, description="weight of the Fisher information beside the identity; 0 is SAM")

    def perturbation(self, batch: BatchLoss, parameters: Sequence[Tensor], gradients: list[Tensor]) -> None:
        """`rho F^-1 g / sqrt(g' F^-1 g)`."""
        squares = torch._foreach_mul(gradients, gradients)
        fisher = torch._foreach_mul(squares, self.eta)
        torch._foreach_add_(fisher, 1.0)
        # g' F^-1 g is the sum of g^2 / F, none of which is negative: the L1 norm adds them up.
        torch._foreach_div_(squares, fisher)
        form = torch.stack(torch._foreach_norm(squares, 1)).sum()
        torch._foreach_div_(gradients, fisher)
        torch._foreach_mul_(gradients, self.rho / (form.sqrt() + 1e-12))
