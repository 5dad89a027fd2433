"""The accuracies that AutoAttack prints while it runs, made of the verdicts: whoever attacks which examples when."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

from sam_bench.attacks.events import Event, Progress, Verdict
from sam_bench.records import MISCLASSIFIED


class AccuracyLines:
    """Says each accuracy as soon as it is known of all examples.

    Args:
        attacks: Names of the attacks, in order.
        examples: How many examples there are.
    """

    def __init__(self, attacks: list[str], examples: int) -> None:
        self._attacks, self._examples = attacks, examples
        self._behind: Counter[int] = Counter()  # place of an example to how many attacks can change nothing of it
        self._passed = [0] * len(attacks)  # examples that have each attack behind them
        self._lost: Counter[str] = Counter()
        self._said_initial, self._said = False, 0

    def of(self, event: Event) -> Iterator[str]:
        """What can be said after an event; an event that comes twice counts once."""
        if isinstance(event, Verdict):
            self._take(event)
        # Where all that is not settled is attacked now, all that is misclassified is known.
        elif isinstance(event, Progress) and not event.done and event.total + self._lost.total() == self._examples:
            yield from self._initial()
        while self._said < len(self._attacks) and self._passed[self._said] == self._examples:
            yield from self._initial()
            attack = self._attacks[self._said]
            self._said += 1
            yield f"robust accuracy after {attack.upper()}: {self._left(MISCLASSIFIED, *self._attacks[: self._said])}"

    def _take(self, verdict: Verdict) -> None:
        before, every = self._behind[verdict.example], len(self._attacks)
        if before == every:
            return
        if verdict.outcome is not None:
            self._lost[verdict.outcome] += 1
        now = every if verdict.outcome is not None else max(before, verdict.attacks_survived)
        self._behind[verdict.example] = now
        for place in range(before, now):
            self._passed[place] += 1

    def _initial(self) -> Iterator[str]:
        if not self._said_initial:
            self._said_initial = True
            yield f"initial accuracy: {self._left(MISCLASSIFIED)}"

    def _left(self, *outcomes: str) -> str:
        return f"{1 - sum(self._lost[each] for each in outcomes) / self._examples:.2%}"
