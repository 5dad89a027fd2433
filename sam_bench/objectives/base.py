"""What every objective is."""

from __future__ import annotations

from abc import abstractmethod
from typing import ClassVar

from torch import Tensor

from sam_bench.perturb.weights import Score
from sam_bench.registry import Component, Registry


class Objective(Component):
    """Base of training losses."""

    compares_inputs: ClassVar[bool] = False
    """Whether it weighs the clean inputs against the perturbed ones, and so is nothing of its own without those."""

    clean_only: ClassVar[bool] = False
    """Whether it never looks at the perturbed inputs, whatever its settings."""

    compares_start: ClassVar[bool] = False
    """Whether its `x` is where the search of the perturbed inputs began, in place of the clean inputs."""

    differentiates_slopes: ClassVar[bool] = False
    """Whether it differentiates a gradient with respect to the inputs; such a run cannot be compiled."""

    takes_mixed: ClassVar[bool] = True
    """Whether it takes labels that Mixup or CutMix mixed: shares of the classes, float [B, classes]."""

    @property
    def slopes(self) -> int:
        """Backward passes to the inputs that its value takes, also where it is not differentiated."""
        return 0

    @property
    def sees_perturbed(self) -> bool:
        """Whether it looks at the perturbed inputs at all; where not, they are not searched for."""
        return True

    @property
    def passes(self) -> tuple[int, int]:
        """Forward and backward passes per example that one evaluation and its gradient take."""
        return (1, 1)

    @property
    def weight_gradients(self) -> int:
        """How many of the backward passes compute a gradient of the weights."""
        return self.passes[1]

    @abstractmethod
    def losses(self, score: Score, x: Tensor, x_adv: Tensor, y: Tensor) -> Tensor:
        """The loss of every example.

        What is run first is what a run's training accuracy is measured on.

        Args:
            score: Runs the network: images [B, C, H, W] to logits [B, classes].
            x: Clean inputs, float [B, C, H, W] in [0, 1]; or see `compares_start`.
            x_adv: The inputs after the input perturbation; `x` itself where there is none.
            y: Labels, int64 [B].

        Returns:
            float [B], float32 or better.
        """


OBJECTIVES: Registry[Objective] = Registry(
    kind="objective", field="objective", group="sam_bench.objectives", base=Objective
)
