"""Who decides whether an example is broken: never the search that claims it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from sam_bench.attacks.doubts import doubt
from sam_bench.device import true_float32
from sam_bench.perturb.ball import Ball
from sam_bench.records import MISCLASSIFIED, ROBUST

SMALLEST_BATCH = 16
"""From this many rows on, a CPU's logits of an example do not depend on how many others share its batch."""


@dataclass(frozen=True)
class Verdict:
    """What is known of one example.

    Attributes:
        example: Its place in the data set.
        verdict: 'robust', 'misclassified' (clean) or the name of the attack that broke it; None while
            attacks are left that may break it.
        withstood: How many of an ensemble's attacks, in their order, it has behind it.
        witness: float32 [C, H, W] on the CPU: the adversarial example; None where there is none.
    """

    example: int
    verdict: str | None
    withstood: int = 0
    witness: Tensor | None = None


def pad(x: Tensor, rows: int) -> Tensor:
    """At least so many rows: x [B, ...] itself, or followed by copies of its first row."""
    missing = rows - len(x)
    return x if missing <= 0 else torch.cat([x, x[:1].expand(missing, *x.shape[1:])])


NO_CLASS = -1
"""What is predicted where a logit is NaN: no label."""


def classes_of(logits: Tensor) -> Tensor:
    """Predicted classes, int64 [B], of logits [B, classes]; `NO_CLASS` where one is NaN, which argmax calls largest.

    Infinite logits are compared as any others: there is a largest, or a tie, which the first one wins.
    """
    return torch.where(logits.isnan().any(1), NO_CLASS, logits.argmax(1))


@torch.no_grad()
def predict(model: nn.Module, x: Tensor, *, batch_size: int, device: torch.device) -> Tensor:
    """Predicted classes, as `classes_of` has them, on the CPU, of inputs float32 [N, ...] in [0, 1]; not in TF32."""
    with true_float32():
        return torch.cat(
            [classes_of(model(pad(part.to(device), SMALLEST_BATCH)))[: len(part)].cpu() for part in x.split(batch_size)]
        )


class Judge:
    """Projects candidates into ball and box, classifies them again in float32, and keeps the verdicts.

    An example's first confirmed witness stays. Positions count the examples given here, from 0.

    Args:
        model: In eval mode, on `device`.
        x: Clean inputs, float32 [N, ...], on the CPU.
        y: Their labels, int64 [N], on the CPU.
        index: Their places in the data set, int64 [N], on the CPU.
        ball: What is allowed.
        batch_size: Examples at a time.
        device: Where the model is.
        attacks: How many attacks an example has to withstand.
        withstood: int64 [N]: how many of them it has withstood already.
        told: Called with each example's state as it changes.
        keep_witnesses: Put them into `x_adv`, a copy of x; without, that is x itself.
        doubt: Told, once and before the verdict, that the model answers NaN.
    """

    def __init__(
        self,
        model: nn.Module,
        x: Tensor,
        y: Tensor,
        *,
        index: Tensor,
        ball: Ball,
        batch_size: int,
        device: torch.device,
        attacks: int,
        withstood: Tensor,
        told: Callable[[Verdict], None],
        keep_witnesses: bool = True,
        doubt: Callable[[str], None] = lambda _: None,
    ) -> None:
        self._model, self._x, self._y, self._index, self._ball = model, x, y, index, ball
        self._batch_size, self._device, self._told, self._doubt = batch_size, device, told, doubt
        self._met_nan = False
        self._attacks, self._withstood = attacks, withstood.tolist()
        self.verdicts: list[str | None] = [None] * len(x)
        self._keeps = keep_witnesses
        self.x_adv = x.clone() if keep_witnesses else x

    def clean(self) -> Tensor:
        """Positions of the examples that the model gets right, int64 [K]; the others are settled."""
        right = self._predict(self._x) == self._y
        for position in (~right).nonzero().flatten().tolist():
            self._settle(position, MISCLASSIFIED)
        return right.nonzero().flatten()

    def confirm(self, positions: Tensor, candidates: Tensor, by: str | list[str]) -> Tensor:
        """Judge candidates, and settle the examples they break.

        A candidate at which a logit is NaN breaks its example, whatever the label, and raises a doubt: that is not
        the right answer. (Upstream takes the first NaN for the largest logit, so that mostly label 0 is spared.)

        Args:
            positions: int64 [K], on the CPU.
            candidates: float [K, ...]; any value, on any device.
            by: Name of the attack that found them, or one for each.

        Returns:
            bool [K], on the CPU: which of them are adversarial.
        """
        clean = self._x[positions]
        candidate = self._ball.project(candidates.float().cpu(), clean)
        # NaN is in no ball, yet a network misclassifies it: it counts as nothing found.
        candidate = torch.where(candidate.isfinite(), candidate, clean)
        broken = self._predict(candidate) != self._y[positions]
        for row in broken.nonzero().flatten().tolist():
            position = int(positions[row])
            if self.verdicts[position] is None:
                if self._keeps:
                    self.x_adv[position] = candidate[row]
                self._settle(position, by if isinstance(by, str) else by[row], candidate[row])
        return broken

    def withstand(self, position: int, attacks: int) -> None:
        """Note that an example has so many of the attacks behind it; after the last it is robust."""
        self._withstood[position] = attacks
        if attacks == self._attacks:
            self._settle(position, ROBUST)
        else:
            self._told(Verdict(int(self._index[position]), None, attacks))

    def close(self) -> list[str]:
        """Every verdict; what is not settled yet is robust."""
        for position, verdict in enumerate(self.verdicts):
            if verdict is None:
                self.withstand(position, self._attacks)
        return [verdict for verdict in self.verdicts if verdict is not None]

    def _predict(self, x: Tensor) -> Tensor:
        predicted = predict(self._model, x, batch_size=self._batch_size, device=self._device)
        if not self._met_nan and bool((predicted == NO_CLASS).any()):
            self._met_nan = True
            self._doubt(doubt("nan-logits"))
        return predicted

    def _settle(self, position: int, verdict: str, witness: Tensor | None = None) -> None:
        self.verdicts[position] = verdict
        self._told(Verdict(int(self._index[position]), verdict, self._withstood[position], witness))
