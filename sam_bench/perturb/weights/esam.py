"""Efficient SAM."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from pydantic import Field
from torch import Tensor, nn

from sam_bench.perturb.weights.ascent import scale_to
from sam_bench.perturb.weights.base import WEIGHT_PERTURBATIONS
from sam_bench.perturb.weights.groups import GroupedAscent
from sam_bench.perturb.weights.loss import BatchLoss
from sam_bench.seeds import generator


@WEIGHT_PERTURBATIONS.register("esam")
class ESAM(GroupedAscent):
    """Efficient SAM (Du et al. 2022, arXiv 2110.03141): both its halves save work.

    Stochastic weight perturbation: each tensor is perturbed with probability `tensor_share`, by
    `rho / tensor_share` along the normalised gradient of those chosen; the gradients of the others are
    not computed. Sharpness-sensitive data selection: a forward pass at the perturbed weights finds the
    share of the examples whose loss rose most, and only these are differentiated there. With both
    shares at 1 it is SAM.
    """

    rho: float = Field(default=0.05, ge=0, description="radius of the ascent in weight space (L2 over all parameters)")
    tensor_share: float = Field(
        default=0.6, gt=0, le=1, description="probability that a tensor is perturbed (the paper's beta)"
    )
    example_share: float = Field(
        default=0.5,
        gt=0,
        le=1,
        description="share of the examples in the second gradient (the paper's gamma), at least two",
    )

    @property
    def passes(self) -> tuple[float, float]:
        """A gradient of all; then a forward pass of all and a gradient of the chosen examples."""
        looks = 1 if self.example_share < 1 else 0
        return (1 + (looks + self.example_share) / self.interval, 1 + self.example_share / self.interval)

    def chosen(self, batch: BatchLoss) -> list[nn.Parameter] | None:
        """Tensors drawn for this step, at least one; the same on every device."""
        allowed = super().chosen(batch)
        if self.tensor_share == 1:
            return allowed
        allowed = batch.parameters if allowed is None else allowed
        # Drawn on the host: which gradients are computed must be known without asking the device.
        draws = torch.rand(len(allowed), generator=generator(batch.at.seed, "weights", batch.at.step)).tolist()
        bar = max(self.tensor_share, min(draws, default=0.0))
        return [parameter for parameter, draw in zip(allowed, draws, strict=True) if draw <= bar]

    def perturbation(self, batch: BatchLoss, parameters: Sequence[Tensor], gradients: list[Tensor]) -> None:
        """`rho / tensor_share g / ||g||`."""
        scale_to(gradients, self.rho / self.tensor_share)

    def descent_gradient(self, batch: BatchLoss) -> None:
        """The gradient of the examples whose loss rose most."""
        if self.example_share == 1:
            super().descent_gradient(batch)
            return
        before = batch.losses
        rise = batch.evaluate(update_bn=False, each=True) - before
        # At least two where there are as many: BatchNorm cannot normalise a single example.
        count = max(min(2, len(batch)), math.ceil(self.example_share * len(batch)))
        rows = rise.topk(count, sorted=False).indices
        batch.backward(rows=rows, share=self.example_share, update_bn=self.bn_second_pass == "update")
