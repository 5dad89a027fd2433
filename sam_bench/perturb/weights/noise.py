"""Random weight noise: the control."""

from __future__ import annotations

from collections.abc import Sequence

from pydantic import Field
from torch import Tensor, nn

from sam_bench.perturb.weights.ascent import Ascent, scale_to
from sam_bench.perturb.weights.base import WEIGHT_PERTURBATIONS, draw_normal
from sam_bench.perturb.weights.loss import BatchLoss


@WEIGHT_PERTURBATIONS.register("noise")
class Noise(Ascent):
    """The gradient at `w + rho z / ||z||`, z Gaussian: the control that shows what SAM's direction is worth.

    The direction is uniform on the sphere of SAM's ascent and the same on every device. No gradient is
    needed for it; a forward pass at `w` gives BatchNorm's statistics and the loss there.
    """

    rho: float = Field(default=0.05, ge=0, description="length of the random displacement (L2 over all parameters)")

    @property
    def passes(self) -> tuple[float, float]:
        """A forward pass at `w`, a gradient beside it."""
        return (1 + 1 / self.interval, 1)

    def ascent_gradient(self, batch: BatchLoss, chosen: Sequence[nn.Parameter] | None) -> Tensor:
        """Noise instead of a gradient."""
        loss = batch.evaluate().mean()
        for parameter in batch.parameters:
            parameter.grad = None  # that of the step before
        parameters = batch.parameters if chosen is None else list(chosen)
        for parameter, noise in zip(parameters, draw_normal(parameters, batch.at.seed, batch.at.step), strict=True):
            parameter.grad = noise
        return loss

    def perturbation(self, batch: BatchLoss, parameters: Sequence[Tensor], gradients: list[Tensor]) -> None:
        """`rho z / ||z||`."""
        batch.ascent_norm = None  # the noise's norm says nothing
        scale_to(gradients, self.rho)
