"""One step from where the last batch's search ended: fast adversarial training with a prior."""

from __future__ import annotations

from typing import Any

import torch
from pydantic import Field, PrivateAttr
from torch import Tensor, nn

from sam_bench.perturb.inputs.base import INPUT_PERTURBATIONS, GradientAscent
from sam_bench.perturb.inputs.losses import input_gradient
from sam_bench.records import Radius
from sam_bench.seeds import RowGenerator


@INPUT_PERTURBATIONS.register("fgsm-pgi")
class FGSMPGI(GradientAscent):
    """One step from the perturbation that the example in the same place of the batch before got.

    FGSM-BP of Jia et al. 2022 (arXiv 2207.08859, section 3.2). A start that is adversarial for other images keeps the
    single step from overfitting to its start. The first batch starts at random points of the ball.
    """

    step_size: Radius | None = Field(default=None, description="length of a step; default: eps")

    _prior: Tensor | None = PrivateAttr(default=None)  # the last perturbation in each place of a batch, [places, ...]

    @property
    def passes(self) -> tuple[int, int]:
        """One gradient of the input."""
        return (1, 1)

    def starting_points(self, x: Tensor, *, generator: torch.Generator) -> Tensor:
        """The prior, projected onto ball and box; random where a place has none yet."""
        first, places = _place(x, generator)
        drawn = self.ball.sample(x, generator)
        if self._prior is None:
            return drawn
        prior = self._wide(places, like=x)[first : first + len(x)]
        return torch.where(prior.isnan(), drawn, self.ball.project(x + prior, x))

    def perturb(self, model: nn.Module, x: Tensor, y: Tensor, *, generator: torch.Generator) -> Tensor:
        """One step of ascent on the cross-entropy, which is also the prior of the next batch."""
        start = self.starting_points(x, generator=generator)
        size = float(self.eps if self.step_size is None else self.step_size)
        with self._searching(model):
            _, gradient = input_gradient(model, start, y)
        x_adv = self.ball.step(start, x, gradient, size)
        first, places = _place(x, generator)
        self._prior = self._wide(places, like=x)
        self._prior[first : first + len(x)] = x_adv - x
        return x_adv

    def _wide(self, places: int, like: Tensor) -> Tensor:
        """The prior with at least so many places; NaN where there is none."""
        prior = like[:0] if self._prior is None else self._prior.to(like)
        more = like.new_full((max(0, places - len(prior)), *like.shape[1:]), torch.nan)
        return torch.cat([prior, more]) if len(more) else prior

    def forget(self) -> None:
        """No batch seen yet."""
        self._prior = None

    def state_dict(self) -> dict[str, Any]:
        """The prior."""
        return {"prior": None if self._prior is None else self._prior.cpu()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on with a saved prior."""
        self._prior = state["prior"]


def _place(x: Tensor, generator: torch.Generator) -> tuple[int, int]:
    """The place of the first example in its batch, and how many places that has."""
    return (generator.first, generator.total) if isinstance(generator, RowGenerator) else (0, len(x))
