"""A part of an evaluation's examples, attacked by one process; several processes side by side."""

from __future__ import annotations

import copy
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor, nn

from sam_bench.attacks import Attack, Progress
from sam_bench.evaluation.journal import Journal
from sam_bench.parallel import Job, run_jobs
from sam_bench.progress import Reporter, Stage
from sam_bench.records import Norm


@dataclass(frozen=True)
class Shard:
    """Some of the examples, and how they are attacked.

    Attributes:
        number: Which shard of the evaluation this is, from 0.
        x: Clean inputs, float32 [N, C, H, W] in [0, 1], on the CPU.
        y: Labels, int64 [N].
        index: Their places in the data set, int64 [N].
        withstood: How many of the attacks each has behind it from earlier, int64 [N].
        norm: Norm of the ball.
        eps: Its radius.
        seed: Decides every random draw.
        batch_size: Examples at a time.
    """

    number: int
    x: Tensor
    y: Tensor
    index: Tensor
    withstood: Tensor
    norm: Norm
    eps: float
    seed: int
    batch_size: int


@dataclass(frozen=True)
class Workplace:
    """What every shard of an evaluation has in common.

    Attributes:
        module: The model.
        attack: What to run.
        folder: Of the journal that verdicts go into.
        session: As `Journal.new_session` named it.
        keep_witnesses: Write adversarial examples, too.
    """

    module: nn.Module
    attack: Attack
    folder: Path
    session: str
    keep_witnesses: bool


def attack_shard(shard: Shard, place: Workplace, *, device: torch.device, reporter: Reporter) -> None:
    """Attack a shard here; verdicts and doubts go into a file of the journal.

    Args:
        shard: What to attack.
        place: With what, and where verdicts go.
        device: Where to run; the model is moved there.
        reporter: Where progress goes.
    """
    place.folder.mkdir(parents=True, exist_ok=True)
    with Journal(place.folder).writer(place.session, shard.number) as writer, ExitStack() as stages:
        result = place.attack.run(
            place.module.to(device),
            shard.x,
            shard.y,
            norm=shard.norm,
            eps=shard.eps,
            seed=shard.seed,
            batch_size=shard.batch_size,
            device=device,
            index=shard.index,
            withstood=shard.withstood,
            told=lambda verdict: writer.verdict(verdict, witness=place.keep_witnesses),
            progress=_displayed(reporter, stages, len(shard.x)),
        )
        for doubt in result.warnings:
            writer.doubt(doubt)


def attack_in_processes(shards: list[Shard], place: Workplace, *, device: torch.device, reporter: Reporter) -> None:
    """Attack each shard in a process of its own on this machine; arguments as for `attack_shard`.

    Raises:
        SamBenchError: A process died, or its part failed.
    """
    # A copy, because `cpu` moves a module where it stands, and the caller goes on with its own.
    sent = replace(place, module=copy.deepcopy(place.module).cpu())
    jobs = [
        Job(
            f"worker {shard.number + 1}",
            attack_shard,
            {"shard": shard, "place": sent, "device": _device_of(shard.number, device)},
        )
        for shard in shards
    ]
    run_jobs(jobs, workers=len(jobs), reporter=reporter)


def _device_of(number: int, device: torch.device) -> torch.device:
    """A process to each GPU, where there are several and none was named."""
    if device.type == "cuda" and device.index is None:
        return torch.device("cuda", number % torch.cuda.device_count())
    return device


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
