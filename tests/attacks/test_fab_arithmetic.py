"""FAB where it searches in a coarser arithmetic than its witnesses are judged in."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from autoattack_samples import Conv, examples, problem_of
from pyautoattack.fab_projections import projection_l1

from sam_bench.attacks.autoattack.fab import FAB
from sam_bench.attacks.autoattack.fab_projection import project
from sam_bench.attacks.rng import CounterRNG, UpstreamRNG
from sam_bench.perturb.ball import Ball


@pytest.mark.parametrize("as_upstream", [False, True])
def test_the_distance_of_a_witness_that_is_none_is_forgotten(as_upstream: bool) -> None:
    """Else a true one that is farther away would never be offered. With upstream's draws it is as upstream has it."""
    model = Conv(dtype=torch.float32)
    x, y = examples(model, 4)
    places = torch.arange(4)
    rng: Any = UpstreamRNG(0) if as_upstream else CounterRNG(0, "fab", places)
    problem = problem_of(model, x, y, ball=Ball(norm="Linf", eps=0.1))
    search = FAB(problem, rng, targeted=False, restarts_or_targets=1)
    rows = search.init(places, torch.zeros_like(places))
    for _ in range(3):
        search.step(rows)
    assert bool((rows.nearest < 1).all())
    before = rows.nearest.clone()
    stops = search.on_rejected(rows, torch.tensor([1, 3]))
    assert not bool(stops.any())
    assert torch.equal(rows.nearest[::2], before[::2])
    assert torch.equal(rows.nearest[1::2], before[1::2]) == as_upstream
    rows.found[:] = False
    search.step(rows)
    assert as_upstream or bool(rows.found[1::2].all())


@pytest.mark.parametrize("norm", ["Linf", "L2", "L1"])
def test_a_second_run_begins_half_way_to_the_sphere_or_at_the_wall_of_the_box(norm: Any) -> None:
    model = Conv(dtype=torch.float64)
    x, y = examples(model, 4)
    x = x.round()  # every pixel is at a wall: half of the noise leads out of the box
    problem = problem_of(model, x, y, ball=Ball(norm=norm, eps=0.2))
    search = FAB(problem, CounterRNG(0, "fab", torch.arange(4)), targeted=False, restarts_or_targets=2)
    first, second = (search.init(torch.arange(4), torch.full((4,), trial)).point for trial in (0, 1))
    assert torch.equal(first, x.to(first))
    moved = (second - x).flatten(1)
    outwards = (moved == 0).double().mean()
    assert 0.3 < outwards < 0.7 and second.min() >= 0 and second.max() <= 1
    order = {"Linf": torch.inf, "L2": 2, "L1": 1}[norm]
    assert bool((torch.linalg.vector_norm(moved, order, dim=1) <= 0.1 + 1e-6).all())


def tied(seed: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Points and planes whose normals hold each weight twenty times, as average pooling makes them; float32."""
    draws = torch.Generator().manual_seed(seed)
    t = torch.rand(8, 600, generator=draws)
    w = torch.randn(8, 30, generator=draws).repeat_interleave(20, 1)
    # The first plane is near, the last ones so far that most coordinates have to move.
    share = torch.tensor([0.02, 0.02, 0.02, 0.1, 0.1, 0.1, 0.5, 0.8])
    return t, w, (w * t).sum(1) - share * (w.clamp_min(0) * t).sum(1)


@pytest.mark.parametrize("seed", range(4))
def test_in_l1_a_row_goes_the_same_way_alone_and_beside_others_where_weights_are_equal(seed: int) -> None:
    t, w, b = tied(seed)
    together = project(t, w, b, norm="L1")
    alone = torch.cat([project(t[[row]], w[[row]], b[[row]], norm="L1") for row in range(len(t))])
    assert torch.equal(together, alone)
    exact = project(t.double(), w.double(), b.double(), norm="L1")
    assert torch.allclose(together.double(), exact, atol=1e-4)


@pytest.mark.parametrize("seed", range(4))
def test_in_l1_with_upstreams_draws_equal_weights_move_in_upstreams_order(seed: int) -> None:
    t, w, b = tied(seed)
    change = project(t, w, b, norm="L1", as_upstream=True)
    assert torch.allclose(change, projection_l1(t, w, b), atol=1e-5)
    assert torch.allclose((w * (t + change)).sum(1), b, atol=1e-3)
