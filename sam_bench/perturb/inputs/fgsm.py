"""One step: fast adversarial training."""

from __future__ import annotations

import torch
from pydantic import Field
from torch import Tensor, nn

from sam_bench.perturb.ball import Ball
from sam_bench.perturb.inputs.base import INPUT_PERTURBATIONS, GradientAscent
from sam_bench.perturb.inputs.losses import input_gradient
from sam_bench.records import RadiusGiven


@INPUT_PERTURBATIONS.register("fgsm")
class FGSM(GradientAscent):
    """One step from a random start: fast adversarial training (Wong, Rice, Kolter 2020, algorithm 3)."""

    step_size: RadiusGiven | None = Field(default=None, description="length of a step; default: 1.25 eps")
    random_start: bool = Field(default=True, description="start at a random point of the ball")

    @property
    def passes(self) -> tuple[int, int]:
        """One gradient of the input."""
        return (1, 1)

    def starting_points(self, x: Tensor, *, generator: torch.Generator) -> Tensor:
        """A random point of the ball, or the input itself."""
        return self.ball.sample(x, generator) if self.random_start else x

    def perturb(self, model: nn.Module, x: Tensor, y: Tensor, *, generator: torch.Generator) -> Tensor:
        """One step of ascent on the cross-entropy, back into the ball."""
        start = self.starting_points(x, generator=generator)
        size = 1.25 * float(self.eps) if self.step_size is None else float(self.step_size)
        with self._searching(model):
            _, gradient = input_gradient(model, start, y)
        return self.ball.step(start, x, gradient, size)


@INPUT_PERTURBATIONS.register("n-fgsm")
class NFGSM(GradientAscent):
    """One step from a start far outside the ball, and no way back (de Jorge et al. 2022, algorithm 1).

    The noise is wider than the ball and the result is not clipped to it, which is what keeps one step
    from overfitting to itself; only the box of valid images binds. The paper has Linf only.
    """

    step_size: RadiusGiven | None = Field(default=None, description="length of a step; default: eps")
    noise_eps: RadiusGiven | None = Field(default=None, description="radius of the uniform noise; default: 2 eps")

    @property
    def passes(self) -> tuple[int, int]:
        """One gradient of the input."""
        return (1, 1)

    @property
    def reach(self) -> float:
        """Noise and step: three eps by default."""
        return self._noise.eps + self._size

    @property
    def _noise(self) -> Ball:
        return Ball(norm=self.norm, eps=2 * float(self.eps) if self.noise_eps is None else float(self.noise_eps))

    @property
    def _size(self) -> float:
        return float(self.eps if self.step_size is None else self.step_size)

    def starting_points(self, x: Tensor, *, generator: torch.Generator) -> Tensor:
        """The noisy input."""
        return self._noise.sample(x, generator)

    def perturb(self, model: nn.Module, x: Tensor, y: Tensor, *, generator: torch.Generator) -> Tensor:
        """One step of ascent on the cross-entropy from the noisy input."""
        start = self.starting_points(x, generator=generator)
        with self._searching(model):
            _, gradient = input_gradient(model, start, y)
        return (start + self._size * self.ball.direction(gradient)).clamp(0.0, 1.0)
