"""In several processes on this machine. Each sends its events; this process alone writes them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace

import cloudpickle
import torch

from sam_bench.attacks.events import Event, Progress
from sam_bench.data import Split
from sam_bench.device import device_name
from sam_bench.errors import InputError
from sam_bench.evaluation.executors.base import Executor, dealt
from sam_bench.evaluation.executors.local import attack_here
from sam_bench.evaluation.problem import Problem
from sam_bench.parallel import Job, stream_jobs, why_not_sent


class Processes(Executor):
    """Shares the examples among processes on this machine.

    Args:
        workers: How many.
        device: Where they run; without a number, each is given one of the GPUs in turn.
        why: Why there, for the message at the start.
    """

    field = "workers"

    def __init__(self, workers: int, device: torch.device, why: str = "asked for") -> None:
        self._workers, self._device, self._why = workers, device, why

    def check(self, problem: Problem) -> None:
        """See `Executor.check`: the module must pickle, too."""
        super().check(problem)
        problem.attack.check_device(self._device)
        if reason := why_not_sent(problem.model.module):
            raise InputError(
                f"`workers={self._workers}` needs a module that can be pickled, and {problem.model.name} cannot "
                f"({reason}): define its class at the top of a file of its own, or leave `workers` away"
            )

    def run(self, problem: Problem, todo: Mapping[int, int]) -> Iterator[Event]:
        sent = travelling(problem)
        jobs = [
            Job(
                f"worker {number + 1}",
                attack_here,
                {"problem": sent, "stored": problem.stored(part), "device": self._device_of(number)},
            )
            for number, part in enumerate(dealt(todo, self._workers))
        ]
        for name, event in stream_jobs(jobs, workers=len(jobs)):
            yield replace(event, stage=f"{name}: {event.stage}") if isinstance(event, Progress) else event

    def describe(self) -> str:
        return f"device {self._device} ({self._why}), {self._workers} processes"

    def ran_on(self) -> str:
        return device_name(self._device)

    def _device_of(self, number: int) -> torch.device:
        """A GPU to each process in turn, where there are several and none was named."""
        if self._device.type == "cuda" and self._device.index is None:
            return torch.device("cuda", number % torch.cuda.device_count())
        return self._device


def travelling(problem: Problem) -> Problem:
    """The problem as it is sent to other processes: its module on the CPU, and none of its images."""
    # A copy, because `cpu` moves a module where it stands, and the caller goes on with its own. `deepcopy` fails on
    # what a module keeps of its last pass, such as attention maps.
    module = cloudpickle.loads(cloudpickle.dumps(problem.model.module)).cpu()
    model = replace(problem.model, module=module, card=None)
    # Keyed here: without its images, the problem's key would be another one.
    return replace(problem, model=model, attack=problem.attack.keyed(problem.key), test=_none_of(problem))


def _none_of(problem: Problem) -> Split:
    """No images, of the same shape: each job brings its own."""
    return Split(problem.test.images[:0].cpu().to(torch.uint8), problem.test.labels[:0].cpu())
