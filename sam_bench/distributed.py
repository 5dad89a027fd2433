"""The processes that train together: which one this is, and the few collective operations they need.

`torchrun` starts them and gives each its rank through the environment. A process alone is a team of one:
everything here then does nothing.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

T = TypeVar("T")

_PATIENCE = timedelta(hours=2)  # rank 0 may be downloading a data set while the others wait

LONG_PATIENCE = timedelta(days=14)
"""For processes that share out work of unequal length and meet at its end; `torchrun` ends all when one dies."""


@dataclass(frozen=True)
class Team:
    """The processes of a run.

    Attributes:
        rank: Which one this is, from 0; only rank 0 writes files and prints.
        size: How many there are.
    """

    rank: int = 0
    size: int = 1

    @property
    def is_main(self) -> bool:
        """Whether this is the process that writes and prints."""
        return self.rank == 0

    def average_(self, tensors: Sequence[Tensor], group: dist.ProcessGroup | None = None) -> None:
        """Replace tensors of the same dtype and device by their means over the processes, in place.

        Args:
            tensors: Of the same shapes in every process.
            group: The processes; None for all.
        """
        if self.size == 1 or not tensors:
            return
        flat = torch.cat([tensor.reshape(-1) for tensor in tensors])
        dist.all_reduce(flat, group=group)
        flat /= dist.get_world_size(group)
        for tensor, mean in zip(tensors, flat.split([tensor.numel() for tensor in tensors]), strict=True):
            tensor.copy_(mean.view_as(tensor))

    def total(self, values: Sequence[float]) -> list[float]:
        """Sums over the processes of numbers that each has on the host."""
        if self.size == 1:
            return list(values)
        sums = torch.tensor(list(values), dtype=torch.float64)
        dist.all_reduce(sums)
        summed: list[float] = sums.tolist()
        return summed

    def all_reduce_max(self, flag: int) -> int:
        """The largest flag that any process holds; all have to call at the same point."""
        if self.size == 1:
            return flag
        highest = torch.tensor([flag])
        dist.all_reduce(highest, op=dist.ReduceOp.MAX)
        return int(highest)

    def broadcast(self, content: T) -> T:
        """What rank 0 gives, in every process; what the others give is dropped."""
        if self.size == 1:
            return content
        box = [content]
        dist.broadcast_object_list(box, src=0, device=torch.device("cpu"))
        return box[0]

    def all_gather(self, content: T) -> list[T]:
        """What each process gives, by rank, in every process."""
        found: list[T] = [content] * self.size
        if self.size > 1:
            dist.all_gather_object(found, content)
        return found

    def gather(self, content: T) -> list[T]:
        """What each process gives, by rank, in rank 0; an empty list in the others."""
        if self.size == 1:
            return [content]
        found: list[T] | None = [content] * self.size if self.is_main else None
        dist.gather_object(content, found, dst=0)
        return found or []

    def barrier(self) -> None:
        """Go on when every process has come here."""
        if self.size > 1:
            self.all_reduce_max(0)


ALONE = Team()


def current_team() -> Team:
    """The team that this process has joined; `ALONE` without one."""
    if not dist.is_available() or not dist.is_initialized():
        return ALONE
    return Team(rank=dist.get_rank(), size=dist.get_world_size())


@contextmanager
def main_first() -> Iterator[Team]:
    """Run the block in rank 0 first, and in the others when rank 0 is done: it may have to download what all read.

    An error in rank 0 does not let the others go on; `torchrun` ends them.
    """
    team = current_team()
    if not team.is_main:
        team.barrier()
    yield team
    if team.is_main:
        team.barrier()


def local_rank() -> int:
    """This process's rank on its machine, as `torchrun` says; 0 without it."""
    return int(os.environ.get("LOCAL_RANK", "0"))


def team_size() -> int:
    """How many processes `torchrun` has started; 1 without it."""
    return int(os.environ.get("WORLD_SIZE", "1"))


@contextmanager
def joined(patience: timedelta = _PATIENCE) -> Iterator[Team]:
    """The team that `torchrun` has started, joined for the time of the block; alone without it.

    Host data go through gloo, GPU data through NCCL: asking whether a process has been told to stop
    does not wait for a device.

    Args:
        patience: How long a process waits for another one before it gives up.
    """
    if team_size() == 1:
        yield ALONE
        return
    if dist.is_initialized():
        yield current_team()
        return
    if torch.cuda.is_available():
        torch.cuda.set_device(local_rank() % torch.cuda.device_count())
    dist.init_process_group("cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo", timeout=patience)
    try:
        yield current_team()
    finally:
        dist.destroy_process_group()
