"""What an attack is: a plug-in searches, the base verifies. An attack cannot raise its own score."""

from __future__ import annotations

import time
from abc import abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from sam_bench._version import __version__
from sam_bench.errors import SamBenchError
from sam_bench.modes import attacking
from sam_bench.perturb.ball import Ball
from sam_bench.records import MISCLASSIFIED, ROBUST, Norm
from sam_bench.registry import Component, Registry


@dataclass(frozen=True)
class Progress:
    """How far an attack is, for a progress display."""

    stage: str
    done: int
    total: int
    robust: int | None = None
    """Examples of all that are still robust, where known."""


@dataclass(frozen=True)
class AttackResult:
    """What came out, example by example.

    Attributes:
        verdicts: Per example 'robust', 'misclassified' (clean) or the name of the attack that broke it.
        attacks: Names of the attacks in the order they ran.
        x_adv: float32 [N, ...], on the CPU: the witness where there is one, else the clean input.
        warnings: The attack's own doubts about its result, one sentence each.
        engine: The implementation that ran, with its version.
        seconds: Wall-clock time.
    """

    verdicts: list[str]
    attacks: list[str]
    x_adv: Tensor
    warnings: list[str]
    engine: str
    seconds: float


@dataclass
class Found:
    """What a search hands back: candidates, who found them, doubts. Nothing in it is believed unchecked.

    Attributes:
        x_adv: float [N, ...]: a candidate for each example (the clean input where nothing was found).
        by: Per example, the name of the attack whose candidate this is.
    """

    x_adv: Tensor
    by: list[str]
    warnings: list[str] = field(default_factory=list)


@torch.no_grad()
def predict(model: nn.Module, x: Tensor, *, batch_size: int, device: torch.device) -> Tensor:
    """Predicted classes, int64 [N] on the CPU, of inputs float32 [N, ...] in [0, 1]."""
    return torch.cat([model(part.to(device)).argmax(1).cpu() for part in x.split(batch_size)])


class Attack(Component):
    """Base of every attack. A subclass's fields are its settings; it implements `search`."""

    @property
    def engine(self) -> str:
        """The implementation that runs, with its version, as a record names it."""
        return f"sam-bench {__version__}"

    @property
    def attacks(self) -> list[str]:
        """Names of what runs, in order; one name for an attack that is one."""
        return [self.method]

    @abstractmethod
    def search(
        self,
        model: nn.Module,
        x: Tensor,
        y: Tensor,
        *,
        ball: Ball,
        seed: int,
        batch_size: int,
        device: torch.device,
        progress: Callable[[Progress], None],
    ) -> Found:
        """Look for adversarial examples.

        Args:
            model: In eval mode, parameters frozen, on `device`; maps float32 [B, C, H, W] in [0, 1] to logits.
            x: Correctly classified clean inputs, float32 [N, C, H, W] in [0, 1], on the CPU.
            y: Their labels, int64 [N], on the CPU.
        """

    def run(
        self,
        model: nn.Module,
        x: Tensor,
        y: Tensor,
        *,
        norm: Norm,
        eps: float,
        seed: int = 0,
        batch_size: int = 128,
        device: torch.device | str = "cpu",
        progress: Callable[[Progress], None] = lambda _: None,
    ) -> AttackResult:
        """Attack and verify.

        Every candidate is projected into ball and box and classified again in float32; only what the
        model then gets wrong counts as broken.

        Args:
            model: Maps float32 [B, C, H, W] in [0, 1] to logits [B, classes]; its mode and its
                parameters' `requires_grad` are restored afterwards.
            x: Clean inputs, float32 [N, C, H, W] in [0, 1].
            y: Labels, int64 [N].
            norm: "Linf" or "L2".
            eps: Radius of the ball, in the inputs' units.
            seed: Decides every random draw.
        """
        started = time.monotonic()
        where = torch.device(device)
        ball = Ball(norm=norm, eps=eps)
        with attacking(model):
            correct = predict(model, x, batch_size=batch_size, device=where) == y
            verdicts = [ROBUST if right else MISCLASSIFIED for right in correct.tolist()]
            index = correct.nonzero().flatten()
            x_adv = x.clone()
            warnings: list[str] = []
            if len(index):
                found = self.search(
                    model,
                    x[index],
                    y[index],
                    ball=ball,
                    seed=seed,
                    batch_size=batch_size,
                    device=where,
                    progress=progress,
                )
                warnings = found.warnings
                foreign = sorted(set(found.by) - set(self.attacks))
                if foreign or len(found.by) != len(index):
                    raise SamBenchError(
                        f"attack {self.method!r} must say for each of {len(index)} examples which of "
                        f"{', '.join(self.attacks)} found its candidate, not {', '.join(foreign) or len(found.by)}"
                    )
                candidate = ball.project(found.x_adv.float().cpu(), x[index])
                # NaN is in no ball, yet a network misclassifies it: it counts as nothing found.
                candidate = torch.where(candidate.isfinite(), candidate, x[index])
                broken = predict(model, candidate, batch_size=batch_size, device=where) != y[index]
                for position in broken.nonzero().flatten().tolist():
                    example = int(index[position])
                    verdicts[example] = found.by[position]
                    x_adv[example] = candidate[position]
        return AttackResult(
            verdicts=verdicts,
            attacks=self.attacks,
            x_adv=x_adv,
            warnings=warnings,
            engine=self.engine,
            seconds=time.monotonic() - started,
        )


ATTACKS: Registry[Attack] = Registry(kind="attack", field="attack", group="sam_bench.attacks")
