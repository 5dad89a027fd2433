"""A penalty on the slope of the loss at the clean input: robustness without a search."""

from __future__ import annotations

from pydantic import Field
from torch import Tensor

from sam_bench.objectives.base import OBJECTIVES, Objective
from sam_bench.objectives.slopes import loss_and_slope
from sam_bench.perturb.inputs import cross_entropy
from sam_bench.perturb.weights import Score
from sam_bench.records import Radius, RadiusGiven


@OBJECTIVES.register("input-gradient")
class InputGradient(Objective):
    """CE(x) + gradient_eps ||slope||_1 (Rodríguez-Muñoz, Wang, Torralba 2024, arXiv 2409.20139).

    The slope is the gradient of the cross-entropy with respect to the input. The sum is, to first order, the largest
    loss in the Linf ball of radius `gradient_eps`. No inputs are searched for. It needs a network with smooth
    activations: the slope of a network of ReLUs is piecewise constant, and penalising it teaches little.
    """

    clean_only = True
    differentiates_slopes = True

    gradient_eps: RadiusGiven = Field(
        default=Radius("6/255"), description="weight of the L1 norm of the input's gradient; like a radius, e.g. 6/255"
    )

    @property
    def sees_perturbed(self) -> bool:
        """It looks at the clean inputs alone."""
        return False

    @property
    def passes(self) -> tuple[int, int]:
        """One forward pass; a backward pass to the input, and one through both."""
        return (1, 2) if self.gradient_eps else (1, 1)

    @property
    def slopes(self) -> int:
        """At the clean inputs."""
        return 1 if self.gradient_eps else 0

    def losses(self, score: Score, x: Tensor, x_adv: Tensor, y: Tensor) -> Tensor:
        """Cross-entropy and the size of its slope, at the clean inputs."""
        if not self.gradient_eps:
            return cross_entropy(score(x), y)
        losses, slope = loss_and_slope(score, x, y, differentiable=True)
        return losses + float(self.gradient_eps) * slope.abs().flatten(1).sum(1)
