"""One step from where the last batch's search ended: fast adversarial training with a prior."""

from __future__ import annotations

from typing import Any

import torch
from pydantic import Field, PrivateAttr
from torch import Tensor, nn

from sam_bench.perturb.inputs.base import INPUT_PERTURBATIONS, GradientAscent
from sam_bench.perturb.inputs.kept import Kept, place_of
from sam_bench.perturb.inputs.losses import input_gradient
from sam_bench.records import RadiusGiven


@INPUT_PERTURBATIONS.register("fgsm-pgi")
class FGSMPGI(GradientAscent):
    """One step from the perturbation that the example in the same place of the batch before got.

    FGSM-BP of Jia et al. 2022 (arXiv 2207.08859, section 3.2). A start that is adversarial for other images keeps the
    single step from overfitting to its start. The first batch starts at random points of the ball.
    """

    step_size: RadiusGiven | None = Field(default=None, description="length of a step; default: eps")

    _prior: Kept = PrivateAttr(default_factory=lambda: Kept(fill=torch.nan))

    @property
    def passes(self) -> tuple[int, int]:
        """One gradient of the input."""
        return (1, 1)

    def starting_points(self, x: Tensor, *, generator: torch.Generator) -> Tensor:
        """The prior, projected onto ball and box; random where a place has none yet."""
        drawn = self.ball.sample(x, generator)
        prior = self._prior.at(place_of(x, generator), like=x)
        return torch.where(prior.isnan(), drawn, self.ball.project(x + prior, x))

    def perturb(self, model: nn.Module, x: Tensor, y: Tensor, *, generator: torch.Generator) -> Tensor:
        """One step of ascent on the cross-entropy, which is also the prior of the next batch."""
        start = self.starting_points(x, generator=generator)
        size = float(self.eps if self.step_size is None else self.step_size)
        with self._searching(model):
            _, gradient = input_gradient(model, start, y)
        x_adv = self.ball.step(start, x, gradient, size)
        self._prior.put(place_of(x, generator), x_adv - x)
        return x_adv

    def forget(self) -> None:
        """No batch seen yet."""
        self._prior.forget()

    def state_dict(self) -> dict[str, Any]:
        """The prior."""
        return {"prior": self._prior.state()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on with a saved prior."""
        self._prior.load(state["prior"])
