"""The state of a search: each row of the batch is an example at its own trial and iteration."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, fields, replace
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor

from sam_bench.attacks.autoattack.model_calls import ModelCalls
from sam_bench.attacks.events import Examples
from sam_bench.attacks.rng import RNG
from sam_bench.attacks.verify import SMALLEST_BATCH, classes_of, rows_that_fill_a_cpu
from sam_bench.perturb.ball import Ball
from sam_bench.perturb.inputs import not_finite

S = TypeVar("S", bound="AttackState")


@dataclass
class AttackState:
    """What every attack keeps of each example in its batch; every field a tensor [B, ...] on the device.

    Attributes:
        row: int64: which of the examples.
        trial: int64: which restart or target.
        iteration: int64: steps of this trial that are done.
        clean: The clean input.
        label: int64.
        found: bool: `x_adv` is misclassified, as far as the search can tell.
        x_adv: The candidate; the clean input until there is one.
    """

    row: Tensor
    trial: Tensor
    iteration: Tensor
    clean: Tensor
    label: Tensor
    found: Tensor
    x_adv: Tensor

    def __len__(self) -> int:
        return len(self.row)

    def take(self: S, index: Tensor) -> S:
        """The state of the rows at `index`, in its order."""
        chosen: dict[str, Any] = {each.name: getattr(self, each.name)[index] for each in fields(self)}
        return replace(self, **chosen)

    def note(self, wrong: Tensor, point: Tensor, *, last: bool = False) -> None:
        """Keep the first `point` that is misclassified as the candidate; if `last`, the last one."""
        kept = wrong if last else wrong & ~self.found
        self.x_adv = torch.where(wide(kept, point), point, self.x_adv)
        self.found = self.found | wrong


def join(first: S, second: S) -> S:
    """Both states, one after the other."""
    joined: dict[str, Any] = {
        each.name: torch.cat([getattr(first, each.name), getattr(second, each.name)]) for each in fields(first)
    }
    return replace(first, **joined)


@dataclass(frozen=True)
class Problem:
    """What every search of a run is given.

    Attributes:
        examples: What to attack; only what is in the batch is on the device.
        ball: Where to search.
        model: The model.
        ranked: Classes by the clean logits, least likely first, int64 [N, classes], on the CPU.
        logits_dtype: What the model computes in.
        device: Where it computes.
        batch_size: Rows of a pass.
        gradient_counts: int64 [2]: how many starts had a gradient of exactly zero, and how many gradients had NaN
            or infinity in them.
    """

    examples: Examples
    ball: Ball
    model: ModelCalls
    ranked: Tensor
    logits_dtype: torch.dtype
    device: torch.device
    batch_size: int
    gradient_counts: Tensor


class Search(ABC, Generic[S]):
    """One attack: how a row starts a trial, and what one pass of the model does to every row.

    Args:
        problem: What to attack.
        rng: Random numbers.
        restarts_or_targets: Trials of each example.

    Attributes:
        rows_a_pass: As many rows the model is given, where examples, trials or queries that wait can fill them.
    """

    verified_once = False
    """Whether only one candidate of an example is verified, and the attack then ends for it.

    This is for random models. If every error counted, one lucky draw would break the example. The candidate is the
    last error of the first trial that has any, or the clean input.
    """

    def __init__(self, problem: Problem, rng: RNG, *, restarts_or_targets: int) -> None:
        self.problem, self.rng, self.restarts_or_targets = problem, rng, restarts_or_targets
        self.examples, self.ball, self.model = problem.examples, problem.ball, problem.model
        self.device, self.logits_dtype = problem.device, problem.logits_dtype
        # A GPU's batches have one size.
        filled = rows_that_fill_a_cpu(self.examples.x[0].numel()) if self.device.type == "cpu" else 0
        self._free = min(filled, problem.batch_size)
        self.rows_a_pass = max(self.model.least_rows, self._free)

    @property
    def trials_at_once(self) -> int:
        """How many trials of an example run side by side: all where enough examples fit beside one another, or one."""
        fits = self.restarts_or_targets * SMALLEST_BATCH <= self._free and not self.verified_once
        return self.restarts_or_targets if fits else 1

    @property
    def check_every(self) -> int:
        """Steps between looks at which rows are done; each look waits for the device."""
        return 1

    @property
    @abstractmethod
    def steps(self) -> int:
        """Steps of one trial, each one pass of the model."""

    @abstractmethod
    def init(self, row: Tensor, trial: Tensor) -> S:
        """The state at the start of trials; arguments int64 [B], on the CPU."""

    @abstractmethod
    def step(self, state: S) -> None:
        """One pass for every row, in place; adds one to `iteration`, sets `found` and `x_adv`."""

    def on_rejected(self, state: S, which: Tensor) -> Tensor:
        """The verifier rejects the candidates of the rows at `which` [K]; which of them stop, bool [K] on the CPU."""
        return torch.zeros(len(which), dtype=torch.bool)

    def initial(self, row: Tensor, trial: Tensor) -> dict[str, Tensor]:
        """The fields of `AttackState` at the start of trials."""
        clean = self.examples.x[row].to(self.device)
        return {
            "row": row.to(self.device),
            "trial": trial.to(self.device),
            "iteration": torch.zeros(len(row), dtype=torch.int64, device=self.device),
            "clean": clean,
            "label": self.examples.y[row].to(self.device),
            "found": torch.zeros(len(row), dtype=torch.bool, device=self.device),
            "x_adv": clean.clone(),
        }

    def wrong(self, logits: Tensor, label: Tensor) -> Tensor:
        """Which rows are misclassified, bool [B], as the verifier sees it."""
        return classes_of(logits) != label

    def count_not_finite(self, gradient: Tensor) -> None:
        """Count rows of a gradient [B, ...] that are not finite, without waiting for the device."""
        self.problem.gradient_counts[1] += not_finite(gradient).sum()

    def target(self, row: Tensor, trial: Tensor) -> Tensor:
        """The class that a targeted trial aims at: trial 0 the second most likely, and so on down; int64 [B]."""
        ranked = self.problem.ranked[row]
        return ranked.gather(1, (ranked.shape[1] - 2 - trial)[:, None]).squeeze(1).to(self.device)


def wide(each: Tensor, like: Tensor) -> Tensor:
    """A value per row [B] shaped to go with images [B, ...]."""
    return each.view(-1, *[1] * (like.dim() - 1))


def norms(images: Tensor, norm: str) -> Tensor:
    """Linf, L2 or L1 norm of each row [B, ...], as [B]."""
    flat = images.flatten(1)
    if norm == "L2":
        return (flat**2).sum(dim=1).sqrt()
    return flat.abs().max(dim=1)[0] if norm == "Linf" else flat.abs().sum(dim=1)
