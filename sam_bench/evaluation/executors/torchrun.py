"""In the processes that `torchrun` has started. Rank 0 decides and writes; the others send it their events."""

from __future__ import annotations

import pickle
import time
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

import torch
import torch.distributed as dist

from sam_bench.attacks.events import Event, Progress
from sam_bench.distributed import Team
from sam_bench.errors import SamBenchError
from sam_bench.evaluation.executors.base import Executor, dealt
from sam_bench.evaluation.executors.local import Local, attack_here
from sam_bench.evaluation.problem import Problem

_POLL = 0.1  # seconds between two looks at what the others have sent


class Torchrun(Executor):
    """Shares the examples among the processes of a group.

    Args:
        team: The processes.
        device: This one's.
        why: Why that one, for the message at the start.
    """

    field = "workers"

    def __init__(self, team: Team, device: torch.device, why: str = "asked for") -> None:
        self._team, self._device, self._here, self._runs = team, device, Local(device, why), 0

    def check(self, problem: Problem) -> None:
        super().check(problem)
        self._here.check(problem)

    def follow(self, problem: Problem) -> Any:
        """See `Executor.follow`: rank 0's `run` says what to attack."""
        while not self._team.is_main:
            told: tuple[str, Any] = ("", None)
            kind, content = self._team.broadcast(told)
            if kind == "result":
                return content
            variant, todo = content
            self._send(replace(problem, **variant), todo)
        return None

    def finish(self, result: Any) -> None:
        self._team.broadcast(("result", result))

    def run(self, problem: Problem, todo: Mapping[int, int]) -> Iterator[Event]:
        """See `Executor.run`; in rank 0 alone."""
        fields = ("attack", "norm", "eps", "seed", "batch_size", "carried", "save_adversarial")
        self._team.broadcast(("run", ({name: getattr(problem, name) for name in fields}, dict(todo))))
        self._runs += 1
        mine, *others = dealt(todo, self._team.size)
        read, open_ = dict.fromkeys(range(1, len(others) + 1), 0), set(range(1, len(others) + 1))
        looked = time.monotonic()
        for event in attack_here(problem, problem.stored(mine), self._device):
            yield event
            if time.monotonic() - looked > _POLL:
                yield from self._received(read, open_)
                looked = time.monotonic()
        while open_:
            time.sleep(_POLL)
            yield from self._received(read, open_)

    def _send(self, problem: Problem, todo: Mapping[int, int]) -> None:
        """Attack this process's part."""
        self._runs += 1
        parts = dealt(todo, self._team.size)
        if self._team.rank >= len(parts):
            return
        try:
            for event in attack_here(problem, problem.stored(parts[self._team.rank]), self._device):
                if not isinstance(event, Progress):
                    self._put(event)
        except Exception as error:
            self._put(error if isinstance(error, SamBenchError) else SamBenchError(f"{type(error).__name__}: {error}"))
            raise
        self._put(None)

    def _put(self, content: Any) -> None:
        store, name = _store(), self._name(self._team.rank)
        number = store.add(f"{name}/last", 0) + 1
        store.set(f"{name}/{number}", pickle.dumps(content))
        store.add(f"{name}/last", 1)

    def _received(self, read: dict[int, int], open_: set[int]) -> Iterator[Event]:
        """What the processes in `open_` have sent since the last look; those that are done leave it."""
        store = _store()
        for rank in sorted(open_):
            name = self._name(rank)
            for number in range(read[rank] + 1, store.add(f"{name}/last", 0) + 1):
                content = pickle.loads(store.get(f"{name}/{number}"))
                store.delete_key(f"{name}/{number}")
                read[rank] = number
                if content is None:
                    open_.discard(rank)
                elif isinstance(content, Exception):
                    raise content
                else:
                    yield content

    def _name(self, rank: int) -> str:
        return f"sam-bench/events/{self._runs}/{rank}"

    def describe(self) -> str:
        return f"{self._here.describe()}, {self._team.size} processes of torchrun"

    def ran_on(self) -> str:
        return self._here.ran_on()


def _store() -> Any:
    """The store through which the processes of the group found each other."""
    return dist.distributed_c10d._get_default_store()
