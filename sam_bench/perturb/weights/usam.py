"""SAM without normalisation."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from pydantic import Field
from torch import Tensor

from sam_bench.perturb.weights.base import WEIGHT_PERTURBATIONS
from sam_bench.perturb.weights.groups import GroupedAscent
from sam_bench.perturb.weights.loss import BatchLoss


@WEIGHT_PERTURBATIONS.register("usam")
class USAM(GroupedAscent):
    """SAM whose ascent is not normalised (Andriushchenko, Flammarion 2022, arXiv 2206.06232): `e = rho g`.

    Where the gradient vanishes so does the ascent; SAM's keeps its length there.
    """

    rho: float = Field(default=0.1, ge=0, description="step of the ascent along the gradient")

    def perturbation(self, batch: BatchLoss, parameters: Sequence[Tensor], gradients: list[Tensor]) -> None:
        """`rho g`."""
        torch._foreach_mul_(gradients, self.rho)
