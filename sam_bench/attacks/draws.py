"""Random numbers of the attacks: per example and reproducible anywhere, or exactly upstream's.

`CounterDraws` computes each number from where it is used: the seed, the attack, the example's place in
the data set, the trial (restart or target), the iteration. Nothing is drawn "next", so an example gets
the same numbers whatever shares its batch, whichever device or shard it is on. `UpstreamDraws` repeats
the draws of AutoAttack's own implementation, which depend on the batch.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from functools import lru_cache

import torch
from torch import Tensor

from sam_bench.seeds import derive_seed


def _signed(value: int) -> int:
    """The int64 with the same bits: torch has no unsigned arithmetic, but int64 wraps around alike."""
    value &= (1 << 64) - 1
    return value - (1 << 64) if value >> 63 else value


_GOLDEN = _signed(0x9E3779B97F4A7C15)
_MULTIPLIERS = _signed(0xBF58476D1CE4E5B9), _signed(0x94D049BB133111EB)


def _shifted(z: Tensor, bits: int) -> Tensor:
    """Logical right shift; torch's own keeps the sign."""
    return (z >> bits) & ((1 << (64 - bits)) - 1)


def mix(z: Tensor) -> Tensor:
    """SplitMix64's output function (Steele, Lea and Flood 2014): int64 bits to int64 bits, a bijection."""
    z = (z ^ _shifted(z, 30)) * _MULTIPLIERS[0]
    z = (z ^ _shifted(z, 27)) * _MULTIPLIERS[1]
    return z ^ _shifted(z, 31)


@lru_cache(maxsize=4096)
def _key(seed: int, attack: str, lane: int) -> int:
    return _signed(derive_seed(seed, "autoattack", attack, lane))


class Draws(ABC):
    """Where an attack's random numbers come from.

    `position`, `trial` and `at` are int64 [B]: the row's place in the arrays given to the engine, its
    restart or target, its iteration. `lane` tells apart several draws at one place.
    """

    in_step = False
    """Whether the rows of a batch are always at the same iteration."""

    @abstractmethod
    def uniform(self, position: Tensor, trial: Tensor, at: Tensor, shape: tuple[int, ...], *, lane: int) -> Tensor:
        """Uniform in [0, 1), float32 [B, *shape], a row's own."""

    @abstractmethod
    def normal(self, position: Tensor, trial: Tensor, at: Tensor, shape: tuple[int, ...], *, lane: int) -> Tensor:
        """Standard normal, float32 [B, *shape], a row's own."""

    @abstractmethod
    def proposals(
        self, position: Tensor, trial: Tensor, at: Tensor, sizes: tuple[int, ...], *, lane: int
    ) -> tuple[Tensor, ...]:
        """Uniform in [0, 1), float32 [B, size] for each size; upstream gives every row of the batch the same."""


class CounterDraws(Draws):
    """Every number a function of seed, attack, example, trial, iteration and element.

    Args:
        seed: The run's seed.
        attack: Name of the attack.
        index: int64 [N]: the examples' places in the data set, on the rows' device.
    """

    def __init__(self, seed: int, attack: str, index: Tensor) -> None:
        self._seed, self._attack, self._index = seed, attack, index

    def _bits(self, position: Tensor, trial: Tensor, at: Tensor, count: int, lane: int) -> Tensor:
        row = mix(self._index[position] * _GOLDEN + _key(self._seed, self._attack, lane))
        row = mix(row + trial * _GOLDEN)
        row = mix(row + at * _GOLDEN)
        element = torch.arange(1, count + 1, device=row.device) * _GOLDEN
        return mix(row[:, None] + element)

    def _flat(self, position: Tensor, trial: Tensor, at: Tensor, count: int, lane: int) -> Tensor:
        return _shifted(self._bits(position, trial, at, count, lane), 40).float() * 2.0**-24

    def uniform(self, position: Tensor, trial: Tensor, at: Tensor, shape: tuple[int, ...], *, lane: int) -> Tensor:
        """See `Draws.uniform`."""
        return self._flat(position, trial, at, math.prod(shape), lane).view(len(position), *shape)

    def normal(self, position: Tensor, trial: Tensor, at: Tensor, shape: tuple[int, ...], *, lane: int) -> Tensor:
        """See `Draws.normal`; Box and Muller 1958. The integers agree on every device, the logarithm to rounding."""
        count = math.prod(shape)
        radius, angle = self._flat(position, trial, at, 2 * count, lane).split(count, dim=1)
        flat = (-2.0 * (1.0 - radius).log()).sqrt() * (2.0 * math.pi * angle).cos()
        values: Tensor = flat.view(len(position), *shape)
        return values

    def proposals(
        self, position: Tensor, trial: Tensor, at: Tensor, sizes: tuple[int, ...], *, lane: int
    ) -> tuple[Tensor, ...]:
        """See `Draws.proposals`; here each row has its own."""
        parts: tuple[Tensor, ...] = self._flat(position, trial, at, sum(sizes), lane).split(sizes, dim=1)
        return parts


class UpstreamDraws(Draws):
    """What pyautoattack draws for one of its batches: from one CPU generator, in the order of its calls.

    Rows have to come in upstream's order, and all of a batch at the same iteration.
    """

    in_step = True

    def __init__(self, seed: int) -> None:
        self._generator = torch.Generator().manual_seed(seed)

    def uniform(self, position: Tensor, trial: Tensor, at: Tensor, shape: tuple[int, ...], *, lane: int) -> Tensor:
        """See `Draws.uniform`."""
        return torch.rand((len(position), *shape), generator=self._generator).to(position.device)

    def normal(self, position: Tensor, trial: Tensor, at: Tensor, shape: tuple[int, ...], *, lane: int) -> Tensor:
        """See `Draws.normal`."""
        return torch.randn((len(position), *shape), generator=self._generator).to(position.device)

    def proposals(
        self, position: Tensor, trial: Tensor, at: Tensor, sizes: tuple[int, ...], *, lane: int
    ) -> tuple[Tensor, ...]:
        """See `Draws.proposals`."""
        drawn = [torch.rand(size, generator=self._generator) for size in sizes]
        return tuple(each.to(position.device).expand(len(position), -1) for each in drawn)
