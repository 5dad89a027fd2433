"""Intervals for accuracies, for their differences and for differences at matched clean accuracy.

A study trains each row with several seeds and judges all models on the same images. Both vary: another seed gives
another model, and another test set gives other images. A bootstrap gives the error of each, and the two errors are
added in squares.

**Images** are drawn with replacement, the same for all rows and seeds. Models agree on which images are hard. If
each seed drew images for itself, five seeds of 10,000 images would count as 50,000 independent images, and the
interval would be too short.

**Seeds** get random weights: seed k has one weight, whatever the row (Rubin 1981, the Bayesian bootstrap). No weight
is zero, so a row with three of five seeds has a mean in every draw. Weights of n seeds vary too little, by
(n - 1) / (n + 1) of the variance. They are stretched to make up for it.

**The interval** is the estimate plus and minus `sqrt((z s_images)^2 + (t s_seeds)^2)` (Howe 1974, JASA 69). Here z
and t are the quantiles of the normal distribution and of Student's with n - 1 degrees of freedom. A standard error of
few seeds is itself uncertain. Percentiles of the draws do not allow for that: where the seeds decide, a 95 % interval
by percentiles holds the truth in about 71 of 100 studies with two seeds, and in 81 with three.

What one seed gets right on one image by chance is in both errors. So the interval is a little too long where the
images decide.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtri, stdtrit

from sam_bench.analysis.draws import Bootstrap, Draws, Floats, Scores
from sam_bench.errors import InputError

MOST_OUTSIDE = 0.05
"""If more of the draws than this leave the curve, nothing is compared at matched clean accuracy."""

_POINTS = 100.0  # accuracies are fractions, intervals are in points


@dataclass(frozen=True, eq=False)
class Verdicts:
    """What one row got right under one evaluation. Rows that are compared were judged on the same images.

    Args:
        seeds: The seed of each line of the arrays, each once.
        clean: bool [seeds, images]; True: right on the clean image.
        robust: For each radius bool [seeds, images]; True: still right under the attack.
    """

    seeds: tuple[int, ...]
    clean: NDArray[np.bool_]
    robust: Mapping[float, NDArray[np.bool_]] = field(default_factory=dict)

    def at(self, eps: float | None) -> Scores:
        """The verdicts at a radius; the clean ones at None."""
        return Scores(self.seeds, self.clean if eps is None else self.robust[eps])


@dataclass(frozen=True)
class Interval:
    """An estimate and the interval around it: in points for accuracies, in their own unit for distances."""

    estimate: float
    low: float
    high: float


@dataclass(frozen=True)
class NotComparable:
    """Why there is no interval."""

    reason: str


def accuracy(a: Scores, bootstrap: Bootstrap) -> Interval:
    """The mean of a row over seeds and images, in points."""
    draws = Draws([a], bootstrap)
    (drawn,) = draws.rates([a])
    return _over_seeds(_POINTS * a.values.mean(axis=1, dtype=np.float64), _POINTS * drawn, a, draws)


def paired_difference(a: Scores, b: Scores, bootstrap: Bootstrap) -> Interval:
    """The accuracy of `a` less that of `b`, in points.

    Seed k of one side goes with seed k of the other, and both are judged on the same images. Seeds that one side
    lacks are left out.

    Raises:
        InputError: They have no seed in common, or differ in the number of images.
    """
    a, b = _common(a, b)
    return accuracy(Scores(a.seeds, a.values.astype(np.float32) - b.values.astype(np.float32)), bootstrap)


def matched_difference(
    a: Verdicts, curve: Sequence[Verdicts], eps: float, bootstrap: Bootstrap
) -> Interval | NotComparable:
    """The robust accuracy of `a` less that of a family of rows at the same clean accuracy, in points.

    The family is a curve of clean against robust accuracy; see `along_curve`. It is drawn anew in every draw. Rows
    may have different seeds: in a draw a seed has the same weight in every row that has it.

    Args:
        a: One row.
        curve: The rows of the family in order of strength, from strength 0 up; at least two.
        eps: The radius.
        bootstrap: How the interval is made.

    Returns:
        The interval; or why there is none: the clean accuracy of `a` lies outside the curve, or it does in more than
        `MOST_OUTSIDE` of the draws.

    Raises:
        InputError: The curve has fewer than two rows, or rows differ in the number of images.
    """
    if len(curve) < 2:
        raise InputError(f"a curve needs at least two rows, not {len(curve)}")
    rows = (a, *curve)
    scores = [row.at(None) for row in rows] + [row.at(eps) for row in rows]

    def difference(means: Floats) -> Floats:
        clean, robust = means[: len(rows)], means[len(rows) :]
        points: Floats = _POINTS * (robust[0] - along_curve(clean[0], clean[1:], robust[1:]))
        return points

    means = np.array([each.values.mean() for each in scores])[:, None]
    if math.isnan(difference(means)[0]):
        at, *clean = _POINTS * means[: len(rows), 0]
        return NotComparable(
            f"the clean accuracy {at:.2f} lies outside the curve, {min(clean):.2f} to {max(clean):.2f}"
        )
    # The estimate depends on the two rows that it lies between. The curve's other rows have a say in few draws.
    left = int(_segment(means[0], means[1 : len(rows)])[0])
    fewest = min(len(row.seeds) for row in (a, *curve[left : left + 2]))
    missing = "the clean accuracy lies outside the curve"
    return interval_of(difference, scores, bootstrap, missing=missing, fewest=fewest)


def interval_of(
    statistic: Callable[[Floats], Floats],
    scores: Sequence[Scores],
    bootstrap: Bootstrap,
    *,
    missing: str,
    fewest: int | None = None,
) -> Interval | NotComparable:
    """The interval of a number that is made of the accuracies of several rows.

    Args:
        statistic: From accuracies as fractions, [scores, draws], to the number, [draws]; NaN where there is none.
        scores: What the accuracies are of, on the same images.
        bootstrap: How the interval is made.
        missing: Why there may be no number, as a clause.
        fewest: Seeds of the row that has the fewest among those that decide the estimate; None: of all rows.

    Returns:
        The interval in the unit of the statistic. Or why there is none: there is no number, or none in more than
        `MOST_OUTSIDE` of the draws.
    """
    observed = [each.values.mean(axis=1, dtype=np.float64)[None] for each in scores]
    estimate = float(statistic(np.stack([each.mean(axis=1) for each in observed]))[0])
    if math.isnan(estimate):
        return NotComparable(missing)
    draws = Draws(scores, bootstrap)
    drawn, weights = draws.rates(scores), [draws.weights(each.seeds) for each in scores]
    outside = float(np.isnan(statistic(_weighted(drawn, weights))).mean())
    if outside > MOST_OUTSIDE:
        return NotComparable(f"{missing} in {_POINTS * outside:.1f} % of the draws")
    from_images = statistic(np.stack([each.mean(axis=1) for each in drawn]))
    from_seeds = statistic(_weighted(observed, weights))
    if fewest is None:
        fewest = min(len(each.seeds) for each in scores)
    return _interval(estimate, from_images, from_seeds, fewest, bootstrap.level)


def along_curve(at: Floats, clean: Floats, robust: Floats) -> Floats:
    """Robust accuracy on a curve where its clean accuracy is `at`, linear between the rows.

    The curve is walked from its first row. The first segment counts whose ends have `at` between them, so a curve
    that goes back on itself has one value too: that of the smallest strength.

    Args:
        at: Clean accuracies, [draws].
        clean: Of the curve's rows in order, [rows, draws].
        robust: As `clean`.

    Returns:
        float [draws]; NaN where no segment has `at` between its ends.
    """
    left, columns = _segment(at, clean), np.arange(len(at))
    start, end = clean[left, columns], clean[left + 1, columns]
    length = end - start
    share = np.divide(at - start, length, out=np.zeros_like(length), where=length != 0)
    value = robust[left, columns] + share * (robust[left + 1, columns] - robust[left, columns])
    inside = (np.minimum(start, end) <= at) & (at <= np.maximum(start, end))
    return np.where(inside, value, np.nan)


def _segment(at: Floats, clean: Floats) -> NDArray[np.intp]:
    """Number of the first segment that has `at` between its ends, [draws]; 0 where none has."""
    low, high = np.minimum(clean[:-1], clean[1:]), np.maximum(clean[:-1], clean[1:])
    first: NDArray[np.intp] = ((low <= at) & (at <= high)).argmax(axis=0)
    return first


def median(a: Scores, bootstrap: Bootstrap) -> Interval | NotComparable:
    """The median over images, averaged over the seeds of a row, in the unit of `a`."""
    draws = Draws([a], bootstrap)
    return _over_seeds_if_finite(np.median(a.values, axis=1), draws.medians(a), a, draws)


def median_difference(a: Scores, b: Scores, bootstrap: Bootstrap) -> Interval | NotComparable:
    """The median over images of `a` less that of `b`, averaged over the seeds, in their unit.

    Seeds and images are paired as in `paired_difference`. Infinite distances are larger than all others.

    Returns:
        The interval; or why there is none: a median is infinite.

    Raises:
        InputError: They have no seed in common, or differ in the number of images.
    """
    a, b = _common(a, b)
    draws = Draws([a, b], bootstrap)
    with np.errstate(invalid="ignore"):  # infinity less infinity is NaN, which is looked at afterwards
        observed = np.median(a.values, axis=1) - np.median(b.values, axis=1)
        drawn = draws.medians(a) - draws.medians(b)
    return _over_seeds_if_finite(observed, drawn, a, draws)


def _over_seeds_if_finite(observed: Floats, drawn: Floats, a: Scores, draws: Draws) -> Interval | NotComparable:
    if not (np.isfinite(observed).all() and np.isfinite(drawn).all()):
        return NotComparable("a median is infinite: no adversarial example was found for about half of the images")
    return _over_seeds(observed, drawn, a, draws)


def _over_seeds(observed: Floats, drawn: Floats, a: Scores, draws: Draws) -> Interval:
    """The interval of a mean over seeds.

    Args:
        observed: What is averaged, [seeds].
        drawn: The same with images drawn, [draws, seeds].
        a: Whose seeds they are.
        draws: What they were drawn with.
    """
    from_seeds = (draws.weights(a.seeds) * observed).sum(axis=1)
    return _interval(float(observed.mean()), drawn.mean(axis=1), from_seeds, len(a.seeds), draws.bootstrap.level)


def _weighted(per_seed: Sequence[Floats], weights: Sequence[Floats]) -> Floats:
    """Means over seeds, [scores, draws]; both arguments hold for each of the scores [draws, seeds]."""
    return np.stack([(each * weight).sum(axis=1) for each, weight in zip(per_seed, weights, strict=True)])


def _interval(estimate: float, from_images: Floats, from_seeds: Floats, seeds: int, level: float) -> Interval:
    """The interval of two independent errors (Howe 1974).

    Args:
        estimate: Its middle.
        from_images: The estimate in each draw of images; NaN where there is none.
        from_seeds: The estimate in each draw of seeds, likewise.
        seeds: How many the row with the fewest has; one alone shows no error.
        level: The interval's.
    """
    tail = (1 + level) / 2
    half = ndtri(tail) * np.nanstd(from_images, ddof=1)
    if seeds > 1:
        half = math.hypot(half, stdtrit(seeds - 1, tail) * np.nanstd(from_seeds, ddof=1))
    return Interval(estimate, estimate - float(half), estimate + float(half))


def _common(a: Scores, b: Scores) -> tuple[Scores, Scores]:
    seeds = sorted(set(a.seeds) & set(b.seeds))
    if not seeds:
        raise InputError(f"there is no seed in common: {list(a.seeds)} and {list(b.seeds)}")
    if a.images != b.images:
        raise InputError(f"both sides need the same images, not {a.images} and {b.images} of them")
    return a.of(seeds), b.of(seeds)
