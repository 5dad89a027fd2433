"""Properties of the threat model, and PGD's optimum where it is known in closed form."""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sam_bench.errors import InputError
from sam_bench.perturb import Ball
from sam_bench.perturb.ball import check_eps
from sam_bench.perturb.l1 import l1_correction
from sam_bench.records import Radius
from sam_bench.seeds import generator

balls = st.builds(Ball, norm=st.sampled_from(["Linf", "L2"]), eps=st.floats(0, 2))
balls_of_any_norm = st.one_of(balls, st.builds(Ball, norm=st.just("L1"), eps=st.floats(0, 20)))
seeds = st.integers(0, 10_000)


def distance(ball: Ball, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    return (a - b).flatten(1).norm(p={"Linf": float("inf"), "L2": 2, "L1": 1}[ball.norm], dim=1)


@given(ball=balls_of_any_norm, seed=seeds)
@settings(max_examples=60, deadline=None)
def test_a_projected_point_is_in_ball_and_box(ball: Ball, seed: int) -> None:
    draws = generator(seed)
    x = torch.rand(4, 2, 3, 3, generator=draws, dtype=torch.float64)
    far = x + 3 * torch.randn(x.shape, generator=draws, dtype=torch.float64)
    projected = ball.project(far, x)
    assert (distance(ball, projected, x) <= ball.eps + 1e-12).all()
    assert projected.min() >= 0 and projected.max() <= 1


@given(ball=balls_of_any_norm, seed=seeds)
@settings(max_examples=60, deadline=None)
def test_projection_leaves_an_allowed_point_where_it_is(ball: Ball, seed: int) -> None:
    draws = generator(seed)
    x = torch.rand(4, 2, 3, 3, generator=draws, dtype=torch.float64)
    allowed = ball.project(x + torch.randn(x.shape, generator=draws, dtype=torch.float64), x)
    torch.testing.assert_close(ball.project(allowed, x), allowed, rtol=0, atol=1e-12)


def images_in_and_on_the_box(data: st.DataObject, rows: int, size: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Clean inputs, some on the box's faces, and perturbations, some zero, some far out; float64 [rows, size]."""
    draws = generator(data.draw(seeds))
    x = torch.rand(rows, size, generator=draws, dtype=torch.float64)
    x = torch.where(torch.rand(x.shape, generator=draws) < 0.2, x.round(), x)
    delta = torch.randn(rows, size, generator=draws, dtype=torch.float64) * data.draw(st.sampled_from([0.01, 0.3, 5]))
    return x, torch.where(torch.rand(x.shape, generator=draws) < 0.2, torch.zeros_like(x), delta)


def bisected(delta: torch.Tensor, x: torch.Tensor, eps: torch.Tensor) -> torch.Tensor:
    """The projection in L1, by bisecting the multiplier of the ball's constraint: given it, coordinates are alone."""

    def at(multiplier: torch.Tensor) -> torch.Tensor:
        shrunk = delta.sign() * (delta.abs() - multiplier).clamp_min(0)
        return (x + shrunk).clamp(0, 1) - x

    low, high = torch.zeros(len(x), 1, dtype=x.dtype), delta.abs().amax(1, keepdim=True)
    inside = at(low).abs().sum(1, keepdim=True) <= eps[:, None]
    for _ in range(60):
        middle = (low + high) / 2
        outside = at(middle).abs().sum(1, keepdim=True) > eps[:, None]
        low, high = torch.where(outside, middle, low), torch.where(outside, high, middle)
    return at(torch.where(inside, 0.0, high))


@given(
    data=st.data(), eps=st.sampled_from([0.0, 0.003, 0.4, 3.0, 30.0]), size=st.integers(1, 60), sorting=st.booleans()
)
@settings(max_examples=80, deadline=None)
def test_projection_in_l1_is_the_one_that_bisection_finds(
    data: st.DataObject, eps: float, size: int, sorting: bool
) -> None:
    x, delta = images_in_and_on_the_box(data, 5, size)
    each = torch.tensor([eps, 0.1, eps, 1.0, eps], dtype=x.dtype)
    expected = bisected(delta, x, each)
    found = delta + l1_correction(delta, x, each, as_upstream=sorting)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-10)
    projected = Ball(norm="L1", eps=eps).project(x + delta, x)
    torch.testing.assert_close(projected[::2], (x + expected)[::2], rtol=0, atol=1e-10)


@given(data=st.data(), eps=st.sampled_from([0.0, 0.003, 3.0, 30.0]), far=st.sampled_from([0.1, 1.0, 1e3, 1e7, 1e30]))
@settings(max_examples=50, deadline=None)
def test_in_float32_too_nothing_is_left_outside_the_l1_ball_however_far_it_came_from(
    data: st.DataObject, eps: float, far: float
) -> None:
    x, delta = (each.float() for each in images_in_and_on_the_box(data, 3, 200))
    projected = Ball(norm="L1", eps=eps).project(x + far * delta, x)
    assert float((projected - x).abs().sum(1).max()) <= eps * (1 + 1e-5) + 1e-6
    assert projected.min() >= 0 and projected.max() <= 1


def test_projection_in_l1_is_found_where_newtons_steps_would_go_to_and_fro() -> None:
    # One coordinate gives from the ends of its range only: each end's step leads to the other.
    room = torch.tensor([0.3686, 0.9866, 0.8369, 0.4316, 0.7822, 0.2005, 0.8108, 0.6578, 0.0567, 0.2082, 0.0431])
    size = torch.tensor([2.7142, 3.5804, 5.4588, 4.2637, 4.9013, 6.6646, 2.5429, 2.9609, 0.0567, 0.2082, 5.9245])
    x, delta = (1 - room).double()[None], size.double()[None]
    eps = torch.tensor([3.75], dtype=x.dtype)
    found = delta + l1_correction(delta, x, eps)
    torch.testing.assert_close(found, bisected(delta, x, eps), rtol=0, atol=1e-10)


@given(data=st.data(), eps=st.floats(0.01, 5))
@settings(max_examples=60, deadline=None)
def test_no_allowed_point_is_nearer_than_the_projection_in_l1(data: st.DataObject, eps: float) -> None:
    x, delta = images_in_and_on_the_box(data, 6, 12)
    ball = Ball(norm="L1", eps=eps)
    far = x + delta
    projected = ball.project(far, x)
    nearby = projected + 0.1 * torch.randn(200, *x.shape, generator=generator(3), dtype=x.dtype)
    others = ball.project(nearby.flatten(0, 1), x.repeat(200, 1)).view_as(nearby)
    # The projection on a convex set: from it, no point of the set lies in the direction of the one projected.
    assert (((others - projected) * (far - projected)).sum(-1) <= 1e-9).all()


@pytest.mark.parametrize("attempt", ["step", "sample"])
def test_steps_and_random_points_in_l1_are_refused_with_what_to_use(attempt: str) -> None:
    ball, x = Ball(norm="L1", eps=1.0), torch.rand(2, 1, 3, 3)
    with pytest.raises(InputError, match=r"norm L1 has no steps for PGD, FGSM .* attack with autoattack or"):
        ball.step(x, x, x, 0.1) if attempt == "step" else ball.sample(x, generator(0))


@given(ball=balls, seed=seeds)
@settings(max_examples=60, deadline=None)
def test_a_random_start_is_in_ball_and_box(ball: Ball, seed: int) -> None:
    x = torch.rand(8, 1, 4, 4, generator=generator(seed, "x"), dtype=torch.float64)
    start = ball.sample(x, generator(seed, "start"))
    assert (distance(ball, start, x) <= ball.eps + 1e-12).all()
    assert start.min() >= 0 and start.max() <= 1


@given(st.integers(0, 2**32 - 1))
def test_a_direction_in_l2_has_length_one_however_short_the_slope_is(seed: int) -> None:
    drawn = torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(seed))
    scales = torch.tensor([1e-6, 1e-13, 1e-22, 1e-35]).view(4, 1, 1, 1)
    ball = Ball("L2", 0.5)
    found, expected = ball.direction(drawn * scales), ball.direction(drawn.double())
    torch.testing.assert_close(found.double(), expected, atol=1e-5, rtol=1e-4)
    assert not ball.direction(0 * drawn).any(), "what has no slope stands still"


@pytest.mark.parametrize("norm", ["Linf", "L2"])
def test_a_direction_has_length_one_and_raises_a_linear_function_the_most(norm: str) -> None:
    ball = Ball(norm=norm, eps=1.0)  # type: ignore[arg-type]
    slope = torch.randn(1, 1, 5, 5, generator=generator(1), dtype=torch.float64)
    step = ball.direction(slope)
    assert distance(ball, step, torch.zeros_like(step)).item() == pytest.approx(1)
    others = torch.randn(500, 1, 5, 5, generator=generator(2), dtype=torch.float64)
    others = others / distance(ball, others, torch.zeros_like(others)).view(-1, 1, 1, 1)
    assert (others * slope).flatten(1).sum(1).max() < (step * slope).sum()


@pytest.mark.parametrize(
    ("norm", "eps", "meant"),
    [("Linf", "8", "8/255"), ("Linf", "1", "1/255"), ("L2", "128", "128/255"), ("L1", "3060", "3060/255")],
)
def test_a_radius_meant_in_255ths_is_refused_and_the_right_spelling_named(norm: str, eps: str, meant: str) -> None:
    with pytest.raises(InputError, match=f"eps='{eps}' is too large for {norm}.*{meant}.*allow_large_eps=True"):
        check_eps(norm, Radius(eps))  # type: ignore[arg-type]
    check_eps(norm, Radius(eps), allow_large=True)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("norm", "eps"), [("Linf", "8/255"), ("Linf", "0.5"), ("L2", "0.5"), ("L2", "3"), ("L1", "12"), ("L1", "255")]
)
def test_usual_radii_are_accepted(norm: str, eps: str) -> None:
    check_eps(norm, Radius(eps))  # type: ignore[arg-type]


@given(seed=seeds, norm=st.sampled_from(["Linf", "L2", "L1"]))
@settings(max_examples=20, deadline=None)
def test_a_finite_slope_is_used_as_it_is(seed: int, norm: Any) -> None:
    slope = torch.randn(3, 2, 4, 4, generator=generator(seed))
    assert torch.equal(Ball(norm, 0.1).usable(slope), slope)


@pytest.mark.parametrize("norm", ["Linf", "L2"])
def test_coordinates_whose_slope_is_not_finite_keep_none_of_the_others_from_moving(norm: Any) -> None:
    ball, nan, inf = Ball(norm, 0.1), float("nan"), float("inf")
    slope = torch.tensor([[3.0, nan, -4.0, nan], [3.0, inf, -4.0, -inf], [nan, nan, nan, nan]])
    steps = ball.direction(slope)
    infinite = 1.0 if norm == "Linf" else 0.0
    expected = torch.tensor([[3.0, 0.0, -4.0, 0.0], [3.0, 0.0, -4.0, 0.0], [0.0] * 4])
    expected = expected.sign() if norm == "Linf" else expected / 5
    expected[1, 1], expected[1, 3] = infinite, -infinite
    torch.testing.assert_close(steps, expected)


@pytest.mark.parametrize(
    ("norm", "eps", "message"),
    [
        ("linf", 0.1, "unknown norm 'linf'. Did you mean 'Linf'"),
        ("Linf", -0.1, "eps=-0.1 must be a finite number of at least 0"),
        ("L2", float("nan"), "eps=nan must be a finite number"),
        ("L2", "0.5", "eps='0.5' must be a finite number"),
    ],
)
def test_a_ball_that_is_none_is_refused(norm: Any, eps: Any, message: str) -> None:
    with pytest.raises(InputError, match=re.escape(message)):
        Ball(norm, eps)
