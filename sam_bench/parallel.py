"""Independent jobs side by side, each in a process of its own, with their progress shown together.

Small networks cannot keep two cores busy: two processes of one thread each finish sooner than one
process of two threads.
"""

from __future__ import annotations

import io
import multiprocessing
import os
import pickle
import queue
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from multiprocessing.context import SpawnProcess
from pathlib import Path
from types import FunctionType
from typing import Any, Generic, Literal, TypeVar

from sam_bench.errors import InputError, SamBenchError
from sam_bench.progress import Reporter, Stage

T = TypeVar("T")

_GUARD = "put what it does, but for imports and definitions, under `if __name__ == '__main__':`"
_OUT_OF_MEMORY = (-signal.SIGKILL, 128 + signal.SIGKILL)  # how the system ends a process that takes too much
_POLL = 0.5  # seconds between two looks at whether a worker still lives


@dataclass(frozen=True)
class Job(Generic[T]):
    """One piece of work.

    Attributes:
        name: What it is called in messages; unlike every other job's.
        function: Importable, takes `arguments` and a `reporter`.
        arguments: What pickles.
    """

    name: str
    function: Callable[..., T]
    arguments: Mapping[str, Any]


def usable_cores() -> int:
    """The cores this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def why_not_sent(thing: object) -> str | None:
    """Why something cannot be sent to another process; None where it can. Tensors, which all can be, are not copied."""
    try:
        _Trial(io.BytesIO()).dump(thing)
    except Exception as error:  # a class's own way of being pickled may raise anything
        return (str(error).strip().splitlines() or [type(error).__name__])[0]
    return None


def check_main_module() -> None:
    """Refuse to work in a process that imports the script of the one that started it.

    A worker process imports the script that it belongs to. What stands there outside of `if __name__ == "__main__":`
    is done once more in every worker, before it begins with its own job.

    Raises:
        InputError: This is such a process.
    """
    if getattr(multiprocessing.current_process(), "_inheriting", False):  # what multiprocessing itself goes by
        sys.tracebacklimit = 0  # each worker would print how it came to import the script
        raise InputError(f"a worker process runs the whole script again: {_GUARD}")


def check_workers(count: int) -> None:
    """Refuse several workers of a script that was piped into Python: each would look for its file.

    Raises:
        InputError: There is none.
    """
    file = getattr(sys.modules["__main__"], "__file__", None)
    if count > 1 and file is not None and not Path(file).exists():
        raise InputError(f"worker processes import the script, and {file} is no file: save it as one, or use 1 worker")


def _is_interactive(thing: object) -> bool:
    """Whether something was defined in a session that worker processes cannot import."""
    named = isinstance(thing, (type, FunctionType)) and thing.__module__ == "__main__"
    return named and not hasattr(sys.modules["__main__"], "__file__")


class _Trial(pickle.Pickler):
    def persistent_id(self, obj: Any) -> str | None:
        import torch

        if _is_interactive(obj):
            raise pickle.PicklingError(f"{obj.__qualname__} was defined in a session that other processes do not see")
        return "" if type(obj) in (torch.Tensor, torch.nn.Parameter) else None


def run_jobs(
    jobs: Sequence[Job[T]],
    *,
    workers: int,
    reporter: Reporter,
    died: Callable[[str, str], T] | None = None,
    own: Callable[[int], Mapping[str, Any]] | None = None,
) -> list[T]:
    """Run every job, at most `workers` at a time, and return their results in the jobs' order.

    With one worker they run here, one after the other. The first error ends the other workers and is
    raised here.

    Args:
        jobs: Started in this order.
        workers: Processes at a time; the cores are shared out among them.
        reporter: Where the progress of all of them goes.
        died: Given the name of a job whose worker died, and what is known of it: the result in its place.
        own: Given a worker's number, from 0: arguments that each of its jobs gets besides, such as a device that no
            other worker has.

    Raises:
        InputError: There can be no workers in this session.
        SamBenchError: A worker died, and nothing was given for that case; or whatever a job raised.
    """
    own = own or (lambda _: {})
    if workers <= 1:
        return [job.function(**job.arguments, **own(0), reporter=reporter) for job in jobs]
    check_workers(workers)
    context = multiprocessing.get_context("spawn")
    messages: multiprocessing.Queue[_Message] = context.Queue()
    threads = max(1, usable_cores() // workers)
    waiting, running, results = list(jobs), dict[str, SpawnProcess](), dict[str, T]()
    free, worker_of = list(range(workers)), dict[str, int]()
    with _Stages(reporter) as stages:
        try:
            while waiting or running:
                while waiting and free:
                    job = waiting.pop(0)
                    worker_of[job.name] = free.pop(0)
                    job = replace(job, arguments={**job.arguments, **own(worker_of[job.name])})
                    # No daemon: those may have no children, and a job may read its images in processes of its own.
                    process = running[job.name] = context.Process(target=_work, args=(job, threads, messages))
                    process.start()
                message = _next(messages, running)
                if message.kind == "result":
                    results[message.job] = message.content
                    running.pop(message.job).join()
                    free.append(worker_of[message.job])
                elif message.kind == "died" and died is not None:
                    stages.drop(message.job)
                    results[message.job] = died(message.job, message.content)
                    running.pop(message.job)
                    free.append(worker_of[message.job])
                elif message.kind == "died":
                    raise SamBenchError(message.content)
                elif message.kind == "error":
                    raise message.content
                else:
                    stages.show(message)
        finally:
            _end([process for process in running.values() if process.pid])
    return [results[job.name] for job in jobs]


def _end(processes: Sequence[SpawnProcess]) -> None:
    """Tell the workers to stop, and wait until they have: one that trains writes a checkpoint first.

    Another Ctrl-C does not wait.
    """
    try:
        while alive := [process for process in processes if process.is_alive()]:
            # Again and again: a run that is about to end takes no notice, and its job goes on to what comes next.
            for process in alive:
                process.terminate()
            alive[0].join(_POLL)
    except BaseException:
        for process in processes:
            process.kill()
        raise


@dataclass(frozen=True)
class _Message:
    job: str
    kind: Literal["say", "open", "update", "close", "result", "error", "died"]
    content: Any


def _next(messages: multiprocessing.Queue[_Message], running: Mapping[str, SpawnProcess]) -> _Message:
    while True:
        dead = [name for name, process in running.items() if process.exitcode is not None]
        try:
            # What a worker said before it ended is read before its end is noticed.
            return messages.get(timeout=_POLL)
        except queue.Empty:
            if dead:
                return _Message(dead[0], "died", _death(dead[0], running[dead[0]].exitcode or 0))


def _death(job: str, code: int) -> str:
    """What is said of a worker that ended without a word, and what can be done."""
    told = f"the process of {job} died (exit code {code})"
    if code in _OUT_OF_MEMORY:
        return f"{told}; if it ran out of memory, use fewer workers"
    if code < 0:
        return f"{told}, ended by signal {-code}; without workers its error is seen where it arises"
    return f"{told}; if it was started by a script of yours, {_GUARD}"


class _Stages:
    """The stages that the workers have open, shown by this process's reporter."""

    def __init__(self, reporter: Reporter) -> None:
        self._reporter = reporter
        self._open: dict[tuple[str, str], tuple[ExitStack, Stage]] = {}

    def __enter__(self) -> _Stages:
        return self

    def __exit__(self, *_: object) -> None:
        for stack, _stage in self._open.values():
            stack.close()

    def drop(self, job: str) -> None:
        """Close what a job has left open."""
        for key in [key for key in self._open if key[0] == job]:
            self._open.pop(key)[0].close()

    def show(self, message: _Message) -> None:
        if message.kind == "say":
            self._reporter.say(message.content)
            return
        name, *rest = message.content
        key = (message.job, name)
        if message.kind == "open":
            stack = ExitStack()
            label = name if message.job in name else f"{message.job} {name}"
            self._open[key] = (stack, stack.enter_context(self._reporter.stage(label, rest[0])))
        elif message.kind == "update":
            self._open[key][1].update(*rest)
        else:
            self._open.pop(key)[0].close()


class _Forwarding:
    """The reporter of a worker: everything goes to the process that shows it."""

    def __init__(self, job: str, messages: multiprocessing.Queue[_Message]) -> None:
        self._job, self._messages = job, messages

    def say(self, text: str) -> None:
        self._messages.put(_Message(self._job, "say", text))

    @contextmanager
    def stage(self, name: str, total: int) -> Iterator[Stage]:
        self._messages.put(_Message(self._job, "open", (name, total)))
        yield _ForwardingStage(self._job, name, self._messages)
        self._messages.put(_Message(self._job, "close", (name,)))


class _ForwardingStage:
    def __init__(self, job: str, name: str, messages: multiprocessing.Queue[_Message]) -> None:
        self._job, self._name, self._messages = job, name, messages

    def update(self, done: int, figures: str = "", share: float | None = None) -> None:
        self._messages.put(_Message(self._job, "update", (self._name, done, figures, share)))


def _work(job: Job[Any], threads: int, messages: multiprocessing.Queue[_Message]) -> None:
    import torch

    import sam_bench  # noqa: F401  (a fresh process: RobustBench and timm are made to work here too)

    threading.Thread(target=_end_with_parent, daemon=True).start()
    # Ctrl-C reaches the whole group; the process that was started says what is to be said.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    torch.set_num_threads(threads)
    try:
        result = job.function(**job.arguments, reporter=_Forwarding(job.name, messages))
    except SamBenchError as error:
        messages.put(_Message(job.name, "error", error))
    except Exception as error:
        messages.put(_Message(job.name, "error", SamBenchError(f"{job.name} failed: {type(error).__name__}: {error}")))
    else:
        messages.put(_Message(job.name, "result", result))


def _end_with_parent() -> None:
    """End this process as soon as the one that started it is gone, which can be killed without a chance to say so.

    The job would run to its end for nobody. What it has written is as whole as if it had been killed itself.
    Processes that read images for it see that it is gone.
    """
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()  # a pipe that the system closes with the parent: no time is spent on looking
        os._exit(1)
