"""FGSM and PGD as attacks: the search that adversarial training uses, run to break rather than to teach."""

from __future__ import annotations

from collections.abc import Callable

import torch
from pydantic import Field
from torch import Tensor, nn

from sam_bench.attacks.base import ATTACKS, Attack, Found, Progress
from sam_bench.perturb.ball import Ball
from sam_bench.perturb.inputs import input_gradient
from sam_bench.records import Radius
from sam_bench.seeds import generator


@ATTACKS.register("pgd")
class PGDAttack(Attack):
    """Projected gradient descent on the cross-entropy (Madry et al. 2018).

    Every iterate counts: an example is broken when any of them is misclassified, and is then left
    alone. Attacks that look at the last iterate only can come out a little higher.
    """

    steps: int = Field(default=10, ge=1, description="steps of the ascent")
    step_size: Radius | None = Field(default=None, description="length of a step; default: eps/4")
    restarts: int = Field(default=1, ge=1, description="random starts tried for each example")
    random_start: bool = Field(default=True, description="start at a random point of the ball")

    def _size(self, eps: float) -> float:
        return eps / 4 if self.step_size is None else float(self.step_size)

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
        """Restart after restart, batch after batch, over what still stands."""
        x_adv = x.clone()
        standing = torch.arange(len(x))
        for restart in range(self.restarts):
            draws = generator(seed, self.method, restart)
            left: list[Tensor] = []
            done, robust = 0, len(standing)
            for index in standing.split(batch_size):
                clean = x[index]
                start = ball.sample(clean, draws) if self.random_start else clean
                found, broken = self._attack_batch(
                    model, clean.to(device), y[index].to(device), start.to(device), ball=ball
                )
                x_adv[index] = found.cpu()
                left.append(index[~broken.cpu()])
                done, robust = done + len(index), robust - int(broken.sum())
                progress(Progress(self.method, done, len(standing), robust))
            standing = torch.cat(left)
            if not len(standing):
                break
        return Found(x_adv=x_adv, by=[self.method] * len(x))

    def _attack_batch(
        self, model: nn.Module, x: Tensor, y: Tensor, start: Tensor, *, ball: Ball
    ) -> tuple[Tensor, Tensor]:
        """Candidates [B, ...] and which of them the model gets wrong, bool [B]."""
        found, broken = start.clone(), torch.zeros(len(x), dtype=torch.bool, device=x.device)
        standing, x_adv = torch.arange(len(x), device=x.device), start
        for _ in range(self.steps):
            logits, gradient = input_gradient(model, x_adv, y[standing])
            stands = logits.argmax(1) == y[standing]
            broken[standing[~stands]] = True
            standing, x_adv, gradient = standing[stands], x_adv[stands], gradient[stands]
            if not len(standing):
                return found, broken
            x_adv = ball.step(x_adv, x[standing], gradient, self._size(ball.eps))
            found[standing] = x_adv
        with torch.no_grad():
            broken[standing] = model(x_adv).argmax(1) != y[standing]
        return found, broken


@ATTACKS.register("fgsm")
class FGSMAttack(Attack):
    """One step of length eps from the clean input (Goodfellow et al. 2015)."""

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
        """One gradient an example."""
        parts = []
        for clean, labels in zip(x.split(batch_size), y.split(batch_size), strict=True):
            moved = clean.to(device)
            _, gradient = input_gradient(model, moved, labels.to(device))
            parts.append(ball.step(moved, moved, gradient, ball.eps).cpu())
            progress(Progress(self.method, sum(map(len, parts)), len(x)))
        return Found(x_adv=torch.cat(parts), by=[self.method] * len(x))
