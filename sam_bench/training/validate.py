"""Accuracy on the validation split, clean and under a short PGD. The test set is not looked at in training."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from sam_bench.data import Split, StreamedSplit, make_batches
from sam_bench.device import repeatable_convolutions, true_float32
from sam_bench.modes import attacking
from sam_bench.perturb.inputs import PGD
from sam_bench.seeds import row_generator
from sam_bench.training.state import RunConfig

ROBUST_EXAMPLES = 512  # of the split; the robust figure is a trend to watch, and it costs ten times the clean one
_BATCH = 256  # examples that draws are made for together, and the most that the model is given at once


def examples_at_a_time(config: RunConfig, devices: int) -> int:
    """What the model is given at once where nothing is learned: what follows a step has to fit where the step did.

    Args:
        config: The run's.
        devices: That share its batches.
    """
    share = -(-config.recipe.batch_size // devices)
    return min(config.micro_batch or share, share, _BATCH)


@dataclass(frozen=True)
class Validation:
    """Accuracies in [0, 1]."""

    clean: float
    robust: float


def validate(
    model: nn.Module, split: Split | StreamedSplit, pgd: PGD, *, seed: int, at_a_time: int = _BATCH
) -> Validation:
    """Measure a model in eval mode and float32; the model is given back as it was.

    Args:
        model: On the split's device.
        split: Held out from training.
        pgd: The attack behind the robust accuracy, run on the first 512 examples: if `hold_out` made the split, these
            are of each class in proportion.
        seed: Decides the attack's random start, an example's own and the same at every epoch.
        at_a_time: Examples that the model is given at once, at most 256; the figures do not depend on it but by
            rounding.
    """
    clean: Tensor | int = 0
    robust: Tensor | int = 0
    attacked = 0
    batches = make_batches(split, batch_size=_BATCH, seed=seed, augmentation=None, shuffle=False)
    with attacking(model), repeatable_convolutions():
        for number, (whole, labels) in enumerate(batches.epoch(0)):
            attacks = attacked < ROBUST_EXAMPLES
            for first in range(0, len(whole), at_a_time):
                x, y = whole[first : first + at_a_time], labels[first : first + at_a_time]
                clean = clean + _hits(model, x, y)
                if attacks:
                    draws = row_generator(seed, "validation", number, first=first, total=_BATCH, device=x.device)
                    robust = robust + _hits(model, pgd.perturb(model, x, y, generator=draws), y)
                    attacked += len(x)
    return Validation(clean=int(clean) / len(split), robust=int(robust) / attacked)


@torch.no_grad()
def _hits(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    with true_float32():
        hits: Tensor = (model(x).argmax(1) == y).sum()
    return hits
