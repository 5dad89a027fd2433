"""FGSM and PGD as attacks: the search that adversarial training uses, run to break rather than to teach."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from sam_bench.attacks.autoattack.checks import model_warnings
from sam_bench.attacks.autoattack.suite import FEW_CLASSES
from sam_bench.attacks.base import ATTACKS, ExampleAttack
from sam_bench.attacks.events import AttackWarning, Event, Examples, Progress
from sam_bench.attacks.rng import CounterRNG
from sam_bench.attacks.verify import Verifier, classes_of, pad, rows_for
from sam_bench.attacks.warnings import warning
from sam_bench.device import true_float32
from sam_bench.errors import InputError
from sam_bench.perturb.ball import Ball
from sam_bench.perturb.inputs import LossPerExample, check_restarts, cross_entropy, input_gradient, not_finite
from sam_bench.records import ROBUST, Norm, RadiusGiven


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


class _Gradients:
    """What is wrong with gradients, kept on the device: asking for it waits, and is done once a batch.

    Args:
        device: Where the gradients are.
    """

    def __init__(self, device: torch.device) -> None:
        self._not_finite = self._zero = torch.zeros((), dtype=torch.bool, device=device)

    def note(self, gradient: Tensor) -> None:
        """Look at the gradients [B, ...] of examples that are not broken."""
        self._not_finite = self._not_finite | not_finite(gradient).any()
        self._zero = self._zero | (gradient.flatten(1) == 0).all(1).any()

    def warnings(self) -> Iterator[AttackWarning]:
        """What was met so far."""
        met = torch.stack([self._not_finite, self._zero]).tolist()
        yield from (
            warning(code) for code, is_met in zip(("nan-gradients", "zero-gradients"), met, strict=True) if is_met
        )


class GradientAttack(ExampleAttack):
    """Base of attacks that move along gradients inside a ball, for which `Ball` has no steps and no starts in L1."""

    @property
    def needs_gradients(self) -> bool:
        """Yes."""
        return True

    def check(self, norm: Norm) -> None:
        if norm == "L1":
            raise InputError(
                f"`norm='L1'`: {self.method} searches in L2 and Linf",
                hint=f"attack with autoattack, and with {FEW_CLASSES} where the model has fewer than four classes",
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

    def events(
        self,
        model: nn.Module,
        examples: Examples,
        verifier: Verifier,
        *,
        ball: Ball,
        seed: int,
        batch_size: int,
        device: torch.device,
    ) -> Iterator[Event]:
        """A few batches of examples at a time, with all of their starts; see `Attack.events`."""
        yield from _model_warnings(model, examples, batch_size, device)
        rng, gradients = CounterRNG(seed, self.method, examples.index), _Gradients(device)
        total, robust, later = len(examples) * self.restarts, len(examples), len(examples)
        for chunk in torch.arange(len(examples)).split(_BATCHES * batch_size):
            later -= len(chunk)
            standing = chunk
            for restart in range(self.restarts):
                left: list[Tensor] = []
                done = 0
                for rows in standing.split(batch_size):
                    clean = examples.x[rows]
                    start = _random_start(clean, ball, rng, rows, restart) if self.random_start else clean
                    y, steps = examples.y[rows].to(device), self.steps_in(ball)
                    x_adv, broken = self._attack_batch(model, clean.to(device), y, start.to(device), steps, gradients)
                    yield from gradients.warnings()
                    stands = ~broken.cpu()
                    if not stands.all():
                        stands[~stands] = ~verifier.check(rows[~stands], x_adv[broken])
                    yield from examples.verdicts(rows[~stands], self.method)
                    left.append(rows[stands])
                    done, robust = done + len(rows), robust - int((~stands).sum())
                    # What is broken is spared its other starts.
                    stand = sum(map(len, left)) + len(standing) - done
                    to_come = (len(standing) - done) + stand * (self.restarts - restart - 1) + later * self.restarts
                    yield Progress(self.method, total - to_come, total, robust)
                standing = torch.cat(left)
                if not len(standing):
                    break
            yield from examples.verdicts(standing, ROBUST)

    @true_float32()  # it leaves an example at the first error, which has to be the verifier's, too
    def _attack_batch(
        self, model: nn.Module, x: Tensor, y: Tensor, start: Tensor, steps: Steps, gradients: _Gradients
    ) -> tuple[Tensor, Tensor]:
        """Candidates [B, ...], and which of them the model gets wrong, bool [B]."""
        found, broken = start.clone(), torch.zeros(len(x), dtype=torch.bool, device=x.device)
        standing, x_adv = torch.arange(len(x), device=x.device), start
        for _ in range(self.steps):
            logits, gradient = _gradient(model, x_adv, y[standing], self.loss)
            stands = classes_of(logits) == y[standing]
            rows = stands.nonzero().flatten()  # a GPU is waited for here, once a step
            if len(rows) < len(standing):
                broken[standing] = ~stands
                standing, x_adv, gradient = standing[rows], x_adv[rows], gradient[rows]
                if not len(rows):
                    return found, broken
                steps.keep(rows)
            gradients.note(gradient)
            x_adv = steps.move(x_adv, x[standing], gradient)
            found[standing] = x_adv
        with torch.no_grad():
            broken[standing] = (
                classes_of(model(pad(x_adv, rows_for(len(x_adv), x.device)))[: len(x_adv)]) != y[standing]
            )
        return found, broken


def _gradient(model: nn.Module, x: Tensor, y: Tensor, loss: LossPerExample) -> tuple[Tensor, Tensor]:
    """As `input_gradient`, with the rows that make an example's numbers independent of who shares its batch."""
    rows = rows_for(len(x), x.device)
    logits, gradient = input_gradient(model, pad(x, rows), pad(y, rows), loss)
    return logits[: len(x)], gradient[: len(x)]


def _random_start(x: Tensor, ball: Ball, rng: CounterRNG, rows: Tensor, restart: int) -> Tensor:
    """A random point of the ball around each example, its own whatever the batch; as `Ball.sample` has them."""
    trial, at, shape = torch.full_like(rows, restart), torch.zeros_like(rows), tuple(x.shape[1:])
    if ball.norm == "Linf":
        noise = rng.uniform(rows, trial, at, shape, stream=0) * 2 - 1
        return (x + ball.eps * noise).clamp(0.0, 1.0)
    radius = rng.uniform(rows, trial, at, (1,) * len(shape), stream=0)
    direction = ball.direction(rng.normal(rows, trial, at, shape, stream=1))
    return (x + ball.eps * radius * direction).clamp(0.0, 1.0)


@ATTACKS.register("pgd")
class PGDAttack(RestartedAscent):
    """Projected gradient descent on the cross-entropy (Madry et al. 2018)."""

    step_size: RadiusGiven | None = Field(default=None, description="length of a step; default: eps/4")

    @model_validator(mode="after")
    def _moves(self) -> PGDAttack:
        if self.step_size is not None and float(self.step_size) <= 0:
            raise ValueError(f"step_size: {self.step_size} goes nowhere; give one above 0, as 2/255")
        return self

    def steps_in(self, ball: Ball) -> Steps:
        """All of the same length."""
        return SteepestSteps(ball, ball.eps / 4 if self.step_size is None else float(self.step_size))


@ATTACKS.register("fgsm")
class FGSMAttack(GradientAttack):
    """One step of length eps from the clean input (Goodfellow et al. 2015)."""

    def events(
        self,
        model: nn.Module,
        examples: Examples,
        verifier: Verifier,
        *,
        ball: Ball,
        seed: int,
        batch_size: int,
        device: torch.device,
    ) -> Iterator[Event]:
        """One gradient an example; see `Attack.events`."""
        yield from _model_warnings(model, examples, batch_size, device)
        gradients, done = _Gradients(device), 0
        for rows in torch.arange(len(examples)).split(batch_size):
            clean = examples.x[rows].to(device)
            _, gradient = _gradient(model, clean, examples.y[rows].to(device), cross_entropy)
            gradients.note(gradient)
            yield from gradients.warnings()
            broken = verifier.check(rows, ball.step(clean, clean, gradient, ball.eps))
            yield from examples.verdicts(rows[broken], self.method)
            yield from examples.verdicts(rows[~broken], ROBUST)
            done += len(rows)
            yield Progress(self.method, done, len(examples))


@true_float32()
def _model_warnings(model: nn.Module, examples: Examples, batch_size: int, device: torch.device) -> list[AttackWarning]:
    """Whether the model is random, returns probabilities, or differentiates."""
    return model_warnings(model, examples, batch_size=batch_size, device=device)
