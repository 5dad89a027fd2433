"""An attack's events, made of its callbacks.  # until the branches are merged: `Attack.run_events` does this."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from queue import SimpleQueue
from typing import Any

import torch
from torch import nn

from sam_bench.attacks import Attack
from sam_bench.attacks import Progress as OldProgress
from sam_bench.attacks import Verdict as OldVerdict
from sam_bench.attacks.events import AttackWarning, Event, Examples, Progress, Verdict
from sam_bench.perturb.ball import Ball


def run_events(
    attack: Attack,
    model: nn.Module,
    examples: Examples,
    *,
    ball: Ball,
    seed: int,
    batch_size: int,
    device: torch.device,
) -> Iterator[Event]:
    """See `Attack.run_events`."""
    if hasattr(attack, "run_events"):
        yield from attack.run_events(model, examples, ball=ball, seed=seed, batch_size=batch_size, device=device)
        return
    out: SimpleQueue[Any] = SimpleQueue()
    go = threading.Semaphore(0)
    ended = False

    def tell(event: Any) -> None:
        if not ended:
            out.put(event)
            go.acquire()
        if ended:
            raise GeneratorExit

    def work() -> None:
        try:
            attack.run(
                model, examples.x, examples.y, norm=ball.norm, eps=ball.eps, seed=seed, batch_size=batch_size,
                device=device, index=examples.index, withstood=examples.attacks_survived, told=tell,
                doubted=tell, keep_witnesses=False, progress=tell,
            )  # fmt: skip
            out.put(None)
        except BaseException as error:
            out.put(error)

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    try:
        while (event := out.get()) is not None:
            if isinstance(event, BaseException):
                error, event = event, None
                raise error.with_traceback(None)
            yield _of(event)
            go.release()
    finally:
        ended = True
        go.release()
        thread.join()


def _of(event: Any) -> Event:
    if isinstance(event, str):
        return AttackWarning.parse(event)
    if isinstance(event, OldVerdict):
        return Verdict(event.example, event.verdict, event.withstood, event.witness)
    assert isinstance(event, OldProgress)
    return Progress(event.stage, event.done, event.total, event.robust, event.share)
