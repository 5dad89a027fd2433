"""APGD in L1: its stages, and the steps it makes."""

from __future__ import annotations

import pytest
import torch
from autoattack_samples import Conv, examples, make_search
from hypothesis import given
from hypothesis import strategies as st

from sam_bench.attacks.autoattack.apgd_l1 import stages
from sam_bench.attacks.rng import CounterRNG
from sam_bench.perturb.ball import Ball


@given(iterations=st.integers(4, 300), eps=st.floats(0, 20))
def test_stages_share_the_iterations_and_end_at_the_radius(iterations: int, eps: float) -> None:
    assert stages(eps, iterations, widened=False) == [(eps, iterations)]
    radii, steps = zip(*stages(eps, iterations, widened=True), strict=True)
    assert radii == (3 * eps, 2 * eps, eps)
    assert sum(steps) == iterations and min(steps) >= 0


def test_a_widened_trial_finds_witnesses_in_the_last_and_smallest_of_three_balls() -> None:
    model = Conv(dtype=torch.float32)
    x, y = examples(model, 6)
    ball, rng = Ball(norm="L1", eps=0.8), CounterRNG(0, "apgd-ce", torch.arange(6))
    search = make_search("apgd-ce", model, x, y, ball=ball, rng=rng, steps=16, widened=True)
    rows, largest, wrong = search.init(torch.arange(6), torch.zeros(6, dtype=torch.int64)), [], []
    for _ in range(search.steps):
        largest.append(float((rows.point - x).abs().flatten(1).sum(1).max()))
        wrong.append(bool((model(rows.point).argmax(1) != y).any()))
        search.step(rows)
        assert len(largest) > 12 or not rows.found.any()
    for first, last, radius in ((0, 6, 2.4), (6, 12, 1.6), (12, 19, 0.8)):
        assert max(largest[first:last]) == pytest.approx(radius, rel=1e-5)
    assert search.steps == 19 and any(wrong[:12]) and rows.found.any()


@pytest.mark.parametrize(("left", "sparser"), [(18, True), (19, False)])
def test_with_95_percent_of_its_coordinates_a_perturbation_is_as_upstream_has_it_not_sparser(
    left: int, sparser: bool
) -> None:
    model = Conv(dtype=torch.float32)
    x, y = examples(model, 1)
    rng = CounterRNG(0, "apgd-ce", torch.arange(1))
    search = make_search("apgd-ce", model, x, y, ball=Ball(norm="L1", eps=0.8), rng=rng, steps=50)
    rows = search.init(torch.arange(1), torch.arange(1))
    rows.best = x.clone()
    rows.best.view(-1)[:left] += 0.01
    rows.changed[:], rows.iteration[:] = 20, 2  # every second step is looked at
    assert search._check(rows).tolist() == [sparser]
    assert rows.changed.tolist() == [left]
