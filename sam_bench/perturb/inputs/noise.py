"""Noise, the control: what is gained by looking at no gradient at all."""

from __future__ import annotations

import math

import torch
from pydantic import Field
from torch import Tensor, nn

from sam_bench.perturb.ball import normal
from sam_bench.perturb.inputs.base import INPUT_PERTURBATIONS, InputPerturbation
from sam_bench.records import Radius, RadiusGiven


@INPUT_PERTURBATIONS.register("gaussian")
class GaussianNoise(InputPerturbation):
    """Independent normal noise on every pixel, clipped to the box of valid images (Bishop 1995)."""

    std: RadiusGiven = Field(
        default=Radius("8/255"), description="standard deviation of the noise, for inputs in [0, 1]"
    )

    @property
    def reach(self) -> float:
        """As far as the box."""
        return math.inf if self.std else 0.0

    def perturb(self, model: nn.Module, x: Tensor, y: Tensor, *, generator: torch.Generator) -> Tensor:
        """The noisy inputs."""
        return (x + float(self.std) * normal(x.shape, x, generator)).clamp(0.0, 1.0)
