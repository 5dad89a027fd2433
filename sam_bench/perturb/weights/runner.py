"""Where in a run a step is, and how its passes are run."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor

from sam_bench.errors import InputError

Score = Callable[[Tensor], Tensor]
"""Maps images [B, C, H, W] to logits [B, classes]."""


@dataclass(frozen=True)
class StepContext:
    """The place of a step in its run. Nothing here has a default: a step that is always step 0 would look fine.

    Attributes:
        seed: Decides, together with the step, every random draw of a method.
        epoch: The epoch, from 0.
        step: The step of the whole run, from 0.
        progress: `step` over the number of steps in the run, in [0, 1).
    """

    seed: int
    epoch: int
    step: int
    progress: float

    @classmethod
    def at(cls, step: int, *, epochs: int, steps_per_epoch: int, seed: int) -> StepContext:
        """The context of a step in a run of `epochs` epochs with `steps_per_epoch` steps each.

        Args:
            step: The step of the whole run, from 0.
            epochs: Epochs of the run.
            steps_per_epoch: Steps in each of them.
            seed: The run's.

        Raises:
            InputError: The run has no such step.
        """
        if not 0 <= step < epochs * steps_per_epoch:
            raise InputError(
                f"is not in a run of {epochs} epochs with {steps_per_epoch} steps each", field="step", value=step
            )
        return cls(seed=seed, epoch=step // steps_per_epoch, step=step, progress=step / (epochs * steps_per_epoch))


def _keep(tensors: Sequence[Tensor]) -> None:
    """The mean over a single device."""


@dataclass(frozen=True)
class Runner:
    """How the passes of a step are run: precision, compilation, microbatches, devices. Owned by the training step.

    Attributes:
        score: Runs the network in the precision and form that training wants; None for the model itself.
        micro_batch: Examples differentiated at a time; None for the whole batch.
        shards: Examples on the device that has the fewest, and on the one that has the most; None for one device.
        weight: Factor of the mean loss in the average over devices: B times the devices over the whole batch.
        no_sync: Context inside which gradients stay on this device.
        sync_ascent: Whether the ascent follows the gradient of the whole batch, or each device its own.
        average: Replaces tensors by their means over the devices, in place.
        redraw: Called with (microbatch, draw) before each pass. It seeds dropout and stochastic depth, so that
            passes whose gradients or losses are compared have equal masks.
        optimizer: Takes the step that the gradient is for; None if it is not known.
        lends_gradients: Whether averaged gradients lie in memory that the next pass writes to.
    """

    score: Score | None = None
    micro_batch: int | None = None
    shards: tuple[int, int] | None = None
    weight: float = 1.0
    no_sync: Callable[[], AbstractContextManager[object]] = nullcontext
    sync_ascent: bool = False
    average: Callable[[Sequence[Tensor]], None] = _keep
    redraw: Callable[[int, int], None] | None = None
    optimizer: torch.optim.Optimizer | None = None
    lends_gradients: bool = False
