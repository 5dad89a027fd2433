"""Cross-entropy at the perturbed inputs."""

from __future__ import annotations

import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from sam_bench.objectives.base import OBJECTIVES, Objective
from sam_bench.perturb.inputs import at_least_float32
from sam_bench.perturb.weights import Score


@OBJECTIVES.register("cross-entropy")
class CrossEntropy(Objective):
    """Cross-entropy, optionally against smoothed labels (Szegedy et al. 2016, section 7)."""

    label_smoothing: float = Field(default=0.0, ge=0, lt=1, description="share of a label spread over all classes")

    def losses(self, score: Score, x: Tensor, x_adv: Tensor, y: Tensor) -> Tensor:
        """Cross-entropy per example, at the perturbed inputs."""
        logits = at_least_float32(score(x_adv))
        return F.cross_entropy(logits, y, label_smoothing=self.label_smoothing, reduction="none")
