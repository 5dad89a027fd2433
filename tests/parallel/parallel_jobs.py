"""Jobs for the tests of `sam_bench.parallel`; workers import them."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import torch

from sam_bench.errors import InputError
from sam_bench.progress import Reporter


def square(number: int, *, reporter: Reporter) -> tuple[int, int, int]:
    reporter.say(f"squaring {number}")
    with reporter.stage("digits", 2) as stage:
        stage.update(1)
        stage.update(2, f"{number * number}")
    return number * number, os.getpid(), torch.get_num_threads()


def refuse(*, reporter: Reporter) -> None:
    raise InputError("--eps 8 is too large")


def fail(*, reporter: Reporter) -> None:
    raise ZeroDivisionError("by hand")


def die(*, reporter: Reporter) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def linger(folder: Path, *, reporter: Reporter) -> None:
    (folder / "pid").write_text(str(os.getpid()))
    time.sleep(600)


def tell_place(place: int, done: Path, wait_for: list[Path], *, reporter: Reporter) -> int:
    """The place given, once others are done."""
    until = time.monotonic() + 300
    while not all(each.exists() for each in wait_for):
        if time.monotonic() > until:
            raise TimeoutError("the others were not done")
        time.sleep(0.01)
    done.touch()
    return place
