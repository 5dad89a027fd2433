"""An epoch's running metrics, kept on the device so that reading them does not hold it up."""

from __future__ import annotations

import time
from dataclasses import dataclass

import torch
from torch import Tensor

from sam_bench.energy import EnergyMeter
from sam_bench.training.step import StepResult


@dataclass(frozen=True)
class Seen:
    """Metrics as the host knows them.

    Attributes:
        loss: Mean loss so far.
        accuracy: Share classified correctly so far.
        examples: How many examples that is about.
        bad_step: The first step whose loss was NaN or infinite; -1 when there was none.
    """

    loss: float
    accuracy: float
    examples: int
    bad_step: int


Sums = tuple[float, ...]
"""Of an epoch so far: losses, hits, examples; norms of gradients, steps; norms of ascents' gradients, ascents."""

NO_SUMS: Sums = (0.0,) * 7


class Metrics:
    """Sums over the steps of an epoch.

    On a GPU, `look` takes what has arrived meanwhile. Its numbers are a few steps old, and nothing waits for them.

    Args:
        device: Where losses come from.
        sums: What `state` returned, to go on from.
    """

    def __init__(self, device: torch.device, sums: Sums = NO_SUMS) -> None:
        # Sums of float32 numbers are exact in float64, so that it does not matter where a run was interrupted, nor
        # among how many processes they are shared; Apple's GPUs have none.
        exact = torch.float32 if device.type == "mps" else torch.float64
        self._loss = torch.tensor(sums[0], dtype=exact, device=device)
        self._counts = torch.tensor([int(sums[1]), int(sums[2]), -1], device=device)  # hits, examples, first bad step
        self._norm, self._ascent_norm = (torch.tensor(sums[each], dtype=exact, device=device) for each in (3, 5))
        self._steps, self._ascents = int(sums[4]), int(sums[6])
        self._arriving: tuple[Tensor, Tensor, torch.cuda.Event] | None = None
        self._last: Seen | None = None

    def add(self, seen: StepResult, *, examples: int, step: int) -> None:
        """Take in a step.

        Args:
            seen: Its result.
            examples: How many examples it saw.
            step: Its index in the run.
        """
        self._loss += seen.loss * examples
        self._norm += seen.gradient_norm
        self._steps += 1
        if seen.ascent_norm is not None:
            self._ascent_norm += seen.ascent_norm
            self._ascents += 1
        self._counts[0] += seen.hits
        self._counts[1] += examples
        first = (self._counts[2] < 0) & ~seen.loss.isfinite()
        self._counts[2] = torch.where(first, step, self._counts[2])

    def look(self, *, wait: bool = False) -> Seen | None:
        """What is known now; None when nothing has arrived yet.

        Args:
            wait: For the metrics of the step just made.
        """
        if wait or self._loss.device.type != "cuda":
            self._last, self._arriving = _seen(self._loss, self._counts), None
        elif self._arriving is None:
            loss = torch.empty((), pin_memory=True).copy_(self._loss, non_blocking=True)
            counts = torch.empty(3, dtype=torch.int64, pin_memory=True).copy_(self._counts, non_blocking=True)
            event = torch.cuda.Event()
            # On the stream that copies: without an argument it is that of the current device, which may be another.
            event.record(torch.cuda.current_stream(self._loss.device))
            self._arriving = loss, counts, event
        elif self._arriving[2].query():
            self._last, self._arriving = _seen(*self._arriving[:2]), None
        return self._last

    def state(self) -> Sums:
        """The sums, for a checkpoint in the middle of an epoch."""
        hits, examples, _ = self._counts.tolist()
        norm, ascent_norm = self._norm.item(), self._ascent_norm.item()
        return self._loss.item(), hits, examples, norm, self._steps, ascent_norm, self._ascents


def _seen(loss: Tensor, counts: Tensor) -> Seen:
    hits, examples, bad_step = counts.tolist()
    return Seen(loss=loss.item() / examples, accuracy=hits / examples, examples=examples, bad_step=bad_step)


class Timer:
    """Time and energy of an epoch so far.

    Args:
        device: What computes.
        seconds: Spent on it before, in a run that was interrupted.
        joules: Likewise; None where they were not told, and so are not known of the whole.
        meters: Whether this process counts energy; another one may count the same device's.
    """

    def __init__(
        self, device: torch.device, seconds: float = 0.0, joules: float | None = 0.0, *, meters: bool = True
    ) -> None:
        self._before, self._joules_before = seconds, joules
        self._started, self._meter = time.monotonic(), EnergyMeter(device) if meters else None

    @property
    def seconds(self) -> float:
        """Wall-clock seconds."""
        return self._before + time.monotonic() - self._started

    @property
    def joules(self) -> float | None:
        """Energy; None where the device does not tell, or did not before."""
        used = 0.0 if self._meter is None else self._meter.joules()
        return None if used is None or self._joules_before is None else self._joules_before + used
