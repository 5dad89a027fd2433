"""The bound that a random sample gives: exact, and right as often as it says."""

from __future__ import annotations

from math import comb

import numpy as np
import pytest

from sam_bench.records.sampling import most_outside, sampling_of


def probability_of_at_most(broken: int, of: int, breakable: int, sample: int) -> float:
    """By counting: a sample of so many has at most so many breakable ones."""
    ways = sum(comb(breakable, k) * comb(of - breakable, sample - k) for k in range(broken + 1))
    return ways / comb(of, sample)


@pytest.mark.parametrize(("of", "sample"), [(1, 1), (7, 3), (20, 5), (20, 20), (30, 0), (40, 11)])
def test_the_bound_is_the_largest_number_that_is_not_too_unlikely(of: int, sample: int) -> None:
    for broken in range(sample + 1):
        likely = [
            breakable
            for breakable in range(broken, of - sample + broken + 1)
            if probability_of_at_most(broken, of, breakable, sample) > 0.05
        ]
        assert most_outside(of, sample, broken) == max(likely) - broken


def test_the_bound_holds_as_often_as_it_says() -> None:
    rng = np.random.default_rng(0)
    of, sample, draws = 400, 60, 10_000
    for breakable in (0, 3, 20, 200):
        inside = rng.hypergeometric(breakable, of - breakable, sample, size=draws)
        bounds = {k: most_outside(of, sample, int(k)) for k in np.unique(inside)}
        holds = np.mean([breakable - k <= bounds[k] for k in inside])
        assert holds >= 0.95 - 3 * np.sqrt(0.05 * 0.95 / draws)


def test_no_flip_among_a_thousand_of_many_bounds_the_share_by_three_in_a_thousand() -> None:
    assert most_outside(100_000, 1000, 0) / 99_000 == pytest.approx(0.003, abs=1e-4)


def test_the_block_counts_what_apgd_left() -> None:
    verdicts = ["robust", "apgd-ce", "square", "misclassified", "robust", "robust"]
    found = sampling_of(verdicts, ("fab-t", "square"), [True, True, True, True, False, False])
    assert (found.examples, found.of, found.broken) == ([0, 2], 4, 1)
    assert found.may_break == 2
    assert found.estimate == pytest.approx((3 - 2 * 0.5) / 6)
    assert found.at_least == pytest.approx(1 / 6)
