"""Continuous batching: every row busy, a broken example out at once, the next one in its place."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from sam_bench.attacks.autoattack.state import Search, join

Check = Callable[[Tensor, Tensor], Tensor]
"""`Verifier.check`."""

Entry = tuple[int, int]
"""An example's row, and which of its trials."""


class Settled(NamedTuple):
    """The attack is done with an example.

    Attributes:
        row: Which of the examples.
        robust: Whether it survived every trial.
    """

    row: int
    robust: bool


Outcome = Settled | float
"""An example that is settled; or, after each look at the batch, the share of the work that is done.

The share is 1 when every example is settled. Before that it counts the passes made, as if every example that is
left were to take as many as it can.
"""


@dataclass(frozen=True)
class Pool:
    """Runs a search over examples.

    Attributes:
        capacity: Rows of the batch.
        check: Says which candidates are adversarial.
    """

    capacity: int
    check: Check

    def run_refilling(self, search: Search[Any], rows: Tensor) -> Iterator[Outcome]:
        """Examples in any mixture: a free place in the batch takes the next example, or the next trial of one.

        An example's trials follow one another, since the first success spares the rest. They run at once where images
        are so small that a larger batch takes hardly longer, and some do where the batch would be padded anyway.

        Args:
            search: With random numbers that do not depend on the batch.
            rows: int64 [N]: which examples, in the order in which they start.
        """
        to_attack = yield from self._to_attack(search, rows)
        queue = _Queue(to_attack.tolist(), search.restarts_or_targets, search.trials_at_once)
        work = _Work(search, examples=len(rows))
        state = None
        while True:
            incoming = queue.next(self.capacity - (0 if state is None else len(state)))
            if not search.verified_once:  # there the first trial with an error is the last
                incoming += queue.early(search.model.least_rows - len(incoming) - (0 if state is None else len(state)))
            if incoming:
                started = _start(search, incoming)
                state = started if state is None else join(state, started)
            if state is None:
                yield 1.0
                return
            for _ in range(search.check_every):
                search.step(state)
            look = _Look(search, state)
            if look.candidates is not None:
                look.verified(self.check(*look.candidates))
            if not look.done and not look.over:
                yield work.share(queue.left, queue.ended, look.iteration)
                continue
            entries = _entries(state)
            gone = {entries[place][0]: robust for place, robust in look.done.items()}
            for row, robust in gone.items():
                queue.drop(row)
                yield Settled(row, robust)
            for place in look.over:
                if entries[place][0] not in gone and queue.failed(entries[place][0]):
                    yield Settled(entries[place][0], True)
            leaving = {*look.over, *(place for place, entry in enumerate(entries) if entry[0] in gone)}
            yield work.share(queue.left, queue.ended, _staying(look.iteration, leaving))
            state = _without(state, leaving)

    def run_in_batches(self, make: Callable[[], Search[Any]], rows: Tensor) -> Iterator[Outcome]:
        """Batches and trials one after the other, as upstream composes them; examples leave, none is added.

        Args:
            make: A new search, its random numbers at their beginning, for each batch.
            rows: int64 [N]: which examples, in upstream's order.
        """
        left = len(rows)
        for batch in rows.split(self.capacity):
            search = make()
            work = _Work(search, examples=len(rows))
            to_attack = yield from self._to_attack(search, batch)
            standing = to_attack.tolist()
            left -= len(batch) - len(standing)
            for trial in range(search.restarts_or_targets):
                state = _start(search, [(row, trial) for row in standing]) if standing else None
                standing = []
                while state is not None:
                    for _ in range(search.check_every):
                        search.step(state)
                    look = _Look(search, state)
                    if look.candidates is not None:
                        look.verified(self.check(*look.candidates))
                    entries = _entries(state) if look.done or look.over else []
                    standing += [entries[place][0] for place in look.over]
                    for place, robust in look.done.items():
                        yield Settled(entries[place][0], robust)
                    left -= len(look.done)
                    leaving = {*look.done, *look.over}
                    ended = len(standing) + trial * (len(standing) + len(state) - len(leaving))
                    yield work.share(left, ended, _staying(look.iteration, leaving))
                    state = _without(state, leaving)
                standing.sort()
            for row in standing:
                yield Settled(row, True)
            left -= len(standing)
            yield work.share(left, 0, None)

    def _to_attack(self, search: Search[Any], rows: Tensor) -> Generator[Settled, None, Tensor]:
        """The examples to attack: all, unless errors are random. Then an error at the clean input is the candidate."""
        if not search.verified_once or not len(rows):
            return rows
        right = []
        for part in rows.split(self.capacity):
            clean = search.examples.x[part]
            logits = search.model.logits(clean.to(search.device))
            misclassified = search.wrong(logits.cpu(), search.examples.y[part])
            wrong = misclassified.nonzero().flatten()
            if len(wrong):
                broken = self.check(part[wrong], clean[wrong])
                for row, gone in zip(part[wrong].tolist(), broken.tolist(), strict=True):
                    yield Settled(row, not gone)
            right.append(part[~misclassified])
        return torch.cat(right)


class _Look:
    """One look at the batch: it waits for the device once.

    Attributes:
        candidates: Rows int64 [K] and x_adv [K, ...] to verify; None where there are none.
        iteration: Of every place of the batch, int64 [B], on the CPU.
        done: Places whose example is settled, and whether it is robust; known when `verified` was called.
        over: Other places whose trial is over.
    """

    def __init__(self, search: Search[Any], state: Any) -> None:
        self._search, self._state = search, state
        found, self.iteration, trial = torch.stack([state.found.long(), state.iteration, state.trial]).cpu()
        found, self._ended = found.bool(), self.iteration >= search.steps
        last = trial == search.restarts_or_targets - 1
        verify = self._ended & (found | last) if search.verified_once else found
        self.candidates: tuple[Tensor, Tensor] | None = None
        self.done: dict[int, bool] = {}
        if bool(verify.any()):
            self._places = verify.nonzero().flatten()
            there = self._places.to(state.found.device)
            self.candidates = state.row[there].cpu(), state.x_adv[there]

    def verified(self, broken: Tensor) -> None:
        """Settle what is broken, bool [K]; the search goes on from the rest, or ends if it has one candidate only."""
        self.done = dict.fromkeys(self._places[broken].tolist(), False)
        rejected = self._places[~broken]
        if self._search.verified_once:
            self.done |= dict.fromkeys(rejected.tolist(), True)
        elif len(rejected):
            which = rejected.to(self._state.found.device)
            self._state.found[which] = False
            self._ended[rejected] |= self._search.on_rejected(self._state, which)

    @property
    def over(self) -> list[int]:
        """See above."""
        return [place for place in self._ended.nonzero().flatten().tolist() if place not in self.done]


class _Work:
    """How much of a search is done, in passes.

    Args:
        search: The search.
        examples: How many it is for.
    """

    def __init__(self, search: Search[Any], *, examples: int) -> None:
        self._steps, self._examples = search.steps, examples
        self._each = search.restarts_or_targets * search.steps

    def share(self, left: int, ended: int, iterations: Tensor | None) -> float:
        """The share done, 0 to 1.

        Args:
            left: Examples that are not settled.
            ended: Trials that are over, of these examples.
            iterations: Of the places in which their other trials are running, int64 [B] on the CPU.
        """
        running = 0 if iterations is None else int(iterations.clamp(max=self._steps).sum())
        to_come = left * self._each - ended * self._steps - running
        return 1.0 - to_come / max(1, self._examples * self._each)


class _Queue:
    """Which trial starts next.

    Args:
        rows: The examples, in the order in which they start.
        trials: Of each.
        at_once: How many of them start together: one, or all.
    """

    def __init__(self, rows: list[int], trials: int, at_once: int) -> None:
        self._waiting, self._trials, self._at_once = deque(rows), trials, at_once
        self.left = len(rows)  # examples that are not settled
        self.ended = 0  # trials that are over, of these
        self._started: dict[int, int] = {}  # trials started of the examples that are running
        self._running: dict[int, int] = {}

    def next(self, count: int) -> list[Entry]:
        """Up to so many trials of examples none of whose trials is running."""
        rows = [self._waiting.popleft() for _ in range(min(count // self._at_once, len(self._waiting)))]
        return [self._start(row) for row in rows for _ in range(self._at_once)]

    def early(self, count: int) -> list[Entry]:
        """Up to so many trials that would otherwise start only after those that are running."""
        found: list[Entry] = []
        if count <= 0 or self._trials == 1:
            return found
        while len(found) < count:
            open_to = [row for row, running in self._running.items() if running and self._left(row)]
            if not open_to:
                break
            found += [self._start(row) for row in open_to[: count - len(found)]]
        return found

    def failed(self, row: int) -> bool:
        """Note that a trial found nothing; whether it was the last of its example."""
        self._running[row] -= 1
        self.ended += 1
        if self._running[row]:
            return False
        if self._left(row):
            self._waiting.append(row)
            return False
        self.drop(row)
        return True

    def drop(self, row: int) -> None:
        """Forget an example."""
        self.left -= 1
        self.ended -= self._started[row] - self._running[row]
        del self._started[row], self._running[row]

    def _left(self, row: int) -> bool:
        return self._started[row] < self._trials

    def _start(self, row: int) -> Entry:
        trial = self._started.setdefault(row, 0)
        self._started[row] += 1
        self._running[row] = self._running.get(row, 0) + 1
        return row, trial


def _start(search: Search[Any], entries: Iterable[Entry]) -> Any:
    row, trial = torch.tensor(list(entries), dtype=torch.int64).unbind(1)
    return search.init(row, trial)


def _entries(state: Any) -> list[Entry]:
    return list(zip(state.row.tolist(), state.trial.tolist(), strict=True))


def _staying(iteration: Tensor, leaving: set[int]) -> Tensor:
    """The iterations of the places that stay."""
    stays = torch.ones(len(iteration), dtype=torch.bool)
    stays[list(leaving)] = False
    return iteration[stays]


def _without(state: Any, leaving: set[int]) -> Any:
    """The state without the places that leave, in its order; None where none stays."""
    if not leaving:
        return state
    if len(leaving) == len(state):
        return None
    stays = [place for place in range(len(state)) if place not in leaving]
    return state.take(torch.tensor(stays, device=state.row.device))
