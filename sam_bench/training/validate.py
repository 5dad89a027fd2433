"""Accuracy on the validation split, clean and under a short PGD. The test set is not looked at in training."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn

from sam_bench.data import Split, StreamedSplit, make_batches
from sam_bench.device import true_float32
from sam_bench.modes import attacking
from sam_bench.perturb.inputs import PGD
from sam_bench.seeds import generator

ROBUST_EXAMPLES = 512  # of the split; the robust figure is a trend to watch, and it costs ten times the clean one


@dataclass(frozen=True)
class Validation:
    """Accuracies in [0, 1]."""

    clean: float
    robust: float


def validate(
    model: nn.Module, split: Split | StreamedSplit, pgd: PGD, *, seed: int, batch_size: int = 256
) -> Validation:
    """Measure a model in eval mode and float32; the model is given back as it was.

    Args:
        model: On the split's device.
        split: Held out from training.
        pgd: The attack behind the robust accuracy, run on the first 512 examples.
        seed: Decides the attack's random start, the same at every epoch.
    """
    clean = robust = attacked = 0
    with attacking(model):
        for number, (x, y) in enumerate(
            make_batches(split, batch_size=batch_size, seed=seed, augmentation=None, shuffle=False).epoch(0)
        ):
            clean += _hits(model, x, y)
            if attacked < ROBUST_EXAMPLES:
                draws = generator(seed, "validation", number, device=x.device)
                robust += _hits(model, pgd.perturb(model, x, y, generator=draws), y)
                attacked += len(x)
    return Validation(clean=clean / len(split), robust=robust / attacked)


@torch.no_grad()
def _hits(model: nn.Module, x: torch.Tensor, y: torch.Tensor) -> int:
    with true_float32():
        return int((model(x).argmax(1) == y).sum())
