"""Loss-equated SAM."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from pydantic import Field
from torch import Tensor

from sam_bench.perturb.weights.base import WEIGHT_PERTURBATIONS, global_norm
from sam_bench.perturb.weights.groups import GroupedAscent
from sam_bench.perturb.weights.loss import BatchLoss


@WEIGHT_PERTURBATIONS.register("le-sam")
class LESAM(GroupedAscent):
    """SAM whose ascent raises the loss by a fixed amount (Wang et al. 2026, arXiv 2605.10183).

    `e = r g / ||g||` with `r = min(sigma / ||g||, rho_max)`: to first order the loss rises by sigma in every step,
    however long the gradient. Until the share `full_from` of the run, sigma grows from 0. From the share `decay_from`
    on, it falls to 0 along a cosine.
    """

    rho: float = Field(default=0.35, ge=0, description="rise of the loss by the ascent, to first order (paper: sigma)")
    rho_max: float | None = Field(
        default=None, gt=0, description="longest ascent in weight space (L2 over all parameters); no limit if not given"
    )
    full_from: float = Field(
        default=0.05,
        ge=0,
        le=1,
        description="share of the run from which the rise of the loss is `rho`; it grows from 0 until then",
    )
    decay_from: float = Field(
        default=0.8, ge=0, le=1, description="share of the run after which the rise of the loss falls to 0"
    )

    def perturbation(self, batch: BatchLoss, parameters: Sequence[Tensor], gradients: list[Tensor]) -> None:
        """`min(sigma / ||g||, rho_max) g / ||g||`."""
        norm = global_norm(gradients) + 1e-12
        radius = self.budget(batch) / norm
        if self.rho_max is not None:
            radius = radius.clamp(max=self.rho_max)
        torch._foreach_mul_(gradients, radius / norm)

    def budget(self, batch: BatchLoss) -> float:
        """Sigma at this step."""
        rho, progress = self.rho, batch.at.progress
        if progress < self.full_from:
            rho *= progress / self.full_from
        if progress > self.decay_from:
            rho *= (1 + math.cos(math.pi * (progress - self.decay_from) / (1 - self.decay_from))) / 2
        return rho
