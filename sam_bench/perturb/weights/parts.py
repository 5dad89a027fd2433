"""Into which parts a batch is cut that is differentiated a little at a time."""

from __future__ import annotations

import math
from collections.abc import Iterator

from torch import nn

from sam_bench.modes import batch_norms


class Parts:
    """The parts of one batch: as many on every device, and nearly equal.

    Layers that speak to the other devices in every pass, synchronised BatchNorm above all, wait for
    each other for ever where one device makes more passes than another. So the number of parts follows
    from the shards of all devices and not from a device's own. Where there is BatchNorm no part is a
    single example, which it cannot normalise, unless the batch is; a part can then be an example or
    two larger than asked for.

    Args:
        model: The network: whether there is BatchNorm in it.
        most: Examples a part should have at most; None for one part.
        shards: Examples on the device that has the fewest, and on the one that has the most.
    """

    def __init__(self, model: nn.Module, most: int | None, shards: tuple[int, int]) -> None:
        self._most, (self._fewest, self._largest) = most, shards
        self._least = 2 if most is not None and any(batch_norms(model)) else 1

    def cut(self, count: int, share: float = 1.0) -> Iterator[tuple[slice, bool]]:
        """The parts of `count` examples, and of each whether it is the last.

        Args:
            count: Examples on this device.
            share: What part of the batch they are, the same number on all devices.
        """
        number = min(self._number(share), max(1, count // self._least))
        for part in range(number):
            yield slice(part * count // number, (part + 1) * count // number), part == number - 1

    def _number(self, share: float) -> int:
        if self._most is None:
            return 1
        wanted = math.ceil(math.ceil(share * self._largest) / self._most)
        # Who takes a share takes two examples where there are as many.
        fewest = max(min(2, self._fewest), math.floor(share * self._fewest))
        return max(1, min(wanted, fewest // self._least))
