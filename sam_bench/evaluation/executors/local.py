"""In this process."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace

import torch

from sam_bench.allocator import freed_memory_kept
from sam_bench.attacks.events import Event, Examples, Progress, Verdict
from sam_bench.attacks.judge import SMALLEST_BATCH
from sam_bench.data import to_float
from sam_bench.device import device_name
from sam_bench.errors import SamBenchError
from sam_bench.evaluation.bridge import run_events
from sam_bench.evaluation.executors.base import Executor
from sam_bench.evaluation.problem import Problem
from sam_bench.records import ROBUST

_PIECE = 2**29
"""Bytes of float32 inputs that are held at a time."""


class Local(Executor):
    """Attacks in this process.

    Args:
        device: Where; the model is moved there.
        why: Why there, for the message at the start.
    """

    def __init__(self, device: torch.device, why: str = "asked for") -> None:
        self._device, self._why = device, why

    def check(self, problem: Problem) -> None:
        """See `Executor.check`: here everything works that the device has what it needs for."""
        problem.attack.check_device(self._device)

    def run(self, problem: Problem, todo: Mapping[int, int]) -> Iterator[Event]:
        """See `Executor.run`."""
        return attack_here(problem, problem.stored(todo), self._device)

    def describe(self) -> str:
        """See `Executor.describe`."""
        return f"device {self._device} ({self._why})"

    def ran_on(self) -> str:
        """See `Executor.ran_on`."""
        return device_name(self._device)


def attack_here(problem: Problem, stored: Examples, device: torch.device) -> Iterator[Event]:
    """Attack examples in this process.

    Args:
        problem: What is evaluated.
        stored: As `Problem.stored` gives them.
        device: Where to run; the model is moved there.

    Yields:
        The attack's events.

    Raises:
        SamBenchError: The memory does not suffice.
    """
    # What an example meets does not depend on the others, except for attacks whose batches have to be whole.
    count = max(problem.batch_size, _PIECE // (4 * max(1, stored.x[:1].numel())))
    pieces = torch.arange(len(stored)).split(count) if problem.attack.per_example else [torch.arange(len(stored))]
    standing = len(stored)  # of all examples here, as far as is known
    for piece in pieces:
        others = standing - len(piece)
        for event in _attack_piece(problem, stored.take(piece), device):
            if isinstance(event, Verdict) and event.outcome not in (None, ROBUST):
                standing -= 1
            if isinstance(event, Progress) and event.robust is not None:
                event = replace(event, robust=event.robust + others)
            yield event


def _attack_piece(problem: Problem, stored: Examples, device: torch.device) -> Iterator[Event]:
    """Out of memory, the attack goes on with what is left, half as many examples at a time."""
    batch_size, per_example, attack = problem.batch_size, problem.attack.per_example, problem.attack
    module = problem.model.module.to(device)
    while len(stored):
        survived = dict(zip(stored.index.tolist(), stored.attacks_survived.tolist(), strict=True))
        held: list[Verdict] = []
        try:
            with freed_memory_kept(device):
                examples = replace(stored, x=to_float(stored.x))
                events = run_events(
                    attack,
                    module,
                    examples,
                    ball=problem.ball,
                    seed=problem.seed,
                    batch_size=batch_size,
                    device=device,
                )
                for event in events:
                    if not isinstance(event, Verdict):
                        yield event
                        continue
                    if not problem.save_adversarial:
                        event = replace(event, x_adv=None)
                    if not per_example:
                        held.append(event)  # told at the end: a resumed run would form other batches
                        continue
                    if event.outcome is None:
                        survived[event.example] = event.attacks_survived
                    else:
                        survived.pop(event.example, None)
                    yield event
            yield from held
            return
        except torch.OutOfMemoryError:
            pass
        # Outside the `except` block: inside it, the traceback keeps every tensor alive.
        stored = _left(stored, survived)
        batch_size = _halved(problem, batch_size)


def _left(stored: Examples, survived: Mapping[int, int]) -> Examples:
    open_ = torch.tensor([place in survived for place in stored.index.tolist()], dtype=torch.bool)
    left = stored.take(open_)
    return replace(left, attacks_survived=torch.tensor([survived[place] for place in left.index.tolist()]))


def _halved(problem: Problem, batch_size: int) -> int:
    if not problem.attack.per_example:
        raise SamBenchError(
            f"out of memory with `batch_size={batch_size}`, on which the verdicts of {problem.attack.method} depend; "
            "give a smaller one"
        )
    if batch_size // 2 < SMALLEST_BATCH:
        raise SamBenchError(f"out of memory with {batch_size} examples at a time; take a device with more memory")
    return batch_size // 2
