"""Jobs for the tests of `sam_bench.parallel`; workers import them, so PyTorch waits until a job needs it."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path
from typing import TYPE_CHECKING

from sam_bench.errors import InputError
from sam_bench.progress import Reporter

if TYPE_CHECKING:
    from sam_bench.data import StreamedBatches


def square(number: int, *, reporter: Reporter) -> tuple[int, int]:
    reporter.say(f"squaring {number}")
    with reporter.stage("digits", 2) as stage:
        stage.update(1)
        stage.update(2, f"{number * number}")
    return number * number, os.getpid()


def threads(*, reporter: Reporter) -> int:
    import torch

    return torch.get_num_threads()


def refuse(*, reporter: Reporter) -> None:
    raise InputError("--eps 8 is too large")


def fail(*, reporter: Reporter) -> None:
    raise ZeroDivisionError("by hand")


def die(*, reporter: Reporter) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def leave(*, reporter: Reporter) -> None:
    os._exit(3)


def linger(folder: Path, *, reporter: Reporter) -> None:
    (folder / "pid").write_text(str(os.getpid()))
    time.sleep(600)


def streamed(images: Path) -> StreamedBatches:
    from sam_bench.data import StreamedBatches, stream_folder

    options = {"batch_size": 2, "seed": 0, "augmentation": None, "shuffle": False}
    return StreamedBatches(stream_folder(images).test, workers=1, **options)  # type: ignore[arg-type]


def read_images(images: Path, *, reporter: Reporter) -> list[int]:
    """The labels of images that another process reads."""
    return [label for _, y in streamed(images).epoch(0) for label in y.tolist()]


def linger_while_images_are_read(folder: Path, *, reporter: Reporter) -> None:
    batches = streamed(folder.parent / "images").epoch(0)
    next(batches)
    linger(folder, reporter=reporter)


def stop_late(folder: Path, *, reporter: Reporter) -> None:
    """Told to stop, it writes what it has, and then goes on until it is told again."""
    told: list[int] = []
    before = signal.signal(signal.SIGTERM, lambda number, _: told.append(number))
    (folder / "pid").write_text(str(os.getpid()))
    while not told:
        time.sleep(0.01)
    time.sleep(1.0)
    (folder / "written").touch()
    signal.signal(signal.SIGTERM, before)
    time.sleep(600)


def never_stop(folder: Path, *, reporter: Reporter) -> None:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    linger(folder, reporter=reporter)


def refuse_later(wait_for: Path, *, reporter: Reporter) -> None:
    while not wait_for.exists():
        time.sleep(0.01)
    refuse(reporter=reporter)


def tell_place(place: int, done: Path, wait_for: list[Path], *, reporter: Reporter) -> int:
    """The place given, once others are done."""
    until = time.monotonic() + 300
    while not all(each.exists() for each in wait_for):
        if time.monotonic() > until:
            raise TimeoutError("the others were not done")
        time.sleep(0.01)
    done.touch()
    return place
