"""In this process."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace

import torch
from torch import Tensor

from sam_bench.allocator import freed_memory_kept
from sam_bench.attacks.events import Event, Examples, Progress, Verdict
from sam_bench.attacks.verify import SMALLEST_BATCH, known_right
from sam_bench.data import to_float
from sam_bench.device import device_name, out_of_memory
from sam_bench.errors import SamBenchError
from sam_bench.evaluation.executors.base import Executor
from sam_bench.evaluation.problem import UNASKED, Problem
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
        return attack_here(problem, problem.stored(todo), self._device)

    def describe(self) -> str:
        return f"device {self._device} ({self._why})"

    def ran_on(self) -> str:
        return device_name(self._device)


def attack_here(problem: Problem, stored: Examples, device: torch.device) -> Iterator[Event]:
    """Attack examples in this process.

    Args:
        problem: What is evaluated.
        stored: As `Problem.stored` gives them.
        device: Where to run; the model is moved there. Out of memory, it goes on with half as many at a time.

    Yields:
        The attack's events.

    Raises:
        SamBenchError: The memory does not suffice.
    """
    if device.type == "cuda" and device.index is not None:
        torch.cuda.set_device(device)  # as `choose_device` does: a worker has not asked it
    attack, batch_size, survived = problem.attack.keyed(problem.key), problem.batch_size, _survived(stored)
    module, row_of = problem.model.module.to(device), {place: row for row, place in enumerate(stored.index.tolist())}
    # What an example meets does not depend on the others, except for attacks whose batches have to be whole.
    most = max(batch_size, _PIECE // (4 * max(1, stored.x[:1].numel()))) if attack.per_example else len(stored)
    robust = 0
    while survived:
        piece = list(survived)[:most]
        held: list[Verdict] = []
        try:
            with freed_memory_kept(device):
                rows = stored.take(torch.tensor([row_of[place] for place in piece]))
                behind = torch.tensor([survived[place] for place in piece])
                events = attack.run_events(
                    module,
                    replace(rows, x=_inputs(rows.x), attacks_survived=behind.clamp(min=0), right=behind != UNASKED),
                    ball=problem.ball,
                    seed=problem.seed,
                    batch_size=batch_size,
                    device=device,
                )
                others = robust + len(survived) - len(piece)  # that may still be robust
                for event in events:
                    event = _of_all(event, others, x_adv=problem.save_adversarial)
                    if not isinstance(event, Verdict):
                        yield event
                        continue
                    if not attack.per_example:
                        held.append(event)  # told at the end: a resumed run would form other batches
                        continue
                    if event.outcome is None:
                        survived[event.example] = event.attacks_survived
                    elif survived.pop(event.example, None) is not None:
                        robust += event.outcome == ROBUST
                    yield event
            yield from held
            for place in piece:
                survived.pop(place, None)
            continue
        except RuntimeError as error:
            if not out_of_memory(error):
                raise
        # Outside the `except` block: inside it, the traceback keeps every tensor alive.
        batch_size = _halved(problem, batch_size)


def _inputs(stored: Tensor) -> Tensor:
    return stored if stored.is_floating_point() else to_float(stored)


def _of_all(event: Event, others: int, *, x_adv: bool) -> Event:
    """An event of a piece, with the robust examples of the other pieces; without `x_adv` where nobody keeps it."""
    if isinstance(event, Progress) and event.robust is not None:
        return replace(event, robust=event.robust + others)
    if isinstance(event, Verdict) and not x_adv:
        return replace(event, x_adv=None)
    return event


def _survived(stored: Examples) -> dict[int, int]:
    """As `todo` of `Executor.run`."""
    survived = torch.where(known_right(stored), stored.attacks_survived, UNASKED)
    return dict(zip(stored.index.tolist(), survived.tolist(), strict=True))


def _halved(problem: Problem, batch_size: int) -> int:
    if not problem.attack.per_example:
        raise SamBenchError(
            f"out of memory with `batch_size={batch_size}`, on which the verdicts of {problem.attack.method} depend; "
            "give a smaller one"
        )
    if batch_size // 2 < SMALLEST_BATCH:
        raise SamBenchError(f"out of memory with {batch_size} examples at a time; take a device with more memory")
    return batch_size // 2
