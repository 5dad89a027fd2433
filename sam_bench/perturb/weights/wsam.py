"""Weighted sharpness-aware minimization."""

from __future__ import annotations

import torch
from pydantic import Field
from torch import Tensor

from sam_bench.perturb.weights.base import WEIGHT_PERTURBATIONS
from sam_bench.perturb.weights.mixed import MixedGradients


@WEIGHT_PERTURBATIONS.register("wsam")
class WSAM(MixedGradients):
    """SAM with a weight on its sharpness (Yue et al. 2023, arXiv 2305.15817, equation of L^WSAM).

    The gradient of `L(w) + c (L(w + e) - L(w))` with `c = gamma / (1 - gamma)`: `g + c (g' - g)`. Gamma 0 is the
    base optimizer and 1/2 is SAM; beyond 1/2 the sharpness counts more than the loss. The optimizer gets the
    whole of it (Coupled-WSAM in the paper).
    """

    sharpness_weight: float = Field(
        default=0.9, ge=0, lt=1, description="weight of the sharpness (the paper's gamma): 0.5 is SAM"
    )

    def mix(self, sharp: list[Tensor], plain: list[Tensor]) -> None:
        """`g + c (g' - g)`."""
        torch._foreach_lerp_(sharp, plain, 1 - self.sharpness_weight / (1 - self.sharpness_weight))
