"""On a Ray cluster: tasks yield the attack's events, which come here one by one."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from math import ceil
from typing import Literal

import torch

from sam_bench.attacks.events import Event, Examples, Progress, Verdict
from sam_bench.device import device_name
from sam_bench.distributed import team_size
from sam_bench.errors import InputError, SamBenchError
from sam_bench.evaluation.executors.base import Executor, dealt
from sam_bench.evaluation.executors.local import attack_here
from sam_bench.evaluation.executors.processes import travelling
from sam_bench.evaluation.problem import Problem
from sam_bench.integrations.ray import Cluster, connected
from sam_bench.progress import Reporter, SilentReporter
from sam_bench.records import ROBUST


@dataclass
class OnRay(Executor):
    """Cuts the examples into tasks for a cluster.

    Attributes:
        cluster: Where they are done.
        device: `auto`: a GPU each where the cluster has any, else a CPU; `cuda`; `cpu`.
        workers: Tasks side by side, at most; default as many as there is room for.
        task_size: Examples a task has, at most; fewer, where there would not be a task for every worker.
        reporter: Told of workers that died.
        devices: Names of what tasks have run on so far.

    Raises:
        InputError: The cluster has no such device.
    """

    cluster: Cluster
    device: str = "auto"
    workers: int | None = None
    task_size: int = 256
    reporter: Reporter = field(default_factory=SilentReporter)
    devices: set[str] = field(default_factory=set)

    def __post_init__(self) -> None:
        if self.device not in ("auto", "cpu", "cuda"):
            raise InputError(f"`device={self.device}` does not go with `executor=ray`: use auto, cpu or cuda")
        if self.device == "cuda" and not self.cluster.count("GPU"):
            raise InputError("`device=cuda`: the Ray cluster has no GPU; use auto or cpu")

    @property
    def gpus(self) -> bool:
        """Whether tasks run on GPUs."""
        return self.device == "cuda" or (self.device == "auto" and self.cluster.count("GPU") > 0)

    def describe(self) -> str:
        """What the cluster has to offer, for a message."""
        nodes, kind = self.cluster.count("node"), "GPU" if self.gpus else "CPU"
        units = self.cluster.count(kind)
        return f"{units} {kind}{_s(units)} on {nodes} node{_s(nodes)} of the Ray cluster {self.cluster.name}"

    def ran_on(self) -> str:
        """What tasks have run on, as a record names it."""
        return f"Ray: {', '.join(sorted(self.devices))}" if self.devices else "Ray"

    def count(self, examples: int) -> int:
        """Tasks of at most `task_size`, and one for every worker."""
        workers = self.workers or self.cluster.count("GPU" if self.gpus else "CPU")
        return min(examples, max(ceil(examples / self.task_size), workers))

    def run(self, problem: Problem, todo: Mapping[int, int]) -> Iterator[Event]:
        """See `Executor.run`. A task that loses its worker is done again for what it left."""
        parts = dealt(todo, self.count(len(todo)))
        stage = f"{problem.attack.method} in {len(parts)} task{_s(len(parts))}"
        survived, robust = dict(todo), 0

        def left(number: int) -> Examples | None:
            rest = {place: survived[place] for place in parts[number] if place in survived}
            return problem.stored(rest) if rest else None

        told = self.cluster.stream(
            _attack,
            (travelling(problem), "cuda" if self.gpus else "cpu"),
            len(parts),
            left,
            gpus=int(self.gpus),
            at_a_time=self.workers,
            say=self.reporter.say,
        )
        for _, item in told:
            if isinstance(item, SamBenchError):
                raise type(item)(f"{item}; what was found is kept: add `resume=True` to go on with it")
            if isinstance(item, str):
                self.devices.add(item)
                continue
            yield item
            if not isinstance(item, Verdict):
                continue
            if item.outcome is None:
                survived[item.example] = item.attacks_survived
            elif survived.pop(item.example, None) is not None:
                robust += item.outcome == ROBUST
                settled = len(todo) - len(survived)
                yield Progress(stage, settled, len(todo), robust=robust + len(survived))


@contextmanager
def chosen_executor(
    name: Literal["local", "ray"],
    *,
    address: str | None,
    device: str,
    workers: int | None,
    reporter: Reporter | None = None,
) -> Iterator[OnRay | None]:
    """A cluster to attack or train on, for the time of the block; None where that is this machine.

    Args:
        name: Which.
        address: Of the cluster; see `integrations.ray.connected`.
        device, workers, reporter: See `OnRay`.

    Raises:
        InputError: Ray is not installed, no cluster answers, or it has no such device.
    """
    if name == "local":
        if address is not None:
            raise InputError(f"`ray_address={address}` goes with `executor=ray` only")
        yield None
        return
    if team_size() > 1:
        raise InputError("`executor=ray` and torchrun both share out the examples; use one of them")
    with connected(address, workers=workers) as cluster:
        yield OnRay(cluster, device=device, workers=workers, reporter=reporter or SilentReporter())


def _attack(shared: tuple[Problem, str], stored: Examples) -> Iterator[Event | str]:
    """A task: the attack's events, and the device's name."""
    problem, kind = shared
    if kind == "cpu":
        torch.set_num_threads(1)  # the CPU that Ray has counted
    device = torch.device(kind)
    yield device_name(device)
    for event in attack_here(problem, stored, device):
        if not isinstance(event, Progress):
            yield event


def _s(count: int) -> str:
    return "" if count == 1 else "s"
