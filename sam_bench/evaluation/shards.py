"""A part of an evaluation's examples, attacked by one process; several processes side by side."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor, nn

from sam_bench.allocator import freed_memory_kept
from sam_bench.attacks import Attack, Examples, Progress, Verdict
from sam_bench.attacks.judge import SMALLEST_BATCH
from sam_bench.data import to_float
from sam_bench.errors import SamBenchError
from sam_bench.evaluation.journal import Journal
from sam_bench.parallel import Job, run_jobs
from sam_bench.perturb.ball import Ball
from sam_bench.progress import Reporter, Stage
from sam_bench.records import Norm

_PIECE = 2**29
"""Bytes of float32 inputs that a shard may have at a time."""


@dataclass(frozen=True)
class Shard:
    """Some of the examples, and how they are attacked.

    Attributes:
        number: Which shard of the evaluation this is, from 0.
        images: uint8 [N, C, H, W], on the CPU: a quarter of what the inputs made of them take to send.
        labels: int64 [N].
        index: Their places in the data set, int64 [N].
        withstood: How many of the attacks each has behind it from earlier, int64 [N].
        norm: Norm of the ball.
        eps: Its radius.
        seed: Decides every random draw.
        batch_size: Examples at a time.
    """

    number: int
    images: Tensor
    labels: Tensor
    index: Tensor
    withstood: Tensor
    norm: Norm
    eps: float
    seed: int
    batch_size: int

    def pieces(self) -> list[Shard]:
        """The shard in pieces whose inputs, four times as large as their images, stay within a bound."""
        count = max(self.batch_size, _PIECE // (4 * max(1, self.images[:1].numel())))
        return [
            replace(self, images=images, labels=labels, index=index, withstood=withstood)
            for images, labels, index, withstood in zip(
                *(each.split(count) for each in (self.images, self.labels, self.index, self.withstood)), strict=True
            )
        ]

    def left(self, known: Mapping[int, Verdict]) -> Shard | None:
        """The shard without the examples that are settled, None where all are.

        Args:
            known: What was found out since the shard was dealt: place in the data set to the verdict.
        """
        found = [known.get(place) for place in self.index.tolist()]
        open_ = torch.tensor([each is None or each.verdict is None for each in found], dtype=torch.bool)
        if not bool(open_.any()):
            return None
        withstood = torch.tensor([0 if each is None else each.withstood for each in found]).maximum(self.withstood)
        return replace(
            self,
            images=self.images[open_],
            labels=self.labels[open_],
            index=self.index[open_],
            withstood=withstood[open_],
        )


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


class Executor(Protocol):
    """Somewhere else that shards are attacked."""

    def count(self, examples: int) -> int:
        """How many shards so many examples are dealt into."""

    def attack(self, shards: list[Shard], place: Workplace, *, reporter: Reporter) -> None:
        """Attack every shard; verdicts and doubts go into the journal.

        Raises:
            SamBenchError: A shard failed.
        """


def attack_shard(shard: Shard, place: Workplace, *, device: torch.device, reporter: Reporter) -> None:
    """Attack a shard here; verdicts and doubts go into a file of the journal.

    Args:
        shard: What to attack.
        place: With what, and where verdicts go.
        device: Where to run; the model is moved there.
        reporter: Where progress goes.
    """
    place.folder.mkdir(parents=True, exist_ok=True)
    # What an example meets does not depend on the others, but for attacks whose batches have to be whole.
    pieces = shard.pieces() if place.attack.per_example else [shard]
    with Journal(place.folder).writer(place.session, shard.number) as writer:
        for piece in pieces:
            with ExitStack() as stages:
                search(
                    piece,
                    place,
                    device=device,
                    told=lambda verdict: writer.verdict(verdict, witness=place.keep_witnesses),
                    doubted=writer.doubt,
                    progress=_displayed(reporter, stages, len(piece.index)),
                )


def search(
    shard: Shard,
    place: Workplace,
    *,
    device: torch.device,
    told: Callable[[Verdict], None],
    doubted: Callable[[str], None],
    progress: Callable[[Progress], None] = lambda _: None,
) -> None:
    """Attack a shard here; arguments as for `Attack.run`.

    Out of memory, it goes on with what is left, half as many examples at a time. Verdicts that depend on the batch
    are told at the end: what is left of such an evaluation would make other batches.

    Raises:
        SamBenchError: Fewer are not possible, or verdicts would depend on it.
    """
    known: dict[int, Verdict] = {}

    def tell(verdict: Verdict) -> None:
        if place.attack.per_example:
            told(verdict)
            verdict = replace(verdict, x_adv=None)
        known[verdict.example] = verdict

    try:
        with freed_memory_kept(device):
            for event in place.attack.run_events(
                place.module.to(device),
                Examples(to_float(shard.images), shard.labels, shard.index, shard.withstood),
                ball=Ball(norm=shard.norm, eps=shard.eps),
                seed=shard.seed,
                batch_size=shard.batch_size,
                device=device,
            ):
                if isinstance(event, Verdict):
                    tell(event)
                elif isinstance(event, Progress):
                    progress(event)
                else:
                    doubted(str(event))
        if not place.attack.per_example:
            for verdict in known.values():
                told(verdict)
        return
    except torch.OutOfMemoryError:
        left = shard.left(known)
        fewer = shard.batch_size // 2
    # Not in the handler, where the error holds on to every tensor of the search.
    if not place.attack.per_example:
        raise SamBenchError(
            f"out of memory with --batch-size {shard.batch_size}, on which the verdicts of {place.attack.method} "
            "depend; give a smaller one"
        )
    if fewer < SMALLEST_BATCH:
        raise SamBenchError(f"out of memory with {shard.batch_size} examples at a time; take a device with more memory")
    if left is not None:
        smaller = replace(left, batch_size=fewer)
        search(smaller, place, device=device, told=told, doubted=doubted, progress=progress)


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
        shown[progress.stage].update(progress.done, robust, progress.share)

    return show
