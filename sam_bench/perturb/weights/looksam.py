"""LookSAM."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from pydantic import Field, PrivateAttr
from torch import Tensor, nn

from sam_bench.perturb.weights.ascent import Ascent, scale_to
from sam_bench.perturb.weights.base import WEIGHT_PERTURBATIONS, displaced, global_norm, inner_product
from sam_bench.perturb.weights.loss import BatchLoss


@WEIGHT_PERTURBATIONS.register("looksam")
class LookSAM(Ascent):
    """SAM's turn of the gradient, reused for a while (Liu et al. 2022, arXiv 2203.02714, algorithm 1).

    Every `interval` steps (the paper's k) SAM's gradient `g_s` is taken, and its part orthogonal to
    the plain gradient, `g_v`, kept. In the steps between, the gradient is `g + alpha ||g|| / ||g_v|| g_v`.
    Norms run over all parameters. With interval 1 it is SAM, with alpha 0 SAM in every so many-th step.

    On several devices the ascent is along the gradient of the whole batch, so that all keep the same `g_v`.
    """

    rho: float = Field(default=0.05, ge=0, description="radius of the ascent in weight space (L2 over all parameters)")
    interval: int = Field(default=5, ge=1, description="steps from one ascent to the next (the paper's k)")
    alpha: float = Field(default=0.7, ge=0, description="weight of the part that is reused between two ascents")

    _turn: list[Tensor] = PrivateAttr(default_factory=list)  # g_v / ||g_v||, for each parameter that learns

    def check(self, model: nn.Module, *, epochs: int, steps: int) -> None:
        """Refuse a model without the part that is to be perturbed; the first step there is has an ascent."""
        self.perturbed_parameters(model)

    def due(self, batch: BatchLoss) -> bool:
        """Every `interval` steps, and when there is nothing yet to reuse."""
        return self.rho > 0 and (super().due(batch) or not self._turn)

    def perturbation(self, batch: BatchLoss, parameters: Sequence[Tensor], gradients: list[Tensor]) -> None:
        """`rho g / ||g||`."""
        scale_to(gradients, self.rho)

    def perturbed_step(self, batch: BatchLoss) -> Tensor:
        """SAM's gradient; its part orthogonal to the plain one is kept."""
        loss = batch.backward().loss
        parameters, plain = batch.gradients()
        allowed = self.chosen(batch)
        among = set(map(id, parameters if allowed is None else allowed))
        pairs = list(zip(parameters, plain, strict=True))
        moved = [parameter for parameter in parameters if id(parameter) in among]
        ascent = [gradient for parameter, gradient in pairs if id(parameter) in among]
        still = [gradient for parameter, gradient in pairs if id(parameter) not in among]
        batch.ascent_norm = global_norm(ascent)
        self.perturbation(batch, moved, ascent)
        if still:
            # One scale for all of the gradient: what is not moved still says where the plain one points.
            torch._foreach_mul_(still, self.rho / (batch.ascent_norm + 1e-12))
        with displaced(moved, ascent):
            self.descent_gradient(batch)
        if self.interval > 1:
            _, sharp = batch.gradients()
            share = inner_product(sharp, plain) / (inner_product(plain, plain) + 1e-30)
            torch._foreach_mul_(plain, -share)
            torch._foreach_add_(plain, sharp)
            torch._foreach_div_(plain, global_norm(plain) + 1e-12)
            self._turn = plain
        return loss

    def plain_step(self, batch: BatchLoss) -> Tensor:
        """`g + alpha ||g|| g_v / ||g_v||`."""
        loss = batch.backward().loss
        if self._turn and self.alpha:
            parameters, plain = batch.gradients()
            self._turn = [kept.to(each.device) for kept, each in zip(self._turn, parameters, strict=True)]
            torch._foreach_add_(plain, torch._foreach_mul(self._turn, global_norm(plain) * self.alpha))
        return loss

    def forget(self) -> None:
        """No part to reuse."""
        self._turn = []

    def state_dict(self) -> dict[str, Any]:
        """The part that is reused."""
        return {"turn": self._turn}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Reuse a saved part."""
        self._turn = list(state["turn"])
