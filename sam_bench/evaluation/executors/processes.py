"""In several processes on this machine. Each sends its events through a pipe; this process alone writes them."""

from __future__ import annotations

import copy
import multiprocessing
import signal
from collections.abc import Iterator, Mapping
from dataclasses import replace
from multiprocessing.connection import Connection, wait
from typing import Any

import torch

from sam_bench.attacks.events import Event, Examples, Progress
from sam_bench.data import Split
from sam_bench.device import device_name
from sam_bench.errors import InputError, SamBenchError
from sam_bench.evaluation.executors.base import Executor, dealt
from sam_bench.evaluation.executors.local import attack_here
from sam_bench.evaluation.problem import Problem
from sam_bench.parallel import check_workers, usable_cores, why_not_sent

_OUT_OF_MEMORY = (-signal.SIGKILL, 128 + signal.SIGKILL)  # how the system ends a process that takes too much


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
        check_workers(self._workers)
        if reason := why_not_sent(problem.model.module):
            raise InputError(
                f"`workers={self._workers}` needs a module that can be pickled, and {problem.model.name} cannot "
                f"({reason}): define its class at the top of a file of its own, or leave `workers` away"
            )

    def run(self, problem: Problem, todo: Mapping[int, int]) -> Iterator[Event]:
        """See `Executor.run`."""
        context = multiprocessing.get_context("spawn")
        sent, threads = travelling(problem), max(1, usable_cores() // self._workers)
        open_: dict[Connection, tuple[str, Any]] = {}
        try:
            for number, part in enumerate(dealt(todo, self._workers)):
                here, there = context.Pipe(duplex=False)
                arguments = (there, sent, problem.stored(part), self._device_of(number), threads)
                process = context.Process(target=_work, args=arguments)
                open_[here] = f"worker {number + 1}", process
                process.start()
                there.close()
            while open_:
                for connection in wait(list(open_)):
                    assert isinstance(connection, Connection)
                    name, process = open_[connection]
                    try:
                        event = connection.recv()
                    except EOFError:
                        process.join()
                        raise SamBenchError(_death(name, process.exitcode or 0)) from None
                    if event is None:
                        open_.pop(connection)[1].join()
                    elif isinstance(event, SamBenchError):
                        raise event
                    else:
                        yield replace(event, stage=f"{name}: {event.stage}") if isinstance(event, Progress) else event
        finally:
            # They write nothing: there is nothing to wait for.
            for _, process in open_.values():
                if process.pid:
                    process.kill()
                    process.join()

    def describe(self) -> str:
        """See `Executor.describe`."""
        return f"device {self._device} ({self._why}), {self._workers} processes"

    def ran_on(self) -> str:
        """See `Executor.ran_on`."""
        return device_name(self._device)

    def _device_of(self, number: int) -> torch.device:
        """A GPU to each process in turn, where there are several and none was named."""
        if self._device.type == "cuda" and self._device.index is None:
            return torch.device("cuda", number % torch.cuda.device_count())
        return self._device


def travelling(problem: Problem) -> Problem:
    """The problem as it is sent to other processes: its module on the CPU, and none of its images."""
    # A copy, because `cpu` moves a module where it stands, and the caller goes on with its own.
    model = replace(problem.model, module=copy.deepcopy(problem.model.module).cpu(), card=None)
    return replace(problem, model=model, test=Split(problem.test.images[:0].cpu(), problem.test.labels[:0].cpu()))


def _work(out: Connection, problem: Problem, stored: Examples, device: torch.device, threads: int) -> None:
    import sam_bench  # noqa: F401  (a fresh process: RobustBench and timm are made to work here too)

    # Ctrl-C reaches the whole group; the process that was started says what is to be said.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    torch.set_num_threads(threads)
    try:
        for event in attack_here(problem, stored, device):
            out.send(event)
        out.send(None)
    except BrokenPipeError:  # the process that started this one is gone
        return
    except SamBenchError as error:
        out.send(error)
    except Exception as error:
        out.send(SamBenchError(f"a worker failed: {type(error).__name__}: {error}"))


def _death(name: str, code: int) -> str:
    """What is said of a worker that ended without a word, and what can be done."""
    told = f"the process of {name} died (exit code {code})"
    if code in _OUT_OF_MEMORY:
        return f"{told}; if it ran out of memory, use fewer workers"
    if code < 0:
        return f"{told}, ended by signal {-code}; without `workers` its error is seen where it arises"
    return f"{told}; if it was started by a script of yours, put what it does under `if __name__ == '__main__':`"
