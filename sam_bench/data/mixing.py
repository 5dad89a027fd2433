"""Mixup and CutMix: batches whose images and labels are mixed in pairs, by timm."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from sam_bench.data.batches import Batches
from sam_bench.data.stream_batches import StreamedBatches
from sam_bench.seeds import derive_seed


class MixedBatches:
    """Batches of which each is mixed with itself in reverse order (Zhang et al. 2018; Yun et al. 2019).

    Which way and how strongly a batch is mixed is a function of (seed, epoch, batch). With both ways each is chosen
    with probability 1/2. Of an odd batch the last example stays as it is. A device mixes the examples it has.

    Args:
        batches: What is mixed.
        mixup: Alpha of Mixup's Beta distribution; 0: none.
        cutmix: Alpha of CutMix's; 0: none.
        num_classes: Of the labels.
        seed: The run's.
    """

    def __init__(
        self, batches: Batches | StreamedBatches, *, mixup: float, cutmix: float, num_classes: int, seed: int
    ) -> None:
        from timm.data.mixup import Mixup  # loads timm, which other runs need not wait for

        self._batches, self._num_classes, self._seed = batches, num_classes, seed
        # The objective smooths labels, if it is asked to.
        self._mix = Mixup(mixup_alpha=mixup, cutmix_alpha=cutmix, label_smoothing=0.0, num_classes=num_classes)

    def __len__(self) -> int:
        """Batches an epoch."""
        return len(self._batches)

    def share_of(self, batch: int) -> tuple[int, int, int]:
        """See `Batches.share_of`."""
        return self._batches.share_of(batch)

    def epoch(self, epoch: int, *, start: int = 0) -> Iterator[tuple[Tensor, Tensor]]:
        """See `Batches.epoch`.

        Yields:
            (x, y): float32 [B, C, H, W] in [0, 1] and each class's share of the label, float32 [B, classes].
        """
        for batch, (x, y) in enumerate(self._batches.epoch(epoch, start=start), start=start):
            even = len(x) - len(x) % 2
            with _numpy_seeded(derive_seed(self._seed, "mix", epoch, batch)):
                mixed, shares = self._mix(x[:even].clone(), y[:even])
            alone = F.one_hot(y[even:], self._num_classes).to(shares.dtype)
            # Rounding may leave the box by one unit in the last place.
            yield torch.cat([mixed.clamp_(0.0, 1.0), x[even:]]), torch.cat([shares, alone])


@contextmanager
def _numpy_seeded(seed: int) -> Iterator[None]:
    """timm draws from NumPy's global stream: seed it, and put it back as it was."""
    before = np.random.get_state()
    np.random.seed(seed % 2**32)
    try:
        yield
    finally:
        np.random.set_state(before)
