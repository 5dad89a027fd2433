"""What a perturbation keeps from one batch to the next: a tensor for each place of a batch."""

from __future__ import annotations

import torch
from torch import Tensor

from sam_bench.seeds import RowGenerator


class Kept:
    """A perturbation for each place of a batch. It outlives the batch, and is saved with a run's checkpoint.

    Args:
        fill: What a place has that nothing was put in yet.
    """

    def __init__(self, fill: float) -> None:
        self._fill = fill
        self._all: Tensor | None = None  # [places, ...]

    def at(self, place: slice, like: Tensor) -> Tensor:
        """What is kept for the rows of a batch.

        Args:
            place: Of the rows, in the whole batch.
            like: Of the rows' shape, type and device.
        """
        return self._wide(place.stop, like)[place]

    def put(self, place: slice, perturbation: Tensor) -> None:
        """Keep the perturbation of the rows of a batch."""
        self._all = self._wide(place.stop, perturbation)
        self._all[place] = perturbation

    def forget(self) -> None:
        """Nothing was put anywhere yet."""
        self._all = None

    def state(self) -> Tensor | None:
        """Everything, on the CPU, for a checkpoint."""
        return None if self._all is None else self._all.cpu()

    def load(self, state: Tensor | None) -> None:
        """Go on with what a checkpoint holds."""
        self._all = state

    def _wide(self, places: int, like: Tensor) -> Tensor:
        kept = like[:0] if self._all is None else self._all.to(like)
        more = like.new_full((max(0, places - len(kept)), *like.shape[1:]), self._fill)
        return torch.cat([kept, more]) if len(more) else kept


def place_of(x: Tensor, generator: torch.Generator) -> slice:
    """The place of rows in their whole batch, as a `RowGenerator` knows it."""
    first = generator.first if isinstance(generator, RowGenerator) else 0
    return slice(first, first + len(x))
