"""FGSM and PGD as attacks: the search that adversarial training uses, run to break rather than to teach."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from typing import Protocol

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from sam_bench.attacks.autoattack.checks import model_doubts
from sam_bench.attacks.autoattack.plan import FEW_CLASSES
from sam_bench.attacks.base import ATTACKS, ExampleAttack, Progress, Task
from sam_bench.attacks.doubts import doubt
from sam_bench.attacks.draws import CounterDraws
from sam_bench.attacks.judge import SMALLEST_BATCH, classes_of, pad
from sam_bench.attacks.random_state import random_state_kept, seed_generators
from sam_bench.device import true_float32
from sam_bench.errors import InputError
from sam_bench.perturb.ball import Ball
from sam_bench.perturb.inputs import LossPerExample, check_restarts, cross_entropy, input_gradient, not_finite
from sam_bench.records import Norm, Radius


class Steps(Protocol):
    """How an ascent moves; made anew for each batch and start, so that it may remember something of each row."""

    def move(self, x_adv: Tensor, x: Tensor, gradient: Tensor) -> Tensor:
        """The next points of the ball around `x`, float [B, ...]."""

    def keep(self, rows: Tensor) -> None:
        """Forget all rows but these, int64 [b]."""


@dataclass(frozen=True)
class SteepestSteps:
    """Steps of one length along the steepest ascent in the ball's norm."""

    ball: Ball
    size: float

    def move(self, x_adv: Tensor, x: Tensor, gradient: Tensor) -> Tensor:
        """See `Ball.step`."""
        return self.ball.step(x_adv, x, gradient, self.size)

    def keep(self, rows: Tensor) -> None:
        """Nothing is remembered."""


_BATCHES = 4  # of examples that have all their starts before the next ones begin: what is broken leaves them full


class _Slopes:
    """What is doubtful about gradients, kept on the device: asking for it waits, and is done once a batch.

    Args:
        device: Where the gradients are.
    """

    def __init__(self, device: torch.device) -> None:
        self._lost = self._flat = torch.zeros((), dtype=torch.bool, device=device)

    def see(self, gradient: Tensor) -> None:
        """Take note of the gradients [B, ...] of examples that stand."""
        self._lost = self._lost | not_finite(gradient).any()
        self._flat = self._flat | (gradient.flatten(1) == 0).all(1).any()

    def tell(self, task: Task) -> None:
        """Doubt what follows such gradients."""
        for code, met in zip(
            ("nan-gradients", "zero-gradients"), torch.stack([self._lost, self._flat]).tolist(), strict=True
        ):
            if met:
                task.doubt(doubt(code))


def tell_of_model(model: nn.Module, task: Task) -> None:
    """Doubt an attack with gradients on a model that is random, or hands out probabilities, or differentiates."""
    with random_state_kept(task.device), true_float32():
        seed_generators(task.seed)
        found = model_doubts(model, task, random_expected=False)
    for text in found:
        task.doubt(text)


class GradientAttack(ExampleAttack):
    """Base of attacks that move along gradients inside a ball, for which `Ball` has no steps and no starts in L1."""

    @property
    def needs_gradients(self) -> bool:
        """Yes."""
        return True

    def check(self, norm: Norm) -> None:
        """See `Attack.check`."""
        if norm == "L1":
            raise InputError(
                f"--norm L1: {self.method} searches in L2 and Linf; attack with autoattack, and with {FEW_CLASSES} "
                "where the model has fewer than four classes"
            )


class RestartedAscent(GradientAttack):
    """Base of attacks that climb a loss from several starts, one after the other over what still stands.

    Every iterate counts: an example is broken when any of them is misclassified, and is then left
    alone. Attacks that look at the last iterate only can come out a little higher.
    """

    steps: int = Field(default=10, ge=1, description="steps of the ascent")
    restarts: int = Field(default=1, ge=1, description="random starts tried for each example")
    random_start: bool = Field(default=True, description="start at a random point of the ball")

    @model_validator(mode="after")
    def _starts_differ(self) -> RestartedAscent:
        check_restarts(self.restarts, random_start=self.random_start)
        return self

    @property
    def loss(self) -> LossPerExample:
        """What is climbed."""
        return cross_entropy

    @abstractmethod
    def steps_in(self, ball: Ball) -> Steps:
        """How one ascent moves."""

    def seek(self, model: nn.Module, task: Task) -> list[str]:
        """A few batches of examples at a time, all of their starts: what withstood them is known then."""
        tell_of_model(model, task)
        draws = CounterDraws(task.seed, self.method, task.index)
        everything, robust, later = torch.arange(len(task.x)), len(task.x), len(task.x)
        for chunk in everything.split(_BATCHES * task.batch_size):
            later -= len(chunk)
            standing = chunk
            for restart in range(self.restarts):
                left: list[Tensor] = []
                done = 0
                for positions in standing.split(task.batch_size):
                    left.append(self._withstanding(model, task, positions, draws, restart))
                    done, robust = done + len(positions), robust - (len(positions) - len(left[-1]))
                    # What is broken is spared its other starts.
                    stand = sum(map(len, left)) + len(standing) - done
                    to_come = (len(standing) - done) + stand * (self.restarts - restart - 1) + later * self.restarts
                    starts = len(task.x) * self.restarts
                    task.progress(Progress(self.method, starts - to_come, starts, robust))
                standing = torch.cat(left)
                if not len(standing):
                    break
            for position in standing.tolist():
                task.withstand(position, 1)
        return []

    def _withstanding(
        self, model: nn.Module, task: Task, positions: Tensor, draws: CounterDraws, restart: int
    ) -> Tensor:
        """Which of the examples at `positions` withstand one start."""
        clean = task.x[positions]
        start = _random_start(clean, task.ball, draws, positions, restart) if self.random_start else clean
        found, broken, slopes = self._attack_batch(
            model,
            clean.to(task.device),
            task.y[positions].to(task.device),
            start.to(task.device),
            steps=self.steps_in(task.ball),
        )
        slopes.tell(task)
        stands = ~broken.cpu()
        if not stands.all():
            stands[~stands] = ~task.confirm(positions[~stands], found[broken], self.method)
        return positions[stands]

    @true_float32()  # it leaves an example at the first error, which has to be the judge's, too
    def _attack_batch(
        self, model: nn.Module, x: Tensor, y: Tensor, start: Tensor, *, steps: Steps
    ) -> tuple[Tensor, Tensor, _Slopes]:
        """Candidates [B, ...], which of them the model gets wrong, bool [B], and how the gradients were."""
        found, broken = start.clone(), torch.zeros(len(x), dtype=torch.bool, device=x.device)
        slopes = _Slopes(x.device)
        standing, x_adv = torch.arange(len(x), device=x.device), start
        for _ in range(self.steps):
            logits, gradient = _gradient(model, x_adv, y[standing], self.loss)
            stands = classes_of(logits) == y[standing]
            rows = stands.nonzero().flatten()  # a GPU is waited for here, once a step
            if len(rows) < len(standing):
                broken[standing] = ~stands
                standing, x_adv, gradient = standing[rows], x_adv[rows], gradient[rows]
                if not len(rows):
                    return found, broken, slopes
                steps.keep(rows)
            slopes.see(gradient)
            x_adv = steps.move(x_adv, x[standing], gradient)
            found[standing] = x_adv
        with torch.no_grad():
            broken[standing] = classes_of(model(pad(x_adv, SMALLEST_BATCH))[: len(x_adv)]) != y[standing]
        return found, broken, slopes


def _gradient(model: nn.Module, x: Tensor, y: Tensor, loss: LossPerExample) -> tuple[Tensor, Tensor]:
    """As `input_gradient`, with the rows that make an example's numbers independent of who shares its batch."""
    logits, gradient = input_gradient(model, pad(x, SMALLEST_BATCH), pad(y, SMALLEST_BATCH), loss)
    return logits[: len(x)], gradient[: len(x)]


def _random_start(x: Tensor, ball: Ball, draws: CounterDraws, positions: Tensor, restart: int) -> Tensor:
    """A random point of the ball around each example, its own whatever the batch; as `Ball.sample` has them."""
    trial, at, shape = torch.full_like(positions, restart), torch.zeros_like(positions), tuple(x.shape[1:])
    if ball.norm == "Linf":
        noise = draws.uniform(positions, trial, at, shape, lane=0) * 2 - 1
        return (x + ball.eps * noise).clamp(0.0, 1.0)
    radius = draws.uniform(positions, trial, at, (1,) * len(shape), lane=0)
    direction = ball.direction(draws.normal(positions, trial, at, shape, lane=1))
    return (x + ball.eps * radius * direction).clamp(0.0, 1.0)


@ATTACKS.register("pgd")
class PGDAttack(RestartedAscent):
    """Projected gradient descent on the cross-entropy (Madry et al. 2018)."""

    step_size: Radius | None = Field(default=None, description="length of a step; default: eps/4")

    @model_validator(mode="after")
    def _moves(self) -> PGDAttack:
        if self.step_size is not None and self.step_size <= 0:
            raise ValueError(f"step_size: {self.step_size} goes nowhere; give one above 0, as 2/255")
        return self

    def steps_in(self, ball: Ball) -> Steps:
        """All of the same length."""
        return SteepestSteps(ball, ball.eps / 4 if self.step_size is None else float(self.step_size))


@ATTACKS.register("fgsm")
class FGSMAttack(GradientAttack):
    """One step of length eps from the clean input (Goodfellow et al. 2015)."""

    def seek(self, model: nn.Module, task: Task) -> list[str]:
        """One gradient an example."""
        tell_of_model(model, task)
        done = 0
        for positions in torch.arange(len(task.x)).split(task.batch_size):
            clean = task.x[positions].to(task.device)
            _, gradient = _gradient(model, clean, task.y[positions].to(task.device), cross_entropy)
            slopes = _Slopes(task.device)
            slopes.see(gradient)
            slopes.tell(task)
            moved = task.ball.step(clean, clean, gradient, task.ball.eps)
            broken = task.confirm(positions, moved, self.method)
            for position in positions[~broken].tolist():
                task.withstand(position, 1)
            done += len(positions)
            task.progress(Progress(self.method, done, len(task.x)))
        return []
