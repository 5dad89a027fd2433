"""Properties of the threat model, and PGD's optimum where it is known in closed form."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sam_bench.errors import InputError
from sam_bench.perturb import Ball
from sam_bench.perturb.ball import check_eps
from sam_bench.records import Radius
from sam_bench.seeds import generator

balls = st.builds(Ball, norm=st.sampled_from(["Linf", "L2"]), eps=st.floats(0, 2))
seeds = st.integers(0, 10_000)


def distance(ball: Ball, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    return (a - b).flatten(1).norm(p=float("inf") if ball.norm == "Linf" else 2, dim=1)


@given(ball=balls, seed=seeds)
@settings(max_examples=60, deadline=None)
def test_a_projected_point_is_in_ball_and_box(ball: Ball, seed: int) -> None:
    draws = generator(seed)
    x = torch.rand(4, 2, 3, 3, generator=draws, dtype=torch.float64)
    far = x + 3 * torch.randn(x.shape, generator=draws, dtype=torch.float64)
    projected = ball.project(far, x)
    assert (distance(ball, projected, x) <= ball.eps + 1e-12).all()
    assert projected.min() >= 0 and projected.max() <= 1


@given(ball=balls, seed=seeds)
@settings(max_examples=60, deadline=None)
def test_projection_leaves_an_allowed_point_where_it_is(ball: Ball, seed: int) -> None:
    draws = generator(seed)
    x = torch.rand(4, 2, 3, 3, generator=draws, dtype=torch.float64)
    allowed = ball.project(x + torch.randn(x.shape, generator=draws, dtype=torch.float64), x)
    torch.testing.assert_close(ball.project(allowed, x), allowed, rtol=0, atol=1e-12)


@given(ball=balls, seed=seeds)
@settings(max_examples=60, deadline=None)
def test_a_random_start_is_in_ball_and_box(ball: Ball, seed: int) -> None:
    x = torch.rand(8, 1, 4, 4, generator=generator(seed, "x"), dtype=torch.float64)
    start = ball.sample(x, generator(seed, "start"))
    assert (distance(ball, start, x) <= ball.eps + 1e-12).all()
    assert start.min() >= 0 and start.max() <= 1


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
    ("norm", "eps", "meant"), [("Linf", "8", "8/255"), ("Linf", "1", "1/255"), ("L2", "128", "128/255")]
)
def test_a_radius_meant_in_255ths_is_refused_and_the_right_spelling_named(norm: str, eps: str, meant: str) -> None:
    with pytest.raises(InputError, match=f"--eps {eps} is too large for {norm}.*{meant}.*--allow-large-eps"):
        check_eps(norm, Radius(eps))  # type: ignore[arg-type]
    check_eps(norm, Radius(eps), allow_large=True)  # type: ignore[arg-type]


@pytest.mark.parametrize(("norm", "eps"), [("Linf", "8/255"), ("Linf", "0.5"), ("L2", "0.5"), ("L2", "3")])
def test_usual_radii_are_accepted(norm: str, eps: str) -> None:
    check_eps(norm, Radius(eps))  # type: ignore[arg-type]
