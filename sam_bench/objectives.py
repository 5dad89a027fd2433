"""Objectives: what scores a (perturbed) batch."""

from __future__ import annotations

from abc import abstractmethod

import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from sam_bench.perturb.inputs import at_least_float32
from sam_bench.perturb.weights import Score
from sam_bench.registry import Component, Registry


class Objective(Component):
    """Base of training losses."""

    @property
    def passes(self) -> tuple[int, int]:
        """Forward and backward passes per example that one evaluation and its gradient take."""
        return (1, 1)

    @abstractmethod
    def losses(self, score: Score, x: Tensor, x_adv: Tensor, y: Tensor) -> Tensor:
        """The loss of every example.

        Args:
            score: Runs the network: images [B, C, H, W] to logits [B, classes].
            x: Clean inputs, float [B, C, H, W] in [0, 1].
            x_adv: The inputs after the input perturbation; `x` itself where there is none.
            y: Labels, int64 [B].

        Returns:
            float [B], float32 or better.
        """


OBJECTIVES: Registry[Objective] = Registry(kind="objective", field="objective", group="sam_bench.objectives")


@OBJECTIVES.register("cross-entropy")
class CrossEntropy(Objective):
    """Cross-entropy, optionally against smoothed labels (Szegedy et al. 2016, section 7)."""

    label_smoothing: float = Field(default=0.0, ge=0, lt=1, description="share of a label spread over all classes")

    def losses(self, score: Score, x: Tensor, x_adv: Tensor, y: Tensor) -> Tensor:
        """Cross-entropy per example, at the perturbed inputs."""
        logits = at_least_float32(score(x_adv))
        return F.cross_entropy(logits, y, label_smoothing=self.label_smoothing, reduction="none")
