"""A part of an evaluation's examples, attacked by one process; several processes side by side."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from sam_bench.attacks import Attack, Progress, Verdict
from sam_bench.evaluation.journal import Journal
from sam_bench.parallel import Job, run_jobs
from sam_bench.progress import Reporter, Stage
from sam_bench.records import Norm


@dataclass(frozen=True)
class Shard:
    """Some of the examples, and how they are attacked.

    Attributes:
        x: Clean inputs, float32 [N, C, H, W] in [0, 1], on the CPU.
        y: Labels, int64 [N].
        index: Their places in the data set, int64 [N].
        norm: Norm of the ball.
        eps: Its radius.
        seed: Decides every random draw.
        batch_size: Examples at a time.
    """

    x: Tensor
    y: Tensor
    index: Tensor
    norm: Norm
    eps: float
    seed: int
    batch_size: int


def attack_shard(
    shard: Shard,
    module: nn.Module,
    attack: Attack,
    *,
    number: int,
    known: Mapping[int, Verdict],
    journal: Journal,
    session: str,
    device: torch.device,
    keep_witnesses: bool,
    reporter: Reporter,
) -> None:
    """Attack a shard here; verdicts and doubts go into a file of the journal.

    Args:
        shard: What to attack.
        module: The model, on `device`.
        attack: What to run.
        number: Which shard this is.
        known: What earlier processes found out.
        journal: Where verdicts go.
        session: As `Journal.new_session` named it.
        device: Where to run.
        keep_witnesses: Write adversarial examples, too.
        reporter: Where progress goes.
    """
    journal.path.mkdir(parents=True, exist_ok=True)
    withstood = torch.tensor([known[place].withstood if place in known else 0 for place in shard.index.tolist()])
    with journal.writer(session, number) as writer, ExitStack() as stages:
        result = attack.run(
            module,
            shard.x,
            shard.y,
            norm=shard.norm,
            eps=shard.eps,
            seed=shard.seed,
            batch_size=shard.batch_size,
            device=device,
            index=shard.index,
            withstood=withstood,
            told=lambda verdict: writer.verdict(verdict, witness=keep_witnesses),
            progress=_displayed(reporter, stages, len(shard.x)),
        )
        for doubt in result.warnings:
            writer.doubt(doubt)


def attack_in_processes(
    shards: list[Shard],
    module: nn.Module,
    attack: Attack,
    *,
    known: Mapping[int, Verdict],
    journal: Journal,
    session: str,
    device: torch.device,
    keep_witnesses: bool,
    reporter: Reporter,
) -> None:
    """Attack each shard in a process of its own on this machine; arguments as for `attack_shard`.

    Raises:
        SamBenchError: A process died, or its part failed.
    """
    jobs = [
        Job(
            f"worker {number + 1}",
            _work,
            {
                "shard": shard,
                "module": module.cpu(),
                "attack": attack,
                "number": number,
                "known": {place: known[place] for place in shard.index.tolist() if place in known},
                "folder": journal.path,
                "session": session,
                # A process to each GPU, where there are several and none was named.
                "device": _device_of(number, device),
                "keep_witnesses": keep_witnesses,
            },
        )
        for number, shard in enumerate(shards)
    ]
    run_jobs(jobs, workers=len(jobs), reporter=reporter)


def _device_of(number: int, device: torch.device) -> torch.device:
    if device.type == "cuda" and device.index is None:
        return torch.device("cuda", number % torch.cuda.device_count())
    return device


def _work(*, folder: Path, module: nn.Module, device: torch.device, **rest: Any) -> None:
    attack_shard(module=module.to(device), device=device, journal=Journal(folder), **rest)


def _displayed(reporter: Reporter, stages: ExitStack, total: int) -> Callable[[Progress], None]:
    """A progress callback that opens a stage for each attack as it begins."""
    shown: dict[str, Stage] = {}

    def show(progress: Progress) -> None:
        if progress.stage not in shown:
            stages.close()
            shown[progress.stage] = stages.enter_context(reporter.stage(progress.stage, progress.total))
        robust = "" if progress.robust is None else f"{progress.robust}/{total} robust"
        shown[progress.stage].update(progress.done, robust)

    return show
