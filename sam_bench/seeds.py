"""Random streams that are a function of where they are used, not of what was drawn before.

Every draw comes from a generator seeded by the run's seed and the place of the draw (epoch, batch,
step). A resumed run draws what the uninterrupted one would have, with no generator state to save.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from sam_bench.errors import InputError


def derive_seed(*parts: int | str) -> int:
    """A 64-bit seed from a seed and what it is for, the same on every machine: `derive_seed(0, "order", 3)`."""
    text = "/".join(str(part) for part in parts)
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "little")


def generator(*parts: int | str, device: torch.device | str = "cpu") -> torch.Generator:
    """A generator on `device`, seeded by `derive_seed(*parts)`."""
    return torch.Generator(device=device).manual_seed(derive_seed(*parts))


class RowGenerator(torch.Generator):
    """The generator of a whole batch in the hands of somebody who has some of its rows.

    Whatever is drawn through `draw_rows` is drawn for the batch and cut to these rows: an example's
    draws are the same whether its batch is whole, in parts, or spread over devices.

    Attributes:
        first: Place of the first row in the batch.
        total: Rows of the batch.
    """

    first: int
    total: int


def row_generator(*parts: int | str, first: int, total: int, device: torch.device | str = "cpu") -> RowGenerator:
    """A `RowGenerator` on `device` for the rows from `first` of a batch of `total`, seeded by `derive_seed(*parts)`."""
    rows = RowGenerator(device=device)
    rows.manual_seed(derive_seed(*parts))
    rows.first, rows.total = first, total
    return rows


def draw_rows(draw: Callable[[Sequence[int]], Tensor], shape: Sequence[int], generator: torch.Generator) -> Tensor:
    """Random numbers for rows of a batch.

    Args:
        draw: Draws from `generator` a tensor of the shape it is given.
        shape: What is wanted, [rows, ...].
        generator: Any; a `RowGenerator` is asked for its batch's numbers, of which its rows are kept.
    """
    if not isinstance(generator, RowGenerator):
        return draw(shape)
    return draw((generator.total, *shape[1:]))[generator.first : generator.first + shape[0]]


def check_seed(seed: int) -> None:
    """Refuse a seed that a random generator cannot take."""
    if not 0 <= seed < 2**63:
        raise InputError(f"must be between 0 and {2**63 - 1}", field="seed", value=seed)
