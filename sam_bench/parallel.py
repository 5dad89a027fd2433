"""Independent jobs side by side, each in a process of its own, with their progress shown together.

Small networks cannot keep two cores busy: two processes of one thread each finish sooner than one
process of two threads.

The processes are loky's: they do not import the script that started them, and cloudpickle sends what was defined there.
So this works from notebooks, and from scripts without `if __name__ == "__main__":`. A process lives for one job. Loky's
pool is not used: there, one process that dies takes the results of all others with it, and one that trains is killed
before it can write a checkpoint.
"""

from __future__ import annotations

import io
import multiprocessing
import os
import pickle
import signal
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, replace
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from typing import Any, Generic, TypeVar

import cloudpickle

from sam_bench.errors import SamBenchError, StoppedError, first_line
from sam_bench.progress import Reporter, Stage

T = TypeVar("T", covariant=True)
Send = Callable[[Any], None]

_OUT_OF_MEMORY = (-signal.SIGKILL, 128 + signal.SIGKILL)  # how the system ends a process that takes too much
_POLL = 0.5  # seconds between two requests to stop


@dataclass(frozen=True)
class Job(Generic[T]):
    """One piece of work.

    Attributes:
        name: What it is called in messages; unlike every other job's.
        function: Takes `arguments`; see `run_jobs` and `stream_jobs`.
        arguments: What cloudpickle can send.
    """

    name: str
    function: Callable[..., T]
    arguments: Mapping[str, Any]


def usable_cores() -> int:
    """The cores this process may use, where a container's quota counts, too."""
    import loky

    cores: int = loky.cpu_count()
    return cores


def why_not_sent(thing: object) -> str | None:
    """Why something cannot be sent to another process; None where it can. Tensors, which all can be, are not copied."""
    try:
        _Trial(io.BytesIO()).dump(thing)
    except Exception as error:  # a class's own way of being pickled may raise anything
        return first_line(error)
    return None


class _Trial(cloudpickle.Pickler):
    def persistent_id(self, obj: Any) -> str | None:
        import torch

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
        jobs: Started in this order. Their functions take a `reporter`, too.
        workers: Processes at a time; the cores are shared out among them.
        reporter: Where the progress of all of them goes.
        died: Given the name of a job whose worker died, and what is known of it. It returns that job's result.
        own: Given a worker's number, from 0: further arguments of each of its jobs, such as a device that no
            other worker has.

    Raises:
        SamBenchError: A worker died, and `died` was not given; or whatever a job raised.
    """
    if workers <= 1:
        given = own(0) if own else {}
        return [job.function(**job.arguments, **given, reporter=reporter) for job in jobs]
    results = dict[str, T]()
    with _Stages(reporter) as stages:
        for job, content in _in_processes(jobs, _call, workers=workers, own=own):
            if isinstance(content, _Result):
                results[job.name] = content.value
            elif isinstance(content, _Died) and died is not None:
                stages.drop(job.name)
                results[job.name] = died(job.name, content.reason)
            elif isinstance(content, _Died):
                raise SamBenchError(content.reason)
            else:
                stages.show(job.name, content)
    return [results[job.name] for job in jobs]


def stream_jobs(
    jobs: Sequence[Job[Iterable[T]]],
    *,
    workers: int,
) -> Iterator[tuple[str, T]]:
    """Run every job, at most `workers` at a time, and yield what their functions yield, as it comes.

    With one worker they run here, one after the other. The first error ends the other workers and is raised here.

    Args:
        jobs: Started in this order. Their functions are generator functions.
        workers: See `run_jobs`.

    Yields:
        A job's name, and a value that it yielded.

    Raises:
        SamBenchError: A worker died; or whatever a job raised.
    """
    if workers <= 1:
        for job in jobs:
            for value in job.function(**job.arguments):
                yield job.name, value
        return
    for job, content in _in_processes(jobs, _iterate, workers=workers):
        if isinstance(content, _Died):
            raise SamBenchError(content.reason)
        if not isinstance(content, _Result):
            yield job.name, content


@dataclass(frozen=True)
class _Result:
    value: Any


@dataclass(frozen=True)
class _Failed:
    error: SamBenchError | StoppedError


@dataclass(frozen=True)
class _Died:
    reason: str


def _call(job: Job[Any], send: Send) -> Any:
    return job.function(**job.arguments, reporter=_Forwarding(send))


def _iterate(job: Job[Any], send: Send) -> None:
    for value in job.function(**job.arguments):
        send(value)


def _in_processes(
    jobs: Sequence[Job[Any]],
    work: Callable[[Job[Any], Send], Any],
    *,
    workers: int,
    own: Callable[[int], Mapping[str, Any]] | None = None,
) -> Iterator[tuple[Job[Any], Any]]:
    """Do `work(job, send)` for each job; yield what it sends and then a `_Result` or `_Died`; raise what it raises."""
    from loky.backend import get_context

    context, threads = get_context("loky"), max(1, usable_cores() // workers)
    waiting, free = list(jobs), list(range(workers))
    running: dict[Connection, tuple[Job[Any], int, BaseProcess]] = {}
    try:
        while waiting or running:
            while waiting and free:
                job, worker = waiting.pop(0), free.pop(0)
                given = replace(job, arguments={**job.arguments, **(own(worker) if own else {})})
                # A pipe for each: what a process leaves half-written when it dies would block a queue for all.
                here, there = context.Pipe()
                # No daemon: those may have no children, and a job may read its images in processes of its own.
                process = context.Process(target=_serve, args=(cloudpickle.dumps((work, given)), threads, there))
                running[here] = job, worker, process
                process.start()
                there.close()
            for connection in wait(list(running)):
                assert isinstance(connection, Connection)
                job, worker, process = running[connection]
                try:
                    content = pickle.loads(connection.recv_bytes())
                except (EOFError, ConnectionResetError):
                    process.join()
                    content = _Died(_death(job.name, process.exitcode or 0))
                if isinstance(content, _Failed):
                    raise content.error
                if isinstance(content, _Result | _Died):
                    process.join()
                    connection.close()
                    free.append(running.pop(connection)[1])
                yield job, content
    finally:
        _end({connection: process for connection, (_, _, process) in running.items() if process.pid})


def _end(running: Mapping[Connection, BaseProcess]) -> None:
    """Tell the workers to stop, and wait until they have: one that trains writes a checkpoint first.

    Another Ctrl-C does not wait.
    """
    try:
        while alive := {connection: process for connection, process in running.items() if process.is_alive()}:
            # Again and again: a run that is about to end takes no notice, and its job goes on to what comes next.
            for process in alive.values():
                process.terminate()
            until = time.monotonic() + _POLL
            while time.monotonic() < until and any(process.is_alive() for process in alive.values()):
                for connection in wait(list(alive), 0.05):
                    assert isinstance(connection, Connection)
                    with suppress(EOFError, OSError):  # what waits for room in its pipe would not stop
                        connection.recv_bytes()
    except BaseException:
        for process in running.values():
            with suppress(ProcessLookupError):
                os.kill(process.pid or 0, signal.SIGKILL)
        raise


def _death(job: str, code: int) -> str:
    """What is said of a worker that ended without a word, and what can be done."""
    told = f"the process of {job} died (exit code {code})"
    if code in _OUT_OF_MEMORY:
        return f"{told}; if it ran out of memory, use fewer workers"
    how = f", ended by signal {-code}" if code < 0 else ""
    return f"{told}{how}; with `workers=1` its error is seen where it arises"


def _serve(parcel: bytes, threads: int, connection: Connection) -> None:
    """A worker: do the job and tell how it went."""
    threading.Thread(target=_end_with_parent, args=(connection,), daemon=True).start()
    # Ctrl-C reaches the whole group; the process that was started says what is to be said.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    # Loky makes its own way of starting processes the default here, which processes that load data cannot use.
    multiprocessing.set_start_method(None, force=True)
    os.environ["OMP_NUM_THREADS"] = str(threads)  # for the job that imports PyTorch; not every job does
    import sam_bench  # noqa: F401  (a fresh process: RobustBench and timm are made to work here too)

    def send(content: Any) -> None:
        # Bytes: a tensor would be shared with this process, which may be gone before it is looked at.
        connection.send_bytes(cloudpickle.dumps(content))

    name = "a job"
    try:
        work, job = pickle.loads(parcel)
        name = job.name
        send(_Result(work(job, send)))
    except (SamBenchError, StoppedError) as error:
        send(_Failed(error))
    except Exception as error:
        send(_Failed(SamBenchError(f"{name} failed: {type(error).__name__}: {error}")))


def _end_with_parent(connection: Connection) -> None:
    """End this process as soon as the one that started it is gone, which can be killed without a chance to say so.

    The job would run to its end for nobody. What it has written is as whole as if it had been killed itself.
    Processes that read images for it see that it is gone.
    """
    with suppress(OSError):
        connection.poll(None)  # nothing is ever sent this way: the system closes the pipe with the parent
    os._exit(1)


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

    def show(self, job: str, told: tuple[Any, ...]) -> None:
        """Show what a `_Forwarding` sent."""
        kind, name, *rest = told
        if kind == "say":
            self._reporter.say(name)
        elif kind == "open":
            stack = ExitStack()
            label = name if job in name else f"{job} {name}"
            self._open[job, name] = (stack, stack.enter_context(self._reporter.stage(label, *rest)))
        elif kind == "update":
            self._open[job, name][1].update(*rest)
        else:
            self._open.pop((job, name))[0].close()


class _Forwarding:
    """The reporter of a worker: everything goes to the process that shows it."""

    def __init__(self, send: Send) -> None:
        self._send = send

    def say(self, text: str) -> None:
        self._send(("say", text))

    @contextmanager
    def stage(self, name: str, total: int) -> Iterator[Stage]:
        self._send(("open", name, total))
        yield _ForwardingStage(name, self._send)
        self._send(("close", name))


class _ForwardingStage:
    def __init__(self, name: str, send: Send) -> None:
        self._name, self._send = name, send

    def update(self, done: int, figures: str = "", share: float | None = None) -> None:
        self._send(("update", self._name, done, figures, share))
