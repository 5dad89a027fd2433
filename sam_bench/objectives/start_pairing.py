"""The same answer at the perturbed input as where its search began."""

from __future__ import annotations

from typing import ClassVar

import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from sam_bench.objectives.base import OBJECTIVES, Objective
from sam_bench.perturb.inputs import at_least_float32
from sam_bench.perturb.weights import Score


@OBJECTIVES.register("start-pairing")
class StartPairing(Objective):
    """CE(x') + weight |z(x') - z(s)|^2 / classes, z the logits and s the search's start (Jia et al. 2022, equation 7).

    Both logits are differentiated, as in the authors' code. One-step training that overfits answers far differently
    at the two ends of its step; this term keeps them together.
    """

    compares_inputs: ClassVar[bool] = True
    compares_start: ClassVar[bool] = True

    pairing_weight: float = Field(default=10.0, ge=0, description="weight of the squared distance of the logits")
    label_smoothing: float = Field(default=0.0, ge=0, lt=1, description="share of a label spread over all classes")

    @property
    def passes(self) -> tuple[int, int]:
        """The start and the perturbed inputs."""
        return (2, 2)

    def losses(self, score: Score, x: Tensor, x_adv: Tensor, y: Tensor) -> Tensor:
        """Cross-entropy at the perturbed inputs, and how far their logits are from those at `x`, the start."""
        start, end = (at_least_float32(score(each)) for each in (x, x_adv))
        losses = F.cross_entropy(end, y, label_smoothing=self.label_smoothing, reduction="none")
        return losses + self.pairing_weight * (end - start).square().mean(1)
