"""What an attack is given, and what comes out of it: examples in; verdicts, warnings and progress out."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, fields

import torch
from torch import Tensor


@dataclass(frozen=True)
class Examples:
    """Inputs to attack. A row counts the examples here, from 0; an index is a place in the data set.

    Attributes:
        x: Clean inputs, float32 [N, C, H, W] in [0, 1], on the CPU.
        y: Their labels, int64 [N], on the CPU.
        index: Their places in the data set, int64 [N], on the CPU: what random numbers may depend on.
        attacks_survived: How many attacks of an ensemble each has survived already, int64 [N]; those are not
            run on it again.
        right: Which of them the model is known to get right without an attack, bool [N]: it is not asked again, as
            one that is random would lose some each time. None: of none.
    """

    x: Tensor
    y: Tensor
    index: Tensor
    attacks_survived: Tensor
    right: Tensor | None = None

    def __len__(self) -> int:
        return len(self.x)

    @classmethod
    def of(cls, x: Tensor, y: Tensor) -> Examples:
        """A whole data set, which no attack has seen yet."""
        return cls(x, y, index=torch.arange(len(x)), attacks_survived=torch.zeros(len(x), dtype=torch.int64))

    def take(self, rows: Tensor) -> Examples:
        """The examples at `rows`: int64 [K], or a mask, bool [N]."""
        given = {each.name: getattr(self, each.name) for each in fields(self)}
        return Examples(**{name: value[rows] for name, value in given.items() if value is not None})

    def verdicts(self, rows: Tensor, outcome: str | None, attacks_survived: int = 0) -> Iterator[Verdict]:
        """One verdict for each example at `rows`, int64 [K] or bool [N]; the rest as in `Verdict`."""
        for index in self.index[rows].tolist():
            yield Verdict(index, outcome, attacks_survived)


@dataclass(frozen=True)
class Verdict:
    """What is known of one example.

    Attributes:
        example: Its place in the data set.
        outcome: 'robust', 'misclassified' (without an attack), or the name of the attack that broke it; None
            while attacks are left that may break it, and the model gets it right without one.
        attacks_survived: How many attacks of an ensemble, in their order, it has survived.
        x_adv: float32 [C, H, W] on the CPU: the adversarial example; None where there is none. The verifier
            supplies it, never the attack.
    """

    example: int
    outcome: str | None
    attacks_survived: int = 0
    x_adv: Tensor | None = None


@dataclass(frozen=True)
class AttackWarning:
    """A reason to doubt the accuracy shown.

    Attributes:
        code: What kind of reason: 'randomized', 'zero-gradients', …
        text: A sentence: what it means and what to do.
    """

    code: str
    text: str

    def __str__(self) -> str:
        """As records keep it."""
        return f"{self.code}: {self.text}"

    @classmethod
    def parse(cls, text: str) -> AttackWarning:
        """The warning that a record keeps as `text`."""
        code, _, rest = text.partition(": ")
        return cls(code, rest)


@dataclass(frozen=True)
class Progress:
    """How far an attack is, for a progress display.

    Attributes:
        stage: Name of the attack that runs.
        done: Examples it has settled.
        total: Examples it was given.
        robust: Examples of all that are still robust, where known.
        share: Share of the work done, 0 to 1, where `done` of `total` would mislead: the hardest come last.
    """

    stage: str
    done: int
    total: int
    robust: int | None = None
    share: float | None = None


Event = Verdict | AttackWarning | Progress
