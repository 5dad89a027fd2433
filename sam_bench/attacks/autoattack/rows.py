"""The rows of a batch: each an example at its own trial and iteration, free to leave and be replaced."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, fields, replace
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor

from sam_bench.attacks.autoattack.oracle import Oracle
from sam_bench.attacks.draws import Draws
from sam_bench.attacks.judge import classes_of
from sam_bench.perturb.ball import Ball
from sam_bench.perturb.inputs import not_finite

R = TypeVar("R", bound="Rows")


@dataclass
class Rows:
    """What every attack keeps of each row; every field a tensor [B, ...] on the device.

    Attributes:
        position: int64: the example's place in the arrays given to the engine.
        trial: int64: restart or target.
        iteration: int64: ticks this trial has behind it.
        clean: The clean input.
        label: int64.
        found: bool: `witness` is misclassified, as far as the search can tell.
        witness: The candidate; the clean input until there is one.
    """

    position: Tensor
    trial: Tensor
    iteration: Tensor
    clean: Tensor
    label: Tensor
    found: Tensor
    witness: Tensor

    def __len__(self) -> int:
        return len(self.position)

    def take(self: R, index: Tensor) -> R:
        """The rows at `index`, in its order."""
        chosen: dict[str, Any] = {each.name: getattr(self, each.name)[index] for each in fields(self)}
        return replace(self, **chosen)

    def note(self, wrong: Tensor, point: Tensor, *, last: bool = False) -> None:
        """Keep `point` as the witness of rows that are misclassified there and have none yet; if `last`, of all."""
        kept = wrong if last else wrong & ~self.found
        self.witness = torch.where(wide(kept, point), point, self.witness)
        self.found = self.found | wrong


def join(first: R, second: R) -> R:
    """The rows of both, in their order."""
    joined: dict[str, Any] = {
        each.name: torch.cat([getattr(first, each.name), getattr(second, each.name)]) for each in fields(first)
    }
    return replace(first, **joined)


@dataclass(frozen=True)
class Cases:
    """The examples of an evaluation, as the searches see them.

    Attributes:
        x: Clean inputs, float32 [N, C, H, W], on the CPU: only what is in the batch is on the device.
        y: Labels, int64 [N], on the CPU.
        index: Their places in the data set, int64 [N], on the CPU.
        ranked: Classes by the clean logits, least likely first, int64 [N, classes], on the CPU.
        logits_dtype: What the model computes in.
        device: Where the rows are.
    """

    x: Tensor
    y: Tensor
    index: Tensor
    ranked: Tensor
    logits_dtype: torch.dtype
    device: torch.device


class Search(ABC, Generic[R]):
    """One attack: how a row begins a trial, and what one pass of the model does to every row.

    Args:
        cases: The examples.
        ball: Where to search.
        oracle: The model.
        draws: Random numbers.
        trials: Restarts or targets.
        not_finite: int64 []: counts the gradients that have NaN or infinity in them.
    """

    judged_once = False
    """Whether an attempt on an example ends with one candidate that is judged once, whatever comes of it.

    So it is where the model is random: to judge every error would be to draw lots until one of them wins. The
    candidate is the last error of the first trial that has any, or the clean input.
    """

    def __init__(
        self,
        cases: Cases,
        ball: Ball,
        oracle: Oracle,
        draws: Draws,
        *,
        trials: int,
        not_finite: Tensor | None = None,
    ) -> None:
        self.cases, self.ball, self.oracle, self.draws, self.trials = cases, ball, oracle, draws, trials
        self._not_finite = not_finite

    @property
    def harvest_every(self) -> int:
        """Ticks between looks at which rows are done; each look waits for the device."""
        return 1

    @property
    @abstractmethod
    def ticks(self) -> int:
        """Passes of one trial."""

    @abstractmethod
    def begin(self, position: Tensor, trial: Tensor) -> R:
        """Rows at the start of a trial; arguments int64 [B], on the CPU."""

    @abstractmethod
    def tick(self, rows: R) -> None:
        """One pass for every row, in place; adds one to `iteration`, sets `found` and `witness`."""

    def turned_down(self, rows: R, which: Tensor) -> Tensor:
        """Told that witnesses of the rows at `which` [K] are none; which of these rows stop, bool [K] on the CPU."""
        return torch.zeros(len(which), dtype=torch.bool)

    def fresh(self, position: Tensor, trial: Tensor) -> dict[str, Tensor]:
        """The fields of `Rows` for rows that begin."""
        device = self.cases.device
        clean = self.cases.x[position].to(device)
        return {
            "position": position.to(device),
            "trial": trial.to(device),
            "iteration": torch.zeros(len(position), dtype=torch.int64, device=device),
            "clean": clean,
            "label": self.cases.y[position].to(device),
            "found": torch.zeros(len(position), dtype=torch.bool, device=device),
            "witness": clean.clone(),
        }

    def wrong(self, logits: Tensor, label: Tensor) -> Tensor:
        """Which rows are misclassified, bool [B], as the judge sees it."""
        return classes_of(logits) != label

    def note_slopes(self, gradient: Tensor) -> None:
        """Count rows of a gradient [B, ...] that are not finite, without waiting for the device."""
        if self._not_finite is not None:
            self._not_finite += not_finite(gradient).sum()

    def target(self, position: Tensor, trial: Tensor) -> Tensor:
        """The class a targeted trial aims at: trial 0 the second most likely, and so on down; int64 [B]."""
        ranked = self.cases.ranked[position]
        return ranked.gather(1, (ranked.shape[1] - 2 - trial)[:, None]).squeeze(1).to(self.cases.device)


def wide(each: Tensor, like: Tensor) -> Tensor:
    """A value per row [B] shaped to go with images [B, ...]."""
    return each.view(-1, *[1] * (like.dim() - 1))


def norms(images: Tensor, norm: str) -> Tensor:
    """Linf, L2 or L1 norm of each row [B, ...], as [B]."""
    flat = images.flatten(1)
    if norm == "L2":
        return (flat**2).sum(dim=1).sqrt()
    return flat.abs().max(dim=1)[0] if norm == "Linf" else flat.abs().sum(dim=1)
