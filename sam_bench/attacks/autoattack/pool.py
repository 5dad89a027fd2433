"""The batch: every row busy, a broken example out at once, the next one in its place."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from sam_bench.attacks.autoattack.rows import Search, join

Confirm = Callable[[Tensor, Tensor], Tensor]
"""Positions int64 [K] and candidates [K, ...] to bool [K] on the CPU: which are adversarial indeed."""

Settled = Callable[[int, bool], None]
"""An example's position, and whether it withstood every trial of the attack."""

Entry = tuple[int, int]
"""An example's position, and which of its trials."""


@dataclass(frozen=True)
class Pool:
    """Runs a search over examples.

    Attributes:
        capacity: Rows of the batch.
        confirm: Has the last word on a witness.
        settled: Told of each example as the attack is done with it.
    """

    capacity: int
    confirm: Confirm
    settled: Settled

    def refilled(self, search: Search[Any], positions: Tensor) -> None:
        """Examples in any mixture: a row that is free takes the next example, or the next trial of one.

        An example's trials follow one another, since the first success spares the rest. Only where rows
        would be padded anyway do several of them run at once.

        Args:
            search: With draws that do not depend on the batch.
            positions: int64 [N]: which examples, in the order in which they begin.
        """
        queue = _Queue(positions.tolist(), search.trials)
        rows = None
        while True:
            incoming = queue.next(self.capacity - (0 if rows is None else len(rows)))
            incoming += queue.early(search.oracle.rows - len(incoming) - (0 if rows is None else len(rows)))
            if incoming:
                begun = _begin(search, incoming)
                rows = begun if rows is None else join(rows, begun)
            if rows is None:
                return
            broken, over = self._advance(search, rows)
            if not broken and not over:
                continue
            entries = _entries(rows)
            gone = {entries[row][0] for row in broken}
            for position in gone:
                queue.drop(position)
                self.settled(position, False)
            for row in over:
                if entries[row][0] not in gone and queue.failed(entries[row][0]):
                    self.settled(entries[row][0], True)
            leaving = {*over, *(row for row, entry in enumerate(entries) if entry[0] in gone)}
            rows = _without(rows, leaving)

    def in_cohorts(self, make: Callable[[], Search[Any]], positions: Tensor) -> None:
        """Batches and trials one after the other, as upstream composes them; rows leave, none is added.

        Args:
            make: A new search, its draws at their beginning, for each batch.
            positions: int64 [N]: which examples, in upstream's order.
        """
        for cohort in positions.split(self.capacity):
            search = make()
            standing = cohort.tolist()
            for trial in range(search.trials):
                rows = _begin(search, [(position, trial) for position in standing]) if standing else None
                standing = []
                while rows is not None:
                    broken, over = self._advance(search, rows)
                    entries = _entries(rows) if broken or over else []
                    standing += [entries[row][0] for row in over]
                    for row in broken:
                        self.settled(entries[row][0], False)
                    rows = _without(rows, {*broken, *over})
                standing.sort()
            for position in standing:
                self.settled(position, True)

    def _advance(self, search: Search[Any], rows: Any) -> tuple[list[int], list[int]]:
        """A few ticks; then which rows hold a confirmed witness, and which others are at the end of their trial."""
        for _ in range(search.harvest_every):
            search.tick(rows)
        found, over = torch.stack([rows.found, rows.iteration >= search.ticks]).cpu()
        broken = torch.zeros_like(found)
        if bool(found.any()):
            index = found.nonzero().flatten()
            there = index.to(rows.found.device)
            broken[index] = self.confirm(rows.position[there].cpu(), rows.witness[there])
            denied = index[~broken[index]]
            if len(denied):
                which = denied.to(rows.found.device)
                rows.found[which] = False
                over[denied] |= search.turned_down(rows, which)
        return broken.nonzero().flatten().tolist(), (over & ~broken).nonzero().flatten().tolist()


class _Queue:
    """Which trial begins next.

    Args:
        positions: The examples, in the order in which they begin.
        trials: Of each.
    """

    def __init__(self, positions: list[int], trials: int) -> None:
        self._waiting, self._trials = deque(positions), trials
        self._begun: dict[int, int] = {}  # trials begun of the examples that are on their way
        self._running: dict[int, int] = {}

    def next(self, count: int) -> list[Entry]:
        """Up to so many trials of examples none of whose trials is running."""
        return [self._begin(self._waiting.popleft()) for _ in range(min(count, len(self._waiting)))]

    def early(self, count: int) -> list[Entry]:
        """Up to so many trials that would only begin after those that are running."""
        found: list[Entry] = []
        if count <= 0 or self._trials == 1:
            return found
        while len(found) < count:
            open_to = [position for position, running in self._running.items() if running and self._left(position)]
            if not open_to:
                break
            found += [self._begin(position) for position in open_to[: count - len(found)]]
        return found

    def failed(self, position: int) -> bool:
        """Note that a trial found nothing; whether it was the last of its example."""
        self._running[position] -= 1
        if self._running[position]:
            return False
        if self._left(position):
            self._waiting.append(position)
            return False
        self.drop(position)
        return True

    def drop(self, position: int) -> None:
        """Forget an example."""
        del self._begun[position], self._running[position]

    def _left(self, position: int) -> bool:
        return self._begun[position] < self._trials

    def _begin(self, position: int) -> Entry:
        trial = self._begun.setdefault(position, 0)
        self._begun[position] += 1
        self._running[position] = self._running.get(position, 0) + 1
        return position, trial


def _begin(search: Search[Any], entries: Iterable[Entry]) -> Any:
    position, trial = torch.tensor(list(entries), dtype=torch.int64).unbind(1)
    return search.begin(position, trial)


def _entries(rows: Any) -> list[Entry]:
    return list(zip(rows.position.tolist(), rows.trial.tolist(), strict=True))


def _without(rows: Any, leaving: set[int]) -> Any:
    """The rows that stay, in their order; None where none does."""
    if not leaving:
        return rows
    if len(leaving) == len(rows):
        return None
    stays = [row for row in range(len(rows)) if row not in leaving]
    return rows.take(torch.tensor(stays, device=rows.position.device))
