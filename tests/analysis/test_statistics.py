"""Intervals of studies: coverage on data with known truth, closed forms, and properties."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import norm
from scipy.stats import t as student

from sam_bench.analysis.statistics import (
    Bootstrap,
    Interval,
    NotComparable,
    Scores,
    Verdicts,
    accuracy,
    along_curve,
    matched_difference,
    median,
    median_difference,
    paired_difference,
)
from sam_bench.errors import InputError
from sam_bench.records import ROBUST, EvaluationRecord, read_record

FEW = Bootstrap(draws=200)
RECORDS = Path(__file__).parents[2] / "leaderboards/cifar10-jpeg/Linf/records"


def study(rng: np.random.Generator, ease: float, of_seeds: float, seeds: int, hard: np.ndarray) -> np.ndarray:
    """Verdicts [seeds, images] of a row: an image is right if ease, the image, the seed and chance add up above 0."""
    mean = ease + of_seeds * rng.normal(size=(seeds, 1))
    return (hard + mean + 0.5 * rng.normal(size=(seeds, len(hard)))) > 0


def points(ease: float, of_seeds: float) -> float:
    """The accuracy of `study` over all seeds and images, in points."""
    return 100 * float(norm.cdf(ease / math.sqrt(1.25 + of_seeds**2)))


def scores(values: np.ndarray) -> Scores:
    return Scores(tuple(range(len(values))), values)


def width(interval: Interval) -> float:
    return interval.high - interval.low


@pytest.mark.parametrize("seeds", [3, 5])
@pytest.mark.parametrize("of_seeds", [0.0, 0.05, 0.3])
def test_a_95_percent_interval_holds_the_truth_in_at_least_95_of_100_studies(seeds: int, of_seeds: float) -> None:
    rng, studies, held = np.random.default_rng(0), 300, 0
    truth = points(1.1, of_seeds) - points(0.8, of_seeds)
    for number in range(studies):
        hard = rng.normal(size=200)
        a, b = (scores(study(rng, ease, of_seeds, seeds, hard)) for ease in (1.1, 0.8))
        interval = paired_difference(a, b, Bootstrap(draws=60, seed=number))
        held += interval.low <= truth <= interval.high
    assert held >= 0.95 * studies - 3 * math.sqrt(0.95 * 0.05 * studies)


def test_an_interval_at_matched_accuracy_holds_the_truth_too() -> None:
    # A curve whose robust accuracy is 90 less the clean one, and a row 3 points above it.
    rng, studies, held = np.random.default_rng(1), 200, 0
    for number in range(studies):
        rows = []
        for clean, robust, seeds in ((0.75, 0.18, 4), (0.85, 0.05, 5), (0.7, 0.2, 3), (0.6, 0.3, 3)):
            of_seeds = 0.01 * rng.normal(size=(seeds, 2))
            rates = np.array([clean, robust]) + of_seeds
            drawn = rng.random((seeds, 400)) < rates[:, :1], rng.random((seeds, 400)) < rates[:, 1:]
            rows.append(Verdicts(tuple(range(seeds)), drawn[0], {1.0: drawn[1]}))
        interval = matched_difference(rows[0], rows[1:], 1.0, Bootstrap(draws=60, seed=number))
        assert isinstance(interval, Interval)
        held += interval.low <= 3 <= interval.high
    assert held >= 0.95 * studies - 3 * math.sqrt(0.95 * 0.05 * studies)


def test_one_seed_has_mcnemars_standard_error_on_the_committed_records() -> None:
    rights = []
    for name in ("sam-rho02-prn18-w16", "standard-prn18-w16"):
        record = read_record(RECORDS / f"{name}-pgd-10-Linf-1over255.json", EvaluationRecord)
        rights.append(np.array([[verdict == ROBUST for verdict in record.verdicts]]))
    gained, lost = int((rights[0] & ~rights[1]).sum()), int((rights[1] & ~rights[0]).sum())
    images = rights[0].size
    error = 100 * math.sqrt(gained + lost - (gained - lost) ** 2 / images) / images
    interval = paired_difference(scores(rights[0]), scores(rights[1]), Bootstrap())
    assert interval.estimate == pytest.approx(100 * (gained - lost) / images)
    assert width(interval) == pytest.approx(2 * 1.96 * error, rel=0.05)


def test_seeds_alone_have_students_interval() -> None:
    # Every image of a seed has the same verdict, so images bring no error.
    rights = np.array([1, 0, 1, 1, 0], bool)
    interval = accuracy(scores(np.repeat(rights[:, None], 50, 1)), Bootstrap(draws=20_000))
    half = student.ppf(0.975, 4) * 100 * rights.std(ddof=1) / math.sqrt(5)
    assert interval.estimate == pytest.approx(60) and width(interval) == pytest.approx(2 * half, rel=0.03)


def test_identical_rows_differ_by_nothing_at_all() -> None:
    a = scores(np.random.default_rng(0).random((3, 100)) < 0.5)
    assert paired_difference(a, a, FEW) == Interval(0, 0, 0)
    assert median_difference(a, a, FEW) == Interval(0, 0, 0)


def test_seeds_are_paired_by_name_and_those_of_one_side_left_out() -> None:
    values = np.random.default_rng(0).random((3, 100)) < 0.5
    a, b = Scores((0, 1, 2), values), Scores((2, 7, 0), values[[2, 1, 0]])
    assert paired_difference(a, b, FEW) == Interval(0, 0, 0)
    with pytest.raises(InputError, match="no seed in common"):
        paired_difference(a, Scores((8,), values[:1]), FEW)
    with pytest.raises(InputError, match="the same images"):
        paired_difference(a, Scores((0,), values[:1, :50]), FEW)


@given(seed=st.integers(0, 1000), seeds=st.integers(1, 4), images=st.integers(2, 40))
@settings(max_examples=30, deadline=None)
def test_swapping_the_sides_swaps_the_sign(seed: int, seeds: int, images: int) -> None:
    rng = np.random.default_rng(seed)
    a, b = scores(rng.random((seeds, images)) < 0.7), scores(rng.random((seeds, images)) < 0.5)
    forth, back = paired_difference(a, b, FEW), paired_difference(b, a, FEW)
    assert (forth.estimate, forth.low, forth.high) == pytest.approx((-back.estimate, -back.high, -back.low), abs=1e-9)


@given(seed=st.integers(0, 1000))
@settings(max_examples=10, deadline=None)
def test_the_order_of_images_and_seeds_changes_noise_alone(seed: int) -> None:
    rng = np.random.default_rng(seed)
    a, b = rng.random((3, 300)) < 0.7, rng.random((3, 300)) < 0.5
    order = rng.permutation(300)
    as_given = paired_difference(scores(a), scores(b), Bootstrap())
    mixed = paired_difference(
        Scores((2, 0, 1), a[[2, 0, 1]][:, order]), Scores((2, 0, 1), b[[2, 0, 1]][:, order]), Bootstrap()
    )
    assert mixed.estimate == pytest.approx(as_given.estimate)
    assert width(mixed) == pytest.approx(width(as_given), rel=0.15)


def test_a_seed_decides_and_a_level_widens() -> None:
    a = scores(np.random.default_rng(0).random((3, 200)) < 0.5)
    assert accuracy(a, Bootstrap(seed=1)) == accuracy(a, Bootstrap(seed=1)) != accuracy(a, Bootstrap(seed=2))
    assert width(accuracy(a, FEW.shared_over(5))) > width(accuracy(a, FEW))
    assert FEW.shared_over(5).level == pytest.approx(0.99) and FEW.shared_over(1).level == pytest.approx(0.95)


@given(
    seed=st.integers(0, 10_000),
    rows=st.integers(2, 6),
    rises=st.booleans(),
    at=st.floats(0, 1),
    draws=st.integers(1, 4),
)
@settings(max_examples=100, deadline=None)
def test_a_monotone_curve_is_interpolated_as_numpy_does(
    seed: int, rows: int, rises: bool, at: float, draws: int
) -> None:
    rng = np.random.default_rng(seed)
    clean = np.sort(rng.random((rows, draws)), axis=0)
    robust = rng.random((rows, draws))
    found = along_curve(np.full(draws, at), clean if rises else clean[::-1], robust if rises else robust[::-1])
    expected = [np.interp(at, clean[:, draw], robust[:, draw], left=np.nan, right=np.nan) for draw in range(draws)]
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-12)


def test_a_curve_that_goes_back_counts_where_it_first_passes() -> None:
    clean = np.array([[0.8], [0.9], [0.9], [0.7]])
    robust = np.array([[0.1], [0.2], [0.4], [0.6]])
    for at, expected in ((0.85, 0.15), (0.9, 0.2), (0.8, 0.1), (0.75, 0.55), (0.7, 0.6)):
        assert along_curve(np.array([at]), clean, robust) == pytest.approx([expected])
    flat = np.array([[0.8], [0.8], [0.7]])
    assert along_curve(np.array([0.8]), flat, robust[:3]) == pytest.approx([0.1])


def row(clean: float, robust: float, seeds: int = 3, images: int = 1000, seed: int = 0) -> Verdicts:
    rng = np.random.default_rng([seed, round(1000 * clean)])
    shares = rng.random((seeds, images))
    return Verdicts(tuple(range(seeds)), shares < clean, {1.0: shares < robust})


def test_outside_the_curve_nothing_is_compared() -> None:
    curve = [row(0.85, 0.05), row(0.75, 0.2)]
    found = matched_difference(row(0.95, 0.1), curve, 1.0, FEW)
    assert isinstance(found, NotComparable) and "outside the curve, 7" in found.reason
    with pytest.raises(InputError, match="at least two rows"):
        matched_difference(row(0.8, 0.1), curve[:1], 1.0, FEW)
    # At the end of the curve about half of the draws leave it.
    edge = matched_difference(row(0.7499, 0.1, seed=1), curve, 1.0, FEW)
    assert isinstance(edge, NotComparable)


def first(clean: float) -> Verdicts:
    """The first images are right, and stay so."""
    right = np.arange(1000)[None] < 1000 * clean
    return Verdicts((0,), right, {1.0: right})


def test_draws_that_leave_the_curve_are_left_out_up_to_5_percent() -> None:
    # One seed: an accuracy of 80 % differs from the end by 2 points, with a standard error of 1.7.
    curve, lone = [first(0.9), first(0.7)], np.random.default_rng(0).permutation(1000)[None] < 800
    shares = {}
    for end in (0.82, 0.84, 0.86, 0.9):
        curve[0] = first(end)
        found = matched_difference(Verdicts((0,), lone, {1.0: lone}), curve, 1.0, Bootstrap())
        # Clean and robust verdicts agree on the curve and in the row, so they do in every draw that counts.
        shares[end] = found if isinstance(found, NotComparable) else round(width(found), 9)
    assert [isinstance(share, NotComparable) for share in shares.values()] == [True, False, False, False]
    assert "% of the draws" in str(shares[0.82]) and shares[0.84] == shares[0.9] == 0


def test_the_matched_difference_of_two_rows_of_a_curve_is_the_paired_one() -> None:
    # The row has the clean verdicts of the curve's second row, so it is compared with that row alone.
    curve, a = [row(0.85, 0.05), row(0.75, 0.2), row(0.6, 0.3)], row(0.75, 0.5, seed=0)
    matched = matched_difference(Verdicts(a.seeds, curve[1].clean, a.robust), curve, 1.0, Bootstrap())
    paired = paired_difference(a.at(1.0), curve[1].at(1.0), Bootstrap())
    assert isinstance(matched, Interval) and matched.estimate == pytest.approx(paired.estimate)
    assert width(matched) == pytest.approx(width(paired), rel=1e-6)


def test_medians_are_numpys_and_their_error_is_that_of_normal_data() -> None:
    normal = norm.ppf((np.arange(2000) + 0.5) / 2000)[None]
    a, b = scores(normal + 1), scores(np.random.default_rng(0).permuted(normal, axis=1))
    found = median_difference(a, b, Bootstrap(draws=1000))
    assert isinstance(found, Interval)
    assert found.estimate == pytest.approx(float(np.median(a.values) - np.median(b.values)))
    # Of independent normal data the median has the variance pi / 2n.
    assert width(found) == pytest.approx(2 * 1.96 * math.sqrt(2 * math.pi / 2 / 2000), rel=0.15)
    alone = median(a, FEW)
    assert isinstance(alone, Interval) and alone.estimate == pytest.approx(float(np.median(a.values)))


def test_infinite_distances_count_as_large_until_the_median_is_one() -> None:
    values = np.arange(200.0)[None].repeat(2, 0)
    some = values.copy()
    some[:, 140:] = np.inf
    assert median(scores(some), FEW) == median(scores(values), FEW)
    some[:, 50:] = np.inf
    assert isinstance(median(scores(some), FEW), NotComparable)
    assert isinstance(median_difference(scores(some), scores(some), FEW), NotComparable)


def test_draws_in_parts_are_those_in_one(monkeypatch: pytest.MonkeyPatch) -> None:
    a = scores(np.random.default_rng(0).random((2, 50)))
    right = scores(a.values < 0.5)
    whole = median(a, FEW), accuracy(right, FEW)
    monkeypatch.setattr("sam_bench.analysis.draws._CELLS", 70)
    assert (median(a, FEW), accuracy(right, FEW)) == whole


@pytest.mark.parametrize(
    "wrong",
    [
        lambda: Bootstrap(draws=1),
        lambda: Bootstrap(level=1.0),
        lambda: Scores((0, 1), np.zeros((1, 4))),
        lambda: Scores((0, 0), np.zeros((2, 4))),
        lambda: Scores((0,), np.zeros((1, 0))),
    ],
)
def test_what_cannot_be_is_refused(wrong: object) -> None:
    with pytest.raises(InputError):
        wrong()  # type: ignore[operator]
