"""Random numbers of the attacks: per example and reproducible anywhere, or exactly upstream's.

`CounterRNG` computes each number from where it is used: the seed, the attack, the example's place in
the data set, the trial (restart or target), the iteration. Nothing is drawn "next", so an example gets
the same numbers whatever shares its batch, whichever device or shard it is on. `UpstreamRNG` repeats
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
def _key(seed: int, attack: str, stream: int) -> int:
    return _signed(derive_seed(seed, "autoattack", attack, stream))


class RNG(ABC):
    """Where an attack's random numbers come from.

    `row`, `trial` and `at` are int64 [B]: which example it is, its restart or
    target, its iteration. `stream` tells apart several draws at one place.
    """

    in_step = False
    """Whether the rows of a batch are always at the same iteration."""

    @abstractmethod
    def uniform(self, row: Tensor, trial: Tensor, at: Tensor, shape: tuple[int, ...], *, stream: int) -> Tensor:
        """Uniform in [0, 1), float32 [B, *shape], a row's own."""

    @abstractmethod
    def normal(self, row: Tensor, trial: Tensor, at: Tensor, shape: tuple[int, ...], *, stream: int) -> Tensor:
        """Standard normal, float32 [B, *shape], a row's own."""

    @abstractmethod
    def proposals(
        self, row: Tensor, trial: Tensor, at: Tensor, sizes: tuple[int, ...], *, stream: int
    ) -> tuple[Tensor, ...]:
        """Uniform in [0, 1), float32 [B, size] for each size; upstream gives every row of the batch the same."""


class CounterRNG(RNG):
    """Every number a function of seed, attack, example, trial, iteration and element.

    Args:
        seed: The run's seed.
        attack: Name of the attack.
        index: int64 [N]: the examples' places in the data set, on the rows' device.
    """

    def __init__(self, seed: int, attack: str, index: Tensor) -> None:
        self._seed, self._attack, self._index = seed, attack, index

    def _bits(self, row: Tensor, trial: Tensor, at: Tensor, count: int, stream: int) -> Tensor:
        row = mix(self._index[row] * _GOLDEN + _key(self._seed, self._attack, stream))
        row = mix(row + trial * _GOLDEN)
        row = mix(row + at * _GOLDEN)
        element = torch.arange(1, count + 1, device=row.device) * _GOLDEN
        return mix(row[:, None] + element)

    def _flat(self, row: Tensor, trial: Tensor, at: Tensor, count: int, stream: int) -> Tensor:
        return _shifted(self._bits(row, trial, at, count, stream), 40).float() * 2.0**-24

    def uniform(self, row: Tensor, trial: Tensor, at: Tensor, shape: tuple[int, ...], *, stream: int) -> Tensor:
        return self._flat(row, trial, at, math.prod(shape), stream).view(len(row), *shape)

    def normal(self, row: Tensor, trial: Tensor, at: Tensor, shape: tuple[int, ...], *, stream: int) -> Tensor:
        """See `RNG.normal`; Box and Muller 1958. The integers agree on every device, the logarithm to rounding."""
        count = math.prod(shape)
        radius, angle = self._flat(row, trial, at, 2 * count, stream).split(count, dim=1)
        flat = (-2.0 * (1.0 - radius).log()).sqrt() * (2.0 * math.pi * angle).cos()
        values: Tensor = flat.view(len(row), *shape)
        return values

    def proposals(
        self, row: Tensor, trial: Tensor, at: Tensor, sizes: tuple[int, ...], *, stream: int
    ) -> tuple[Tensor, ...]:
        """See `RNG.proposals`; here each row has its own."""
        parts: tuple[Tensor, ...] = self._flat(row, trial, at, sum(sizes), stream).split(sizes, dim=1)
        return parts


class UpstreamRNG(RNG):
    """What pyautoattack draws for one of its batches: from one CPU generator, in the order of its calls.

    AttackState have to come in upstream's order, and all of a batch at the same iteration.
    """

    in_step = True

    def __init__(self, seed: int) -> None:
        self._generator = torch.Generator().manual_seed(seed)

    def uniform(self, row: Tensor, trial: Tensor, at: Tensor, shape: tuple[int, ...], *, stream: int) -> Tensor:
        return torch.rand((len(row), *shape), generator=self._generator).to(row.device)

    def normal(self, row: Tensor, trial: Tensor, at: Tensor, shape: tuple[int, ...], *, stream: int) -> Tensor:
        return torch.randn((len(row), *shape), generator=self._generator).to(row.device)

    def proposals(
        self, row: Tensor, trial: Tensor, at: Tensor, sizes: tuple[int, ...], *, stream: int
    ) -> tuple[Tensor, ...]:
        drawn = [torch.rand(size, generator=self._generator) for size in sizes]
        return tuple(each.to(row.device).expand(len(row), -1) for each in drawn)
