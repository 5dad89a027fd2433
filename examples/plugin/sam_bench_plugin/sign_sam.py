"""SAM in the maximum norm."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from pydantic import Field
from torch import Tensor

from sam_bench.perturb.weights import BatchLoss
from sam_bench.perturb.weights.ascent import Ascent


class SignSAM(Ascent):
    """`e = rho sign(g)`: SAM whose ball is a cube (Foret et al. 2021, equation 2 with p infinite).

    Every field is a setting: it can be written in a recipe, is an option of `sam-bench train` with its
    description as help, is checked, and is stored on the model's card. `start_epoch`, `interval`,
    `perturb_only` and `bn_second_pass` come with the base class.
    """

    rho: float = Field(default=0.001, ge=0, description="length of the ascent in every weight")

    def perturbation(self, batch: BatchLoss, parameters: Sequence[Tensor], gradients: list[Tensor]) -> None:
        """Turn the gradients into the perturbation, in place."""
        torch._foreach_sign_(gradients)
        torch._foreach_mul_(gradients, self.rho)
