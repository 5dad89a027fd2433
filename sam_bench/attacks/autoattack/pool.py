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
        looked: Called after each look at the rows, when all that it settled has been told, with the share of the
            work that is behind: 1 where every example is settled, and before that the passes made, as if every
            example that is left were to take as many as it can.
    """

    capacity: int
    confirm: Confirm
    settled: Settled
    looked: Callable[[float], None] = lambda share: None

    def refilled(self, search: Search[Any], positions: Tensor) -> None:
        """Examples in any mixture: a row that is free takes the next example, or the next trial of one.

        An example's trials follow one another, since the first success spares the rest. Only where rows
        would be padded anyway do several of them run at once.

        Args:
            search: With draws that do not depend on the batch.
            positions: int64 [N]: which examples, in the order in which they begin.
        """
        queue = _Queue(self._to_attack(search, positions).tolist(), search.trials)
        work = _Work(search, examples=len(positions))
        rows = None
        while True:
            incoming = queue.next(self.capacity - (0 if rows is None else len(rows)))
            if not search.judged_once:  # there the first trial with an error is the last
                incoming += queue.early(search.oracle.rows - len(incoming) - (0 if rows is None else len(rows)))
            if incoming:
                begun = _begin(search, incoming)
                rows = begun if rows is None else join(rows, begun)
            if rows is None:
                self.looked(1.0)
                return
            done, over, iterations = self._advance(search, rows)
            if not done and not over:
                self.looked(work.share(queue.left, queue.ended, iterations))
                continue
            entries = _entries(rows)
            gone = {entries[row][0]: stands for row, stands in done.items()}
            for position, stands in gone.items():
                queue.drop(position)
                self.settled(position, stands)
            for row in over:
                if entries[row][0] not in gone and queue.failed(entries[row][0]):
                    self.settled(entries[row][0], True)
            leaving = {*over, *(row for row, entry in enumerate(entries) if entry[0] in gone)}
            self.looked(work.share(queue.left, queue.ended, _staying(iterations, leaving)))
            rows = _without(rows, leaving)

    def in_cohorts(self, make: Callable[[], Search[Any]], positions: Tensor) -> None:
        """Batches and trials one after the other, as upstream composes them; rows leave, none is added.

        Args:
            make: A new search, its draws at their beginning, for each batch.
            positions: int64 [N]: which examples, in upstream's order.
        """
        left = len(positions)
        for cohort in positions.split(self.capacity):
            search = make()
            work = _Work(search, examples=len(positions))
            standing = self._to_attack(search, cohort).tolist()
            left -= len(cohort) - len(standing)
            for trial in range(search.trials):
                rows = _begin(search, [(position, trial) for position in standing]) if standing else None
                standing = []
                while rows is not None:
                    done, over, iterations = self._advance(search, rows)
                    entries = _entries(rows) if done or over else []
                    standing += [entries[row][0] for row in over]
                    for row, stands in done.items():
                        self.settled(entries[row][0], stands)
                    left -= len(done)
                    leaving = {*done, *over}
                    ended = len(standing) + trial * (len(standing) + len(rows) - len(leaving))
                    self.looked(work.share(left, ended, _staying(iterations, leaving)))
                    rows = _without(rows, leaving)
                standing.sort()
            for position in standing:
                self.settled(position, True)
            left -= len(standing)
            self.looked(work.share(left, 0, None))

    def _to_attack(self, search: Search[Any], positions: Tensor) -> Tensor:
        """The examples to attack: all, unless errors are random. Then an error at the clean input is the candidate."""
        if not search.judged_once or not len(positions):
            return positions
        right = []
        for part in positions.split(self.capacity):
            clean = search.cases.x[part]
            logits = search.oracle.logits(clean.to(search.cases.device))
            misclassified = search.wrong(logits.cpu(), search.cases.y[part])
            wrong = misclassified.nonzero().flatten()
            if len(wrong):
                broken = self.confirm(part[wrong], clean[wrong])
                for position, gone in zip(part[wrong].tolist(), broken.tolist(), strict=True):
                    self.settled(position, not gone)
            right.append(part[~misclassified])
        return torch.cat(right)

    def _advance(self, search: Search[Any], rows: Any) -> tuple[dict[int, bool], list[int], Tensor]:
        """A few ticks.

        Returns:
            Rows whose example is settled, and whether it stands; others whose trial is over; and the iteration of
            every row, int64 [B] on the CPU.
        """
        for _ in range(search.harvest_every):
            search.tick(rows)
        found, iteration, trial = torch.stack([rows.found.long(), rows.iteration, rows.trial]).cpu()
        found, over, last = found.bool(), iteration >= search.ticks, trial == search.trials - 1
        judged = over & (found | last) if search.judged_once else found
        done: dict[int, bool] = {}
        if bool(judged.any()):
            index = judged.nonzero().flatten()
            there = index.to(rows.found.device)
            broken = self.confirm(rows.position[there].cpu(), rows.witness[there])
            done = dict.fromkeys(index[broken].tolist(), False)
            denied = index[~broken]
            if search.judged_once:
                done |= dict.fromkeys(denied.tolist(), True)
            elif len(denied):
                which = denied.to(rows.found.device)
                rows.found[which] = False
                over[denied] |= search.turned_down(rows, which)
        return done, [row for row in over.nonzero().flatten().tolist() if row not in done], iteration


class _Work:
    """How much of a search is behind, in passes.

    Args:
        search: The search.
        examples: How many it is for.
    """

    def __init__(self, search: Search[Any], *, examples: int) -> None:
        self._ticks, self._each, self._examples = search.ticks, search.trials * search.ticks, examples

    def share(self, left: int, ended: int, iterations: Tensor | None) -> float:
        """The share behind, 0 to 1.

        Args:
            left: Examples that are not settled.
            ended: Trials that are over, of these examples.
            iterations: Of the rows in which the other trials of theirs are on their way, int64 [B] on the CPU.
        """
        running = 0 if iterations is None else int(iterations.clamp(max=self._ticks).sum())
        to_come = left * self._each - ended * self._ticks - running
        return 1.0 - to_come / max(1, self._examples * self._each)


class _Queue:
    """Which trial begins next.

    Args:
        positions: The examples, in the order in which they begin.
        trials: Of each.
    """

    def __init__(self, positions: list[int], trials: int) -> None:
        self._waiting, self._trials = deque(positions), trials
        self.left = len(positions)  # examples that are not settled
        self.ended = 0  # trials that are over, of these
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
        self.ended += 1
        if self._running[position]:
            return False
        if self._left(position):
            self._waiting.append(position)
            return False
        self.drop(position)
        return True

    def drop(self, position: int) -> None:
        """Forget an example."""
        self.left -= 1
        self.ended -= self._begun[position] - self._running[position]
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


def _staying(iterations: Tensor, leaving: set[int]) -> Tensor:
    """The iterations of the rows that stay."""
    stays = torch.ones(len(iterations), dtype=torch.bool)
    stays[list(leaving)] = False
    return iterations[stays]


def _without(rows: Any, leaving: set[int]) -> Any:
    """The rows that stay, in their order; None where none does."""
    if not leaving:
        return rows
    if len(leaving) == len(rows):
        return None
    stays = [row for row in range(len(rows)) if row not in leaving]
    return rows.take(torch.tensor(stays, device=rows.position.device))
