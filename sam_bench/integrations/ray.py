"""What Ray needs from us: a connection, work put where every node can read it, tasks done again when a worker dies.

Nothing here knows of attacks or training. A task is a generator: what it yields reaches the driver at once, so a
node that dies takes nothing with it that was yielded. A dead worker's task is done again by us and not by Ray, so
that the second attempt is of what the first one left.
"""

from __future__ import annotations

import importlib
import logging
import os
import socket
import sys
import threading
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, redirect_stdout, suppress
from dataclasses import dataclass
from queue import SimpleQueue
from typing import Any, TypeVar

from sam_bench._version import __version__
from sam_bench.errors import InputError, SamBenchError, first_line
from sam_bench.parallel import usable_cores

S = TypeVar("S")
T = TypeVar("T")
R = TypeVar("R")

_KNOCK = 10.0  # seconds that a cluster has to answer
_ATTEMPTS = 4  # that a task has, where each ends with the death of its worker or node


@contextmanager
def connected(address: str | None = None, *, workers: int | None = None) -> Iterator[Cluster]:
    """A Ray cluster for the time of the block; where this process is connected to one already, that one.

    What is printed meanwhile goes to stderr.

    Args:
        address: `auto` or HOST:PORT of a cluster; `local` starts one on this machine. Default: `$RAY_ADDRESS`,
            else `local`.
        workers: CPUs of the cluster that is started here; default the cores this process may use.

    Raises:
        InputError: Ray is not installed, or no cluster answers.
    """
    ray = _ray()
    if ray.is_initialized():
        yield Cluster(ray, f"at {ray.get_runtime_context().gcs_address}")
        return
    where = address or os.environ.get("RAY_ADDRESS") or "local"
    _check_address(where)
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # nobody asked for reports to its makers
    here = {"num_cpus": workers or usable_cores(), "include_dashboard": False} if where == "local" else {}
    try:
        ray.init(address=where, log_to_driver=False, logging_level=logging.ERROR, **here)
    except (OSError, RuntimeError, ValueError) as error:
        raise InputError(
            f"`ray_address={where}`: no Ray cluster can be used there ({first_line(error)}); give auto or HOST:PORT "
            "of a cluster that runs, or local"
        ) from error
    try:
        # Ray prints the deaths it sees on stdout, which belongs to results.
        with redirect_stdout(sys.stderr):
            yield Cluster(ray, "on this machine" if where == "local" else f"at {ray.get_runtime_context().gcs_address}")
    finally:
        ray.shutdown()


def _check_address(address: str) -> None:
    """Refuse at once what Ray itself would knock at for minutes."""
    if address in ("auto", "local"):
        return
    host, _, port = address.rpartition(":")
    if not host or not port.isdecimal() or "/" in host:
        raise InputError(
            f"`ray_address={address}` is not auto, local, or the HOST:PORT of a cluster; run the command on one of its "
            "nodes"
        )
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=_KNOCK).close()
    except (OSError, OverflowError) as error:
        raise InputError(
            f"`ray_address={address}`: nothing answers there ({error}); give auto or HOST:PORT of a cluster that runs, "
            "or local"
        ) from error


def _ray() -> Any:
    try:
        return importlib.import_module("ray")
    except ImportError as error:
        raise InputError("`executor=ray` needs Ray: pip install 'ray>=2.10'") from error


class Cluster:
    """A Ray cluster that this process drives.

    Args:
        ray: The package, connected.
        name: What it is called in messages.
    """

    def __init__(self, ray: Any, name: str) -> None:
        self._ray, self.name = ray, name

    def count(self, resource: str) -> int:
        """How many there are now of `CPU`, `GPU` or nodes (`node`)."""
        if resource == "node":
            return sum(bool(node["Alive"]) for node in self._ray.nodes())
        return int(self._ray.cluster_resources().get(resource, 0))

    def run(
        self,
        function: Callable[[S, T, Callable[[Any], None]], R],
        shared: S,
        tasks: Sequence[T],
        *,
        gpus: int = 0,
        at_a_time: int | None = None,
        told: Callable[[int, Any], None] = lambda *_: None,
        say: Callable[[str], None] = lambda _: None,
    ) -> Iterator[tuple[int, R | SamBenchError]]:
        """Do `function(shared, task, tell)` for every task; other arguments as for `stream`.

        Args:
            function: Importable on every node. What it gives to `tell` is sent to `told` at once.
            tasks: What pickles.
            told: Called here with a task's number and what it told.

        Yields:
            Tasks as they end: number, and the result or the error.
        """
        options: dict[str, Any] = {"gpus": gpus, "at_a_time": at_a_time, "say": say}
        for number, item in self.stream(_telling, (function, shared), len(tasks), tasks.__getitem__, **options):
            if isinstance(item, _Told):
                told(number, item.content)
            else:
                yield number, item

    def stream(
        self,
        function: Callable[[S, T], Iterator[R]],
        shared: S,
        count: int,
        left: Callable[[int], T | None],
        *,
        gpus: int = 0,
        at_a_time: int | None = None,
        say: Callable[[str], None] = lambda _: None,
    ) -> Iterator[tuple[int, R | SamBenchError]]:
        """Do `function(shared, task)` for every task, each on one CPU, and yield what it yields as it comes.

        Ray's own retries would begin a task anew and skip as many items as have arrived. What a second attempt
        yields first may be something else, so a task that loses its worker is given out again here, for what it left.

        Args:
            function: A generator function that is importable on every node.
            shared: Put into the object store once, unpacked once in each worker process.
            count: How many tasks there are.
            left: What is to be done of a task now, or None.
            gpus: How many GPUs each needs.
            at_a_time: How many tasks may run side by side; default as many as the cluster has room for.
            say: Told of workers that died.

        Yields:
            The task's number and what it yields, in the order of each task; a SamBenchError at the end of one that
            failed or lost worker after worker.
        """
        ray = self._ray
        parcel = ray.put(ray.cloudpickle.dumps((function, shared)))
        work = ray.remote(_stream).options(num_cpus=1, num_gpus=gpus, max_retries=0, num_returns="streaming")
        waiting, running, deaths = deque(range(count)), dict[Any, int](), Counter[int]()
        try:
            while waiting or running:
                while waiting and len(running) < (at_a_time or count):
                    number = waiting.popleft()
                    if (task := left(number)) is not None:
                        # In a list, the reference arrives as it is: a worker that has the parcel does not fetch it.
                        generator = work.remote([parcel], number, ray.cloudpickle.dumps(task), __version__)
                        running[generator] = number
                ready = ray.wait(list(running), timeout=None)[0] if running else []
                for generator in ready:
                    number = running[generator]
                    try:
                        yield number, _outcome(*ray.get(next(generator)))
                    except StopIteration:
                        running.pop(generator)
                    except ray.exceptions.RayTaskError as error:
                        running.pop(generator)
                        yield number, SamBenchError(f"a node could not begin ({_last_line(error)}); {_INSTALL}")
                    except ray.exceptions.RayError as error:
                        running.pop(generator)
                        deaths[number] += 1
                        if deaths[number] == _ATTEMPTS:
                            yield number, SamBenchError(_lost(number, error))
                        elif left(number) is not None:
                            say(f"task {number + 1} lost its worker ({_cause(error)}); what it left is done again")
                            waiting.append(number)
        finally:
            with suppress(Exception):  # whatever ends this, what runs elsewhere ends with it as far as can be
                for generator in running:
                    ray.cancel(generator, force=True)


_INSTALL = f"every node needs sam-bench {__version__} and the packages that the model and the methods come from"
_held: dict[str, Any] = {}
"""In a worker: what it unpacked last, under the name of its parcel."""


def _stream(parcel: list[Any], number: int, task: bytes, version: str) -> Iterator[tuple[str, Any]]:
    """A task, in a worker: what it yields, and how it ended if that was badly."""
    node = socket.gethostname()
    if version != __version__:
        yield "failed", f"node {node} has sam-bench {__version__}, the driver {version}; install the same on both"
        return
    try:
        function, shared = _unpacked(parcel)
        unpacked = _ray().cloudpickle.loads(task)
    except (ImportError, AttributeError) as error:
        yield "failed", f"node {node} cannot unpack the work ({error}); {_INSTALL}"
        return
    try:
        for item in function(shared, unpacked):
            yield "done", item
    except InputError as error:
        yield "refused", str(error)
    except SamBenchError as error:
        yield "failed", str(error)
    except Exception as error:
        yield "failed", f"task {number + 1} failed on node {node}: {type(error).__name__}: {error}"


def _unpacked(parcel: list[Any]) -> Any:
    """The work that tasks have in common, kept until other work comes."""
    (reference,), ray = parcel, _ray()
    if reference.hex() not in _held:
        _held.clear()
        _held[reference.hex()] = ray.cloudpickle.loads(ray.get(reference))
    return _held[reference.hex()]


@dataclass(frozen=True)
class _Told:
    content: Any


def _telling(shared: tuple[Callable[..., Any], Any], task: Any) -> Iterator[Any]:
    """What a function tells while it runs, and then its result."""
    function, given = shared
    told: SimpleQueue[tuple[str, Any]] = SimpleQueue()

    def work() -> None:
        try:
            told.put(("result", function(given, task, lambda content: told.put(("told", content)))))
        except BaseException as error:
            told.put(("error", error))

    threading.Thread(target=work, daemon=True).start()
    while True:
        kind, content = told.get()
        if kind == "error":
            raise content
        yield _Told(content) if kind == "told" else content
        if kind == "result":
            return


def _outcome(ended: str, content: Any) -> Any:
    if ended == "done":
        return content
    return InputError(content) if ended == "refused" else SamBenchError(content)


def _lost(number: int, error: Exception) -> str:
    return (
        f"task {number + 1} lost its worker {_ATTEMPTS} times, the last time because: {_cause(error)}; if it ran out "
        "of memory, use smaller batches"
    )


def _cause(error: Exception) -> str:
    """The first sentence of what Ray says."""
    return str(error).strip().split("\n")[0].split(". ")[0].rstrip(".")


def _last_line(error: Exception) -> str:
    """What was raised, without where."""
    return str(error).strip().splitlines()[-1]
