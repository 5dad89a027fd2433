"""How a batch is cut into the microbatches that are differentiated one after the other."""

from __future__ import annotations

import math
from collections.abc import Iterator

from torch import nn

from sam_bench.modes import batch_norms


class Microbatches:
    """The microbatches of one batch: equally many on every device, and nearly equal in size.

    Layers that talk to the other devices in every pass, such as synchronised BatchNorm, wait for ever if one device
    makes more passes than another. So the number of microbatches follows from the shards of all devices. BatchNorm
    cannot normalise a single example: in a network with BatchNorm, a microbatch holds at least two, unless the batch
    is a single one. It can then be an example or two larger than asked for.

    Args:
        model: The network, which may contain BatchNorm.
        most: Examples a microbatch should have at most; None for one microbatch.
        shards: Examples on the device that has the fewest, and on the one that has the most.
    """

    def __init__(self, model: nn.Module, most: int | None, shards: tuple[int, int]) -> None:
        self._most, (self._fewest, self._largest) = most, shards
        self._least = 2 if most is not None and any(batch_norms(model)) else 1

    def cut(self, count: int, share: float = 1.0) -> Iterator[tuple[slice, bool]]:
        """The microbatches of `count` examples; for each, whether it is the last.

        Args:
            count: Examples on this device.
            share: Their share of the batch, the same number on all devices.
        """
        number = min(self._number(share), max(1, count // self._least))
        for index in range(number):
            yield slice(index * count // number, (index + 1) * count // number), index == number - 1

    def _number(self, share: float) -> int:
        if self._most is None:
            return 1
        wanted = math.ceil(math.ceil(share * self._largest) / self._most)
        # A method that takes a share takes at least two examples if there are two.
        fewest = max(min(2, self._fewest), math.floor(share * self._fewest))
        return max(1, min(wanted, fewest // self._least))
