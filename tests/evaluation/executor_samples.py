"""What tests of executors send to workers: importable there by name."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from sam_bench.attacks.base import Task
from sam_bench.attacks.gradient import PGDAttack
from sam_bench.errors import InputError

PATIENCE = 300.0  # seconds after which a test is given up


def wait_for(there: Callable[[], bool]) -> None:
    end = time.monotonic() + PATIENCE
    while not there():
        if time.monotonic() > end:
            raise TimeoutError("what a test waits for did not come")
        time.sleep(0.02)


class Held(PGDAttack):
    """PGD that stands still after its first batch until it is released; on one node it says so, and goes on never."""

    folder: Path
    doomed: str = ""

    def seek(self, model: nn.Module, task: Task) -> list[str]:
        import ray

        def confirm(positions: Tensor, candidates: Tensor, by: str | list[str]) -> Tensor:
            broken = task.confirm(positions, candidates, by)
            if ray.is_initialized() and ray.get_runtime_context().get_node_id() == self.doomed:
                (self.folder / "held").touch()
                wait_for(lambda: False)  # a worker may outlive its node by a moment: it must not use it
            wait_for((self.folder / "released").exists)
            return broken

        return super().seek(model, replace(task, confirm=confirm))


def describe(shared: str, task: int, tell: Callable[[Any], None]) -> tuple[str, int]:
    for part in range(task):
        tell(part)
    return shared, os.getpid()


def refuse(shared: str, task: int, tell: Callable[[Any], None]) -> None:
    if task:
        raise InputError(f"--{shared} is wrong")
    raise ZeroDivisionError("by hand")


def die(shared: Path, task: int, tell: Callable[[Any], None]) -> str:
    """Tells what it has done so far, and dies as often as is asked for."""
    lives = len(list(shared.glob("life-*")))
    (shared / f"life-{lives}").touch()
    tell(lives)
    if lives < task:
        time.sleep(0.5)  # a letter needs a moment to leave
        os._exit(1)
    return "survived"


def end(shared: Path, task: int) -> Iterator[str]:
    yield "begun"
    time.sleep(0.5)
    os._exit(1)
