"""What Ray needs from us: a connection, work put where every node can read it, tasks done again when a worker dies.

Nothing here knows of attacks or training. What a task finds on its way reaches the driver as letters, through an
actor on the driver's own node: a node that dies takes none with it that were sent. A dead worker's task is done
again by us and not by Ray, so that the second attempt is of what the first one left.
"""

from __future__ import annotations

import importlib
import logging
import os
import socket
import sys
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, redirect_stdout, suppress
from typing import Any, TypeVar

from sam_bench._version import __version__
from sam_bench.errors import InputError, SamBenchError
from sam_bench.parallel import usable_cores

S = TypeVar("S")
T = TypeVar("T")
R = TypeVar("R")

_POLL = 0.2  # seconds between two times that letters are fetched
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
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise InputError(
            f"--ray-address {where}: no Ray cluster can be used there ({reason}); give auto or HOST:PORT of a cluster "
            "that runs, or local"
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
            f"--ray-address {address} is not auto, local, or the HOST:PORT of a cluster; run the command on one of its "
            "nodes"
        )
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=_KNOCK).close()
    except (OSError, OverflowError) as error:
        raise InputError(
            f"--ray-address {address}: nothing answers there ({error}); give auto or HOST:PORT of a cluster that runs, "
            "or local"
        ) from error


def _ray() -> Any:
    try:
        return importlib.import_module("ray")
    except ImportError as error:
        raise InputError("--executor ray needs Ray: pip install 'ray>=2.10'") from error


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
        left: Callable[[int, T], T | None] = lambda _, task: task,
        say: Callable[[str], None] = lambda _: None,
    ) -> Iterator[tuple[int, R | SamBenchError | None]]:
        """Do `function(shared, task, tell)` for every task, each on one CPU, wherever there is room.

        Args:
            function: Importable on every node. What it gives to `tell` is sent to `told` at once.
            shared: Put into the object store once, unpacked once in each worker process.
            tasks: What pickles.
            gpus: How many GPUs each needs.
            at_a_time: How many tasks may run side by side; default as many as the cluster has room for.
            told: Called here with a task's number and what it told; never after the task has ended, except for
                what a dead worker had sent last.
            left: Called with a task whose worker died: what of it is to be done again, or None.
            say: Told of workers that died.

        Yields:
            Tasks as they end: number, and the result; a SamBenchError where the task failed or lost worker after
            worker; None where its worker died with nothing left to do.
        """
        ray = self._ray
        parcel = ray.put(ray.cloudpickle.dumps((function, shared)))
        box = ray.remote(_Mailbox).options(num_cpus=0, scheduling_strategy=self._here()).remote()
        ray.get(box.post.remote())  # it must be there before the first worker that may die with a letter for it
        work = ray.remote(_work).options(num_cpus=1, num_gpus=gpus, max_retries=0)
        waiting, running, deaths = deque(enumerate(tasks)), dict[Any, tuple[int, T]](), Counter[int]()
        try:
            while waiting or running:
                while waiting and len(running) < (at_a_time or len(tasks)):
                    number, task = waiting.popleft()
                    # In a list, the reference arrives as it is: a worker that has the parcel does not fetch it again.
                    reference = work.remote([parcel], number, ray.cloudpickle.dumps(task), box, __version__)
                    running[reference] = number, task
                ended, _ = ray.wait(list(running), timeout=_POLL)
                for letter in self._fetch(box):
                    told(*letter)
                for reference in ended:
                    number, task = running.pop(reference)
                    outcome: R | SamBenchError | None
                    try:
                        outcome = _outcome(*ray.get(reference))
                    except ray.exceptions.RayTaskError as error:
                        outcome = SamBenchError(f"a node could not begin ({_last_line(error)}); {_INSTALL}")
                    except ray.exceptions.RayError as error:
                        deaths[number] += 1
                        rest = left(number, task)
                        if rest is not None and deaths[number] < _ATTEMPTS:
                            say(f"task {number + 1} lost its worker ({_cause(error)}); what it left is done again")
                            waiting.append((number, rest))
                            continue
                        outcome = None if rest is None else SamBenchError(_lost(number, error))
                    yield number, outcome
        finally:
            with suppress(Exception):  # whatever ends this, what runs elsewhere ends with it as far as can be
                for reference in running:
                    ray.cancel(reference, force=True)
                ray.kill(box)

    def _here(self) -> Any:
        strategies = importlib.import_module("ray.util.scheduling_strategies")
        return strategies.NodeAffinitySchedulingStrategy(self._ray.get_runtime_context().get_node_id(), soft=False)

    def _fetch(self, box: Any) -> list[tuple[int, Any]]:
        try:
            letters: list[tuple[int, Any]] = self._ray.get(box.fetch.remote())
        except self._ray.exceptions.RayActorError as error:
            raise SamBenchError(
                f"the process on this node that collects what the workers find has died ({_cause(error)}); what was "
                "fetched is kept"
            ) from error
        return letters


class _Mailbox:
    """The actor that letters go through."""

    def __init__(self) -> None:
        self._letters: list[tuple[int, Any]] = []

    def post(self, *letters: tuple[int, Any]) -> None:
        self._letters += letters

    def fetch(self) -> list[tuple[int, Any]]:
        letters, self._letters = self._letters, []
        return letters


_INSTALL = f"every node needs sam-bench {__version__} and the packages that the model and the methods come from"
_held: dict[str, Any] = {}
"""In a worker: what it unpacked last, under the name of its parcel."""


def _work(parcel: list[Any], number: int, task: bytes, box: Any, version: str) -> tuple[str, Any]:
    """A task, in a worker: how it ended, and the result or a message."""
    ray = _ray()
    node = socket.gethostname()
    if version != __version__:
        return "failed", f"node {node} has sam-bench {__version__}, the driver {version}; install the same on both"
    (reference,) = parcel
    try:
        if reference.hex() not in _held:
            _held.clear()
            _held[reference.hex()] = ray.cloudpickle.loads(ray.get(reference))
        function, shared = _held[reference.hex()]
        unpacked = ray.cloudpickle.loads(task)
    except (ImportError, AttributeError) as error:
        return "failed", f"node {node} cannot unpack the work ({error}); {_INSTALL}"
    try:
        ended = "done", function(shared, unpacked, lambda letter: box.post.remote((number, letter)))
    except InputError as error:
        ended = "refused", str(error)
    except SamBenchError as error:
        ended = "failed", str(error)
    except Exception as error:
        ended = "failed", f"task {number + 1} failed on node {node}: {type(error).__name__}: {error}"
    ray.get(box.post.remote())  # letters arrive in order: once this one has, all have
    return ended


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
