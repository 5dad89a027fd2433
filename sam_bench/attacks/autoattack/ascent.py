"""What APGD is in every norm: evaluate a point, keep the best, go on from there; a subclass says how."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

import torch
from torch import Tensor

from sam_bench.attacks.autoattack import losses
from sam_bench.attacks.autoattack.rows import Rows, Search, wide

Loss = Literal["ce", "dlr", "dlr-targeted"]
R = TypeVar("R", bound="AscentRows")


@dataclass
class AscentRows(Rows):
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
        flat_starts: int64 []: counts the starts at which the gradient is exactly zero; for the DLR
            losses only, as upstream does.
    """

    def __init__(
        self,
        *args: Any,
        loss: Loss,
        iterations: int = 100,
        eot: int = 1,
        flat_starts: Tensor | None = None,
        **settings: Any,
    ) -> None:
        super().__init__(*args, **settings)
        self._loss, self._iterations, self._eot, self._flat_starts = loss, iterations, eot, flat_starts
        self.judged_once = eot > 1

    @abstractmethod
    def advance(self, rows: R, loss: Tensor, gradient: Tensor, start: Tensor) -> None:
        """Set `point` from the loss [B] and the gradient [B, ...] at it; rows of `start` [B] are at their first."""

    def starting(self, rows: R) -> Tensor:
        """Which rows are at the first point of an ascent, bool [B]."""
        return rows.iteration == 0

    def counting(self, rows: R) -> Tensor | None:
        """Rows whose point is a witness if it is misclassified, bool [B]; None for all."""
        return None

    def fresh(self, position: Tensor, trial: Tensor) -> dict[str, Tensor]:
        """The fields of `Rows`, and the class aimed at, for rows that begin."""
        common = super().fresh(position, trial)
        aimed = self._loss == "dlr-targeted"
        return {**common, "target": self.target(position, trial) if aimed else common["label"]}

    def begun(self, common: dict[str, Tensor], point: Tensor, step: float) -> dict[str, Tensor]:
        """The fields of `AscentRows` for rows that begin at `point`; `common` from `fresh`."""
        own = torch.zeros(len(point), dtype=self.cases.logits_dtype, device=point.device)
        return {
            **common,
            "point": point,
            "best": point.clone(),
            "best_gradient": torch.zeros_like(point),
            "best_loss": own,
            "step": torch.full_like(own, step, dtype=point.dtype),
        }

    def tick(self, rows: R) -> None:
        """Evaluate the point, update the best, move on."""
        logits, loss, gradient = self._evaluate(rows)
        wrong, counting = self.wrong(logits, rows.label), self.counting(rows)
        rows.note(wrong if counting is None else wrong & counting, rows.point, last=self.judged_once)
        start = self.starting(rows)
        if self._flat_starts is not None and self._loss != "ce":
            flat = gradient.flatten(1).abs().sum(1) == 0
            self._flat_starts += (start & flat).sum()
        self.note_slopes(gradient)
        if not self.draws.in_step:  # upstream follows it as it is
            gradient = self.ball.usable(gradient)

        better = start | (loss > rows.best_loss)
        rows.best = torch.where(wide(better, rows.point), rows.point, rows.best)
        rows.best_gradient = torch.where(wide(better, gradient), gradient, rows.best_gradient)
        rows.best_loss = torch.where(better, loss, rows.best_loss)
        self.advance(rows, loss, gradient, start)
        rows.iteration += 1

    def _evaluate(self, rows: R) -> tuple[Tensor, Tensor, Tensor]:
        objective = self._objective(rows)
        logits, loss, gradient = self.oracle.gradient(rows.point, objective)
        for _ in range(self._eot - 1):
            logits, loss, another = self.oracle.gradient(rows.point, objective)
            gradient = gradient + another
        return logits, loss, gradient / self._eot

    def _objective(self, rows: R) -> Callable[[Tensor], Tensor]:
        if self._loss == "ce":
            return lambda logits: losses.cross_entropy(logits, rows.label)
        if self._loss == "dlr":
            return lambda logits: losses.dlr(logits, rows.label)
        return lambda logits: losses.dlr_targeted(logits, rows.label, rows.target)
