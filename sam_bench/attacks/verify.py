"""Who decides whether an example is broken: never the attack that claims it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn

from sam_bench.attacks.events import AttackWarning, Examples, Verdict
from sam_bench.attacks.warnings import warning
from sam_bench.device import repeatable_convolutions, true_float32
from sam_bench.errors import InputError, SamBenchError
from sam_bench.perturb.ball import Ball
from sam_bench.records import MISCLASSIFIED, ROBUST

SMALLEST_BATCH = 16
"""From this many rows on, a CPU's logits of an example do not depend on how many others share its batch."""

_NUMBERS_A_PASS = 32768

_AT_A_TIME = 128
"""How many rows the verifier gives a GPU, always: it chooses its kernels, and so its rounding, by the shape."""

NO_CLASS = -1
"""What is predicted where a logit is NaN: no label."""


def pad(x: Tensor, rows: int) -> Tensor:
    """At least so many rows: x [B, ...] itself, or followed by copies of its first row."""
    missing = rows - len(x)
    return x if missing <= 0 else torch.cat([x, x[:1].expand(missing, *x.shape[1:])])


def rows_for(count: int, device: torch.device) -> int:
    """How many rows the model is given for so many examples, so that a shrinking batch has few shapes.

    A GPU chooses its kernels for every new shape: there it is a power of two. A CPU's numbers agree from 16 rows on.
    """
    return SMALLEST_BATCH if device.type == "cpu" else max(SMALLEST_BATCH, 1 << (count - 1).bit_length())


def rows_that_fill_a_cpu(numbers: int) -> int:
    """How many images of so many numbers fill a pass of a small network.

    It takes 512 images of 8x8 only seven times as long as 16: a pass of fewer takes much of its time for its layers.
    """
    return _NUMBERS_A_PASS // numbers


def classes_of(logits: Tensor) -> Tensor:
    """Predicted classes, int64 [B], of logits [B, classes]; `NO_CLASS` where one is NaN, which argmax calls largest.

    Infinite logits are compared as any others: there is a largest, or a tie, which the first one wins.
    """
    return torch.where(logits.isnan().any(1), NO_CLASS, logits.argmax(1))


@torch.no_grad()
def predict(model: nn.Module, x: Tensor, *, batch_size: int, device: torch.device, highest_label: int = 0) -> Tensor:
    """Predicted classes, as every verdict sees them: in true float32, not in TF32, and by the same kernels.

    Args:
        model: In eval mode, on `device`.
        x: Inputs, float32 [N, ...].
        batch_size: Examples at a time; on a CPU no prediction depends on it.
        device: Where the model is.
        highest_label: The highest that a prediction is compared with.

    Returns:
        int64 [N] on the CPU; see `classes_of`.

    Raises:
        InputError: The model does not know the highest label, which would always count as misclassified.
    """
    predicted = []
    on_cpu = device.type == "cpu"
    size = batch_size if on_cpu else max(min(batch_size, _AT_A_TIME), SMALLEST_BATCH)
    with true_float32(), repeatable_convolutions():
        for part in x.split(size):
            logits = model(pad(part.to(device), SMALLEST_BATCH if on_cpu else size))
            if highest_label >= logits.shape[1]:
                raise InputError(f"y has labels up to {highest_label}, but the model knows {logits.shape[1]} classes")
            predicted.append(classes_of(logits)[: len(part)].cpu())
    return torch.cat(predicted)


class Verifier:
    """Classifies inputs in float32, with the model itself, and keeps which examples are broken.

    Args:
        model: In eval mode, on `device`.
        ball: What is allowed.
        batch_size: Examples at a time.
        device: Where the model is.

    Attributes:
        warnings: What it met that makes the accuracy doubtful.
    """

    def __init__(self, model: nn.Module, *, ball: Ball, batch_size: int, device: torch.device) -> None:
        self._model, self._ball, self._batch_size, self._device = model, ball, batch_size, device
        self.warnings: list[AttackWarning] = []
        self._found: dict[int, Tensor] = {}  # row to the first adversarial example that was verified
        self._survived: dict[int, int] = {}  # row to attacks survived, of examples without a final verdict

    def clean(self, examples: Examples) -> Tensor:
        """Which examples the model gets right, bool [N]; asked where not known yet. In `check`, a row counts those."""
        right = known_right(examples)
        asked = ~right
        if bool(asked.any()):
            right[asked] = self._predict(examples.x[asked], int(examples.y.max())) == examples.y[asked]
        # The attack is given a copy: it cannot move what its result is compared with.
        self._rows = right.nonzero().flatten()
        self._x, self._y, self._index = examples.x, examples.y, examples.index[self._rows].tolist()
        self._row_of = {index: row for row, index in enumerate(self._index)}
        self._survived = dict(enumerate(examples.attacks_survived[self._rows].tolist()))
        return right

    def check(self, rows: Tensor, x_adv: Tensor) -> Tensor:
        """Which candidates are adversarial, once they are projected into ball and box.

        A candidate at which a logit is NaN breaks its example, whatever the label, and raises a warning: that is not
        the right answer. (Upstream takes the first NaN for the largest logit, so that mostly label 0 is spared.)

        Args:
            rows: Which examples, int64 [K], on the CPU.
            x_adv: float [K, ...]; any value, on any device.

        Returns:
            bool [K], on the CPU.
        """
        places = self._rows[rows]
        clean = self._x[places]
        candidate = self._ball.project(x_adv.detach().float().cpu(), clean)
        # NaN is in no ball, yet a network misclassifies it: it counts as nothing found.
        candidate = torch.where(candidate.isfinite(), candidate, clean)
        broken = self._predict(candidate) != self._y[places]
        for row, adversarial in zip(rows[broken].tolist(), candidate[broken], strict=True):
            if row in self._survived:
                self._found.setdefault(row, adversarial.clone())
        return broken

    def certify(self, claim: Verdict, attacks: Sequence[str]) -> Verdict | None:
        """An attack's verdict with the adversarial example that this verifier found to be one.

        Args:
            claim: What the attack says.
            attacks: Names of all attacks of the run, in order.

        Returns:
            The verdict to tell; None where the example has its final verdict already, or is broken and the attack
            says that it is robust.

        Raises:
            SamBenchError: The claim is not what was found here.
        """
        row = self._row_of.get(claim.example)
        if row is None or claim.outcome not in (None, ROBUST, *attacks):
            raise SamBenchError(
                f"the attack says {claim.outcome!r} of example {claim.example}; it may say {', '.join(attacks)}, "
                "robust or None, of the examples that it was given"
            )
        if row not in self._survived:
            return None
        if claim.outcome in attacks:
            if row not in self._found:
                raise SamBenchError(
                    f"the attack {claim.outcome} claims to have broken example {claim.example}, which the verifier has "
                    "not found misclassified inside the ball; ask `Verifier.check` first"
                )
            return Verdict(claim.example, claim.outcome, self._survived.pop(row), self._found.pop(row))
        if row in self._found:
            return None
        survived = len(attacks) if claim.outcome == ROBUST else claim.attacks_survived
        if not self._survived[row] <= survived <= len(attacks):
            raise SamBenchError(
                f"the attack says that example {claim.example} has survived {survived} of {len(attacks)} attacks, "
                f"after {self._survived[row]}"
            )
        self._survived[row] = survived
        if survived < len(attacks):
            return Verdict(claim.example, None, survived)
        del self._survived[row]
        return Verdict(claim.example, ROBUST, survived)

    def remaining(self, attacks: Sequence[str]) -> Iterator[Verdict]:
        """The final verdicts of which the attack said nothing; arguments as for `certify`."""
        for row, survived in list(self._survived.items()):
            outcome = attacks[min(survived, len(attacks) - 1)] if row in self._found else ROBUST
            verdict = self.certify(Verdict(self._index[row], outcome), attacks)
            if verdict is not None:
                yield verdict

    def _predict(self, x: Tensor, highest_label: int = 0) -> Tensor:
        classes = predict(self._model, x, batch_size=self._batch_size, device=self._device, highest_label=highest_label)
        if bool((classes == NO_CLASS).any()) and not self.warnings:
            self.warnings.append(warning("nan-logits"))
        return classes


def known_right(examples: Examples) -> Tensor:
    """A copy of `examples.right`, bool [N]."""
    return torch.zeros(len(examples), dtype=torch.bool) if examples.right is None else examples.right.clone()


def without_attack(examples: Examples, right: Tensor, *, continued: bool) -> Iterator[Verdict]:
    """The verdicts of the examples that the model gets wrong without an attack.

    Args:
        examples: What it was asked about.
        right: Which it gets right, bool [N].
        continued: Also say which it was found to get right now, for a run that goes on with what this one leaves.
    """
    told = ~known_right(examples) if continued else ~right
    for row in told.nonzero().flatten().tolist():
        outcome = None if right[row] else MISCLASSIFIED
        yield Verdict(int(examples.index[row]), outcome, int(examples.attacks_survived[row]))
