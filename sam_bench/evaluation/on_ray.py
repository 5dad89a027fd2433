"""Shards as tasks on a Ray cluster; their verdicts come here, one by one, and into the journal on the driver's disk."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from math import ceil
from pathlib import Path

import torch

from sam_bench.attacks import Verdict
from sam_bench.device import device_name
from sam_bench.distributed import team_size
from sam_bench.errors import InputError, SamBenchError
from sam_bench.evaluation.journal import Journal
from sam_bench.evaluation.shards import Shard, Workplace, search
from sam_bench.integrations.ray import Cluster, connected
from sam_bench.progress import Reporter
from sam_bench.records import ROBUST

TASK_SIZE = 256  # examples


@dataclass
class OnRay:
    """An executor that cuts the examples into tasks for a cluster.

    Attributes:
        cluster: Where they are done.
        device: `auto`: a GPU each where the cluster has any, else a CPU; `cuda`; `cpu`.
        workers: Tasks side by side, at most; default as many as there is room for.
        task_size: Examples a task has, at most; fewer, where there would not be a task for every worker.
        devices: Names of what tasks have run on so far.

    Raises:
        InputError: The cluster has no such device.
    """

    cluster: Cluster
    device: str = "auto"
    workers: int | None = None
    task_size: int = TASK_SIZE
    devices: set[str] = field(default_factory=set)

    def __post_init__(self) -> None:
        if self.device not in ("auto", "cpu", "cuda"):
            raise InputError(f"--device {self.device} does not go with --executor ray: use auto, cpu or cuda")
        if self.device == "cuda" and not self.cluster.count("GPU"):
            raise InputError("--device cuda: the Ray cluster has no GPU; use auto or cpu")

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

    def attack(self, shards: list[Shard], place: Workplace, *, reporter: Reporter) -> None:
        """Attack every shard; verdicts go into the journal as they arrive, a second one of an example is dropped.

        Raises:
            SamBenchError: A task failed or lost worker after worker; verdicts that arrived are in the journal.
        """
        total = sum(len(shard.index) for shard in shards)
        # A copy, because `cpu` moves a module where it stands; no path, because a worker has another disk.
        sent = replace(place, module=copy.deepcopy(place.module).cpu(), folder=Path())
        known: dict[int, Verdict] = {}
        robust = settled = 0
        place.folder.mkdir(parents=True, exist_ok=True)
        with (
            Journal(place.folder).writer(place.session) as writer,
            reporter.stage(f"{place.attack.method} in {len(shards)} task{_s(len(shards))}", total) as stage,
        ):

            def told(_: int, verdict: Verdict | str) -> None:
                nonlocal robust, settled
                if isinstance(verdict, str):
                    writer.doubt(verdict)
                    return
                before = known.get(verdict.example)
                if before is not None and (before.verdict is not None or verdict.withstood < before.withstood):
                    return
                writer.verdict(verdict, witness=place.keep_witnesses)
                known[verdict.example] = replace(verdict, x_adv=None)
                if verdict.verdict is not None:
                    settled, robust = settled + 1, robust + (verdict.verdict == ROBUST)
                    stage.update(settled, f"{robust} of {settled} robust")

            ended = self.cluster.run(
                _attack,
                (sent, "cuda" if self.gpus else "cpu"),
                shards,
                gpus=int(self.gpus),
                at_a_time=self.workers,
                told=told,
                left=lambda _, shard: shard.left(known),
                say=reporter.say,
            )
            for _, outcome in ended:
                if isinstance(outcome, SamBenchError):
                    raise type(outcome)(f"{outcome}; what was found is kept: add --resume to go on with it")
                if outcome is not None:
                    self.devices.add(outcome)


@contextmanager
def chosen_executor(
    name: str, *, address: str | None, device: str, workers: int | None, task_size: int | None = None
) -> Iterator[OnRay | None]:
    """What the shards of an evaluation are given to, for the time of the block; None where that is this machine.

    Args:
        name: `local` or `ray`.
        address: Of the cluster; see `integrations.ray.connected`.
        device, workers: See `OnRay`.
        task_size: See `OnRay`; default 256.

    Raises:
        InputError: Ray is not installed, no cluster answers, or it has no such device.
    """
    if name == "local":
        if address is not None:
            raise InputError(f"--ray-address {address} goes with --executor ray only")
        if task_size is not None:
            raise InputError(f"--task-size {task_size} goes with --executor ray only")
        yield None
        return
    if name != "ray":
        raise InputError(f"--executor {name!r} is not one of local, ray")
    if team_size() > 1:
        raise InputError("--executor ray and torchrun both share out the examples; use one of them")
    with connected(address, workers=workers) as cluster:
        size = TASK_SIZE if task_size is None else task_size
        yield OnRay(cluster, device=device, workers=workers, task_size=size)


def _attack(shared: tuple[Workplace, str], shard: Shard, tell: Callable[[Verdict | str], None]) -> str:
    """A task: the device's name; each verdict, and each of the attack's doubts, is told as it is found."""
    place, kind = shared
    if kind == "cpu":
        torch.set_num_threads(1)  # the CPU that Ray has counted

    def told(verdict: Verdict) -> None:
        tell(verdict if place.keep_witnesses else replace(verdict, x_adv=None))

    device = torch.device(kind)
    search(shard, place, device=device, told=told, doubted=tell)
    return device_name(device)


def _s(count: int) -> str:
    return "" if count == 1 else "s"
