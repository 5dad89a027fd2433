"""Adversarial training for free: the pass that the weights learn from also moves the inputs."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from pydantic import Field, PrivateAttr
from torch import Tensor, nn

from sam_bench.perturb.ball import Ball
from sam_bench.perturb.inputs.base import INPUT_PERTURBATIONS, InputPerturbation
from sam_bench.perturb.inputs.kept import Kept, place_of
from sam_bench.records import Radius, RadiusGiven


@INPUT_PERTURBATIONS.register("free")
class Free(InputPerturbation):
    """Learn from each batch several times in a row, and move its inputs by the gradient of each of these steps.

    Free-AT of Shafahi et al. 2019 (arXiv 1904.12843, algorithm 1). The perturbation outlives its batch: the next one
    begins with it, each image with that of the same place. The first batch begins unperturbed.
    """

    follows_training: ClassVar[bool] = True

    eps: RadiusGiven = Field(
        default=Radius("8/255"), description="radius of the ball, for inputs in [0, 1]; e.g. 8/255"
    )
    step_size: RadiusGiven | None = Field(default=None, description="length of a step; default: eps")
    replays: int = Field(default=8, ge=1, description="steps in a row that learn from a batch")

    _delta: Kept = PrivateAttr(default_factory=lambda: Kept(fill=0.0))

    @property
    def ball(self) -> Ball:
        """The ball trained against."""
        return Ball(norm="Linf", eps=float(self.eps))

    @property
    def steps_per_batch(self) -> int:
        """The replays."""
        return self.replays

    def perturb(self, model: nn.Module, x: Tensor, y: Tensor, *, generator: torch.Generator) -> Tensor:
        """The inputs with the perturbation that earlier steps left; the model is not asked."""
        return self.ball.project(x + self._delta.at(place_of(x, generator), like=x), x)

    def follow(self, gradient: Tensor, *, first: int = 0) -> None:
        """One step along the gradient's sign."""
        eps = float(self.eps)
        size = eps if self.step_size is None else float(self.step_size)
        place = slice(first, first + len(gradient))
        moved = self._delta.at(place, like=gradient) + size * self.ball.direction(gradient)
        self._delta.put(place, moved.clamp(-eps, eps))

    def forget(self) -> None:
        """No batch seen yet."""
        self._delta.forget()

    def state_dict(self) -> dict[str, Any]:
        """The perturbation."""
        return {"delta": self._delta.state()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on with a saved perturbation."""
        self._delta.load(state["delta"])
