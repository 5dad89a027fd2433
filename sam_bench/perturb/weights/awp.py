"""Adversarial weight perturbation."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from pydantic import Field
from torch import Tensor, nn

from sam_bench.errors import InputError
from sam_bench.perturb.weights.base import WEIGHT_PERTURBATIONS
from sam_bench.perturb.weights.groups import GroupedAscent
from sam_bench.perturb.weights.loss import BatchLoss


@WEIGHT_PERTURBATIONS.register("awp")
class AWP(GroupedAscent):
    """Adversarial weight perturbation (Wu et al. 2020, arXiv 2004.05884).

    Each tensor of two or more dimensions moves uphill by a share of its own norm:
    `e_l = rho ||w_l|| g_l / ||g_l||`, `g` the gradient of the objective at the perturbed inputs.
    Biases and BatchNorm's parameters stay. Weight decay acts on `w`; in the authors' code it acts on
    `w + e`.
    """

    rho: float = Field(
        default=0.01, ge=0, description="length of the ascent as a share of each tensor's norm (the paper's gamma)"
    )

    def perturbed_parameters(self, model: nn.Module) -> list[nn.Parameter]:
        """Tensors of two or more dimensions among those that may be perturbed."""
        parameters = super().perturbed_parameters(model) or [each for each in model.parameters() if each.requires_grad]
        found = [parameter for parameter in parameters if parameter.dim() > 1]
        if not found:
            raise InputError(
                "does not fit: awp moves tensors of two or more dimensions, and there is none",
                field="perturb_only",
                value=self.perturb_only,
                hint="choose all, all-but-bn, all-but-norm or last",
            )
        return found

    def perturbation(self, batch: BatchLoss, parameters: Sequence[Tensor], gradients: list[Tensor]) -> None:
        """`rho ||w_l|| g_l / ||g_l||`."""
        lengths = torch._foreach_norm([parameter.detach() for parameter in parameters])
        slopes = torch._foreach_norm(gradients)
        torch._foreach_add_(slopes, 1e-12)
        torch._foreach_div_(lengths, slopes)
        torch._foreach_mul_(lengths, self.rho)
        torch._foreach_mul_(gradients, lengths)
