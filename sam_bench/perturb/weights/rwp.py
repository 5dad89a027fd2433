"""Random weight perturbation."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from pydantic import Field
from torch import Tensor

from sam_bench.perturb.weights.ascent import Ascent
from sam_bench.perturb.weights.base import WEIGHT_PERTURBATIONS, displaced, draw_normal
from sam_bench.perturb.weights.loss import BatchLoss


@WEIGHT_PERTURBATIONS.register("rwp")
class RWP(Ascent):
    """Filter-wise random weight perturbation, mixed with the plain loss (Li et al. 2022, arXiv 2211.11489).

    The gradient of `(1 - lambda) L(w) + lambda L(w + e)`. Each weight of a filter `F` moves by Gaussian noise with
    the standard deviation `rho ||w_F||`. A filter is what makes one output: a row of a matrix, a slice of a
    convolution; a vector counts as one. No gradient is needed to make `e`. With lambda 0 it is the base optimizer.
    With lambda 1 only a forward pass is run at `w`, for the loss there and BatchNorm's statistics.
    """

    rho: float = Field(
        default=0.01, ge=0, description="deviation of the noise as a share of each filter's norm (the paper's gamma)"
    )
    noisy_weight: float = Field(
        default=0.5, ge=0, le=1, description="weight of the loss at the perturbed weights (the paper's lambda)"
    )

    @property
    def passes(self) -> tuple[float, float]:
        """Two gradients; one where only one of the losses counts."""
        if self.noisy_weight == 0:
            return (1, 1)
        return (1 + 1 / self.interval, 1 if self.noisy_weight == 1 else 1 + 1 / self.interval)

    def due(self, batch: BatchLoss) -> bool:
        """Not where the perturbed loss has no weight."""
        return self.noisy_weight > 0 and super().due(batch)

    def perturbed_step(self, batch: BatchLoss) -> Tensor:
        """`(1 - lambda) g(w) + lambda g(w + e)`."""
        mixed = self.noisy_weight < 1
        loss = batch.backward().loss if mixed else batch.evaluate().mean()
        plain = batch.gradients()[1] if mixed else []
        chosen = self.chosen(batch)
        parameters: Sequence[Tensor] = batch.parameters if chosen is None else chosen
        noise = draw_normal(parameters, batch.at.seed, batch.at.step)
        self.perturbation(batch, parameters, noise)
        with displaced(parameters, noise):
            self.descent_gradient(batch)
        if mixed:
            torch._foreach_lerp_(batch.gradients()[1], plain, 1 - self.noisy_weight)
        return loss

    def perturbation(self, batch: BatchLoss, parameters: Sequence[Tensor], gradients: list[Tensor]) -> None:
        """Standard normal noise times `rho ||w_F||`, in the place of the gradients."""
        torch._foreach_mul_(gradients, [self.rho * filter_norms(parameter.detach()) for parameter in parameters])


def filter_norms(weight: Tensor) -> Tensor:
    """L2 norm of each filter of a tensor, of a shape that broadcasts against it; a vector is one filter."""
    dims = tuple(range(1, weight.dim())) or None
    norms: Tensor = torch.linalg.vector_norm(weight, dim=dims, keepdim=True)
    return norms
