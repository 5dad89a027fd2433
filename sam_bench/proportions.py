"""Intervals and tests for shares of images: Wilson's interval and McNemar's paired test."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


def wilson_interval(share: float, count: int, z: float = 1.959964) -> tuple[float, float]:
    """Wilson's score interval (1927) of a share in [0, 1] seen in `count` draws."""
    centre = share + z * z / (2 * count)
    spread = z * math.sqrt(share * (1 - share) / count + z * z / (4 * count * count))
    scale = 1 + z * z / count
    return max(0.0, (centre - spread) / scale), min(1.0, (centre + spread) / scale)


@dataclass(frozen=True)
class PairedShares:
    """Two models judged on the same images, compared on the images where they differ (McNemar 1947).

    Images that both get right, or both get wrong, say nothing about the difference. So it has a smaller standard
    error than the difference of two accuracies on different images.

    Args:
        only_a: Images that the first gets right and the second does not.
        only_b: The other way round.
        count: All images.
    """

    only_a: int
    only_b: int
    count: int

    @classmethod
    def of(cls, a: NDArray[np.bool_], b: NDArray[np.bool_]) -> PairedShares:
        """The comparison of two models; `a` and `b`: bool [images], what each gets right."""
        return cls(int((a & ~b).sum()), int((b & ~a).sum()), len(a))

    @property
    def difference(self) -> float:
        """The first share less the second, in [-1, 1]."""
        return (self.only_a - self.only_b) / self.count

    @property
    def standard_error(self) -> float:
        """Standard error of the difference over draws of images."""
        more, fewer = self.only_a, self.only_b
        return math.sqrt(more + fewer - (more - fewer) ** 2 / self.count) / self.count

    @property
    def p_value(self) -> float:
        """McNemar's exact two-sided test: a fair coin decides each image on which they differ."""
        from scipy.special import bdtr  # takes half a second to load, and few commands need it

        tail = bdtr(min(self.only_a, self.only_b), self.only_a + self.only_b, 0.5)
        return min(1.0, 2 * float(tail))
