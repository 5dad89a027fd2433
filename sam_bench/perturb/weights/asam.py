"""Adaptive sharpness-aware minimization."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from pydantic import Field
from torch import Tensor

from sam_bench.perturb.weights.ascent import scale_to
from sam_bench.perturb.weights.base import WEIGHT_PERTURBATIONS
from sam_bench.perturb.weights.groups import GroupedAscent
from sam_bench.perturb.weights.loss import BatchLoss


@WEIGHT_PERTURBATIONS.register("asam")
class ASAM(GroupedAscent):
    """SAM in a ball that scales with the weights (Kwon et al. 2021, arXiv 2102.11600).

    `e = rho T^2 g / ||T g||` with `T = |w| + eta` for tensors whose name says weight, BatchNorm's
    included, and 1 for the others: the worst case to first order under `||T^-1 e|| <= rho`.
    """

    rho: float = Field(default=0.5, ge=0, description="radius of the ascent, relative to the size of each weight")
    eta: float = Field(default=0.01, ge=0, description="added to each weight's size, so that a zero can move")

    def perturbation(self, batch: BatchLoss, parameters: Sequence[Tensor], gradients: list[Tensor]) -> None:
        """`rho T^2 g / ||T g||`."""
        named = {id(parameter) for name, parameter in batch.model.named_parameters() if "weight" in _last(name)}
        pairs = [pair for pair in zip(parameters, gradients, strict=True) if id(pair[0]) in named]
        scaled = [gradient for _, gradient in pairs]
        if not scaled:
            scale_to(gradients, self.rho)
            return
        sizes = torch._foreach_abs([parameter.detach() for parameter, _ in pairs])
        if self.eta:
            torch._foreach_add_(sizes, self.eta)
        torch._foreach_mul_(scaled, sizes)
        scale_to(gradients, self.rho)
        torch._foreach_mul_(scaled, sizes)


def _last(name: str) -> str:
    return name.rpartition(".")[2]
