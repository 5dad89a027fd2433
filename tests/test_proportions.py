"""Intervals and tests of shares, against SciPy's and against published tables."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binomtest

from sam_bench.proportions import PairedShares, wilson_interval


def test_wilsons_interval_is_the_published_one() -> None:
    # Newcombe (1998), table I: 81/263, 15/148, 0/20, 1/29.
    for hits, count, low, high in (
        (81, 263, 0.2553, 0.3662),
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0, 0.1611),
        (1, 29, 0.0061, 0.1718),
    ):
        assert wilson_interval(hits / count, count) == pytest.approx((low, high), abs=5e-5)


@settings(deadline=None)
@given(st.integers(0, 3000), st.integers(0, 3000))
def test_mcnemars_test_is_the_binomial_test_of_the_images_where_two_models_differ(more: int, fewer: int) -> None:
    found = PairedShares(more, fewer, 10_000).p_value
    expected = binomtest(more, more + fewer).pvalue if more + fewer else 1.0
    assert found == pytest.approx(expected, rel=1e-9, abs=1e-300)


def test_difference_and_standard_error_are_those_of_the_differences_image_by_image() -> None:
    rng = np.random.default_rng(0)
    a, b = rng.random(300) < 0.7, rng.random(300) < 0.5
    each = a.astype(float) - b.astype(float)
    paired = PairedShares.of(a, b)
    assert paired.difference == pytest.approx(each.mean())
    assert paired.standard_error == pytest.approx(each.std() / np.sqrt(len(each)))
