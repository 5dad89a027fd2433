"""The draws of a bootstrap over seeds and images; `statistics` says how they make intervals."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sam_bench.errors import InputError

Floats = NDArray[np.floating[Any]]

_CELLS = 2**21  # image counts that are held at a time: draws x images


@dataclass(frozen=True)
class Bootstrap:
    """How intervals are made; the same seed draws the same images and weights in every comparison.

    Args:
        draws: How many, at least 2.
        level: Share of studies whose interval should hold the truth, between 0 and 1.
        seed: Decides every draw.
    """

    draws: int = 2000
    level: float = 0.95
    seed: int = 0

    def __post_init__(self) -> None:
        if self.draws < 2:
            raise InputError("must be at least 2", field="draws", value=self.draws)
        if not 0 < self.level < 1:
            raise InputError("must lie between 0 and 1", field="level", value=self.level)
        if self.seed < 0:  # NumPy would refuse it when the report is made, after days of work
            raise InputError("must be at least 0", field="seed", value=self.seed)

    def shared_over(self, tries: int) -> Bootstrap:
        """The higher level at which `tries` intervals all hold the truth as often as one does at this level."""
        return replace(self, level=1 - (1 - self.level) / tries)


@dataclass(frozen=True, eq=False)
class Scores:
    """One number for each seed and image of a row: a verdict, or a distance.

    Args:
        seeds: The seed of each line of `values`, each once.
        values: bool or float [seeds, images]. Distances may be infinite.
    """

    seeds: tuple[int, ...]
    values: NDArray[Any]

    def __post_init__(self) -> None:
        if self.values.ndim != 2 or len(self.values) != len(self.seeds) or not self.values.size:
            raise InputError(f"{len(self.seeds)} seeds need values [seeds, images], not {list(self.values.shape)}")
        if len(set(self.seeds)) < len(self.seeds):
            raise InputError("names a seed twice", field="seeds", value=self.seeds)

    @property
    def images(self) -> int:
        """How many there are."""
        return int(self.values.shape[1])

    def of(self, seeds: Sequence[int]) -> Scores:
        """These seeds alone, in this order."""
        return Scores(tuple(seeds), self.values[[self.seeds.index(seed) for seed in seeds]])


class Draws:
    """The draws of one comparison.

    Args:
        scores: All that is compared, on the same images.
        bootstrap: How many draws.
    """

    def __init__(self, scores: Sequence[Scores], bootstrap: Bootstrap) -> None:
        counts = {each.images for each in scores}
        if len(counts) > 1:
            raise InputError(f"all rows need the same images, not {' and '.join(map(str, sorted(counts)))} of them")
        self.bootstrap, self._images = bootstrap, counts.pop()
        self._all = sorted({seed for each in scores for seed in each.seeds})

    def _counts(self) -> Iterator[NDArray[np.float32]]:
        """How often each image is drawn, a few draws at a time: [some draws, images]."""
        rng = np.random.default_rng([self.bootstrap.seed, 0])
        at_a_time = max(1, _CELLS // self._images)
        for start in range(0, self.bootstrap.draws, at_a_time):
            draws = min(at_a_time, self.bootstrap.draws - start)
            drawn = rng.integers(self._images, size=(draws, self._images))
            drawn += np.arange(draws)[:, None] * self._images
            yield np.bincount(drawn.ravel(), minlength=drawn.size).reshape(drawn.shape).astype(np.float32)

    def rates(self, scores: Sequence[Scores]) -> list[Floats]:
        """For each of `scores` the mean over the drawn images, [draws, seeds]."""
        values = np.concatenate([each.values for each in scores]).astype(np.float32)
        # Counts of verdicts stay below 2^24, up to which float32 is exact.
        sums = np.concatenate([counts @ values.T for counts in self._counts()]).astype(np.float64)
        ends = np.cumsum([len(each.seeds) for each in scores])[:-1]
        return list(np.split(sums / self._images, ends, axis=1))

    def medians(self, scores: Scores) -> Floats:
        """The median over the drawn images, [draws, seeds]."""
        order = scores.values.argsort(axis=1)
        ordered = np.take_along_axis(scores.values, order, axis=1).astype(np.float64)
        middle = (self._images - 1) // 2, self._images // 2
        found = []
        for counts in self._counts():
            of_seeds = []
            for line, values in zip(order, ordered, strict=True):
                reached = counts[:, line].cumsum(axis=1)
                low, high = (values[(reached <= place).sum(axis=1)] for place in middle)
                of_seeds.append((low + high) / 2)
            found.append(np.stack(of_seeds, axis=1))
        return np.concatenate(found)

    def weights(self, seeds: Sequence[int]) -> Floats:
        """The weights of a row's seeds, [draws, seeds]; each line has the sum 1.

        The share of a flat Dirichlet distribution that falls on some seeds is flat again, so these are the weights
        of a Bayesian bootstrap of the row alone. Stretched, the mean varies as the mean of so many seeds does.
        """
        rng = np.random.default_rng([self.bootstrap.seed, 1])
        drawn = rng.standard_exponential((self.bootstrap.draws, len(self._all)))
        own = drawn[:, [self._all.index(seed) for seed in seeds]]
        own /= own.sum(axis=1, keepdims=True)
        count = len(seeds)
        stretch = math.sqrt((count + 1) / (count - 1)) if count > 1 else 1.0
        weights: Floats = 1 / count + stretch * (own - 1 / count)
        return weights
