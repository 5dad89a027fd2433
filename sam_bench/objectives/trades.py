"""TRADES: accuracy at the clean inputs, and the same answer at the perturbed ones."""

from __future__ import annotations

from typing import ClassVar

from pydantic import Field
from torch import Tensor

from sam_bench.objectives.base import OBJECTIVES, Objective
from sam_bench.perturb.inputs import cross_entropy, kl_divergence
from sam_bench.perturb.weights import Score


@OBJECTIVES.register("trades")
class TRADES(Objective):
    """CE(x) + beta KL(p(x) || p(x')) (Zhang et al. 2019, equation 5).

    Two passes, not one over both inputs put together: BatchNorm normalises each of them by its own
    statistics, as in the authors' code, and its running ones see first the clean, then the perturbed batch.
    The authors' code runs the clean batch once more for the KL term, so that they end with the clean one.
    """

    compares_inputs: ClassVar[bool] = True

    beta: float = Field(default=6.0, ge=0, description="weight of the KL term; 0: ordinary training on clean inputs")

    @property
    def sees_perturbed(self) -> bool:
        """Not where they have no weight."""
        return self.beta > 0

    @property
    def passes(self) -> tuple[int, int]:
        """Clean and perturbed inputs; the clean ones alone where the others have no weight."""
        return (2, 2) if self.beta else (1, 1)

    def losses(self, score: Score, x: Tensor, x_adv: Tensor, y: Tensor) -> Tensor:
        """Cross-entropy at the clean inputs, divergence at the perturbed ones."""
        clean = score(x)
        losses = cross_entropy(clean, y)
        return losses + self.beta * kl_divergence(clean, score(x_adv)) if self.beta else losses
