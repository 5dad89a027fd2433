"""What APGD is in every norm: evaluate a point, keep the best, go on from there; a subclass says how."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from typing import Literal, TypeVar

import torch
from torch import Tensor

from sam_bench.attacks.autoattack import losses
from sam_bench.attacks.autoattack.model_calls import Objective
from sam_bench.attacks.autoattack.state import AttackState, Problem, Search, wide
from sam_bench.attacks.rng import RNG

Loss = Literal["ce", "dlr", "dlr-targeted"]
R = TypeVar("R", bound="AscentState")


@dataclass
class AscentState(AttackState):
    """What a trial remembers in every norm.

    Attributes:
        target: int64: class aimed at; the label where the loss has none.
        point: Where the loss is evaluated next.
        best, best_gradient, best_loss: The point of highest loss, its gradient, its loss.
        step: Step size.
    """

    target: Tensor
    point: Tensor
    best: Tensor
    best_gradient: Tensor
    best_loss: Tensor
    step: Tensor


class Ascent(Search[R]):
    """Ascent that remembers its best point.

    Args:
        loss: What to ascend on.
        iterations: Steps of a trial.
        eot: Passes whose gradients are averaged; more than one is for models that are random.
        verified_once: The model is random, though one pass is to do.
    """

    def __init__(
        self,
        problem: Problem,
        rng: RNG,
        *,
        loss: Loss,
        restarts_or_targets: int,
        iterations: int = 100,
        eot: int = 1,
        verified_once: bool = False,
    ) -> None:
        super().__init__(problem, rng, restarts_or_targets=restarts_or_targets)
        self._loss, self._iterations, self._eot = loss, iterations, eot
        self.verified_once = verified_once or eot > 1

    @abstractmethod
    def advance(self, state: R, loss: Tensor, gradient: Tensor, start: Tensor) -> None:
        """Set `point` from the loss [B] and the gradient [B, ...] at it; rows of `start` [B] are at their first."""

    def starting(self, state: R) -> Tensor:
        """Which rows are at the first point of an ascent, bool [B]."""
        return state.iteration == 0

    def counting(self, state: R) -> Tensor | None:
        """Rows whose point is a candidate if it is misclassified, bool [B]; None for all."""
        return None

    def initial(self, row: Tensor, trial: Tensor) -> dict[str, Tensor]:
        """The fields of `AttackState`, and the class aimed at, at the start of trials."""
        common = super().initial(row, trial)
        aimed = self._loss == "dlr-targeted"
        return {**common, "target": self.target(row, trial) if aimed else common["label"]}

    def begun(self, common: dict[str, Tensor], point: Tensor, step: float) -> dict[str, Tensor]:
        """The fields of `AscentState` of trials that start at `point`; `common` from `initial`."""
        own = torch.zeros(len(point), dtype=self.logits_dtype, device=point.device)
        return {
            **common,
            "point": point,
            "best": point.clone(),
            "best_gradient": torch.zeros_like(point),
            "best_loss": own,
            "step": torch.full_like(own, step, dtype=point.dtype),
        }

    def step(self, state: R) -> None:
        """Evaluate the point, update the best, move on."""
        objective = self._objective(state)
        logits, loss, gradient = self.model.gradient(state.point, objective)
        for _ in range(self._eot - 1):
            logits, loss, another = self.model.gradient(state.point, objective)
            gradient = gradient + another
        gradient = gradient / self._eot
        wrong, counting = self.wrong(logits, state.label), self.counting(state)
        state.note(wrong if counting is None else wrong & counting, state.point, last=self.verified_once)
        start = self.starting(state)
        if self._loss != "ce":  # as upstream, which looks at the DLR losses only
            flat = gradient.flatten(1).abs().sum(1) == 0
            self.problem.gradient_counts[0] += (start & flat).sum()
        self.count_not_finite(gradient)
        if not self.rng.in_step:  # upstream follows it as it is
            gradient = self.ball.usable(gradient)

        better = start | (loss > state.best_loss)
        state.best = torch.where(wide(better, state.point), state.point, state.best)
        state.best_gradient = torch.where(wide(better, gradient), gradient, state.best_gradient)
        state.best_loss = torch.where(better, loss, state.best_loss)
        self.advance(state, loss, gradient, start)
        state.iteration += 1

    def _objective(self, state: R) -> Objective:
        if self._loss == "ce":
            return lambda logits: losses.cross_entropy(logits, state.label)
        if self._loss == "dlr":
            return lambda logits: losses.dlr(logits, state.label)
        return lambda logits: losses.dlr_targeted(logits, state.label, state.target)
