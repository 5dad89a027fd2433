"""PGD on the margin: closed forms, steps that fall, and an example's numbers its own."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from autoattack_samples import run_part, run_whole
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from sam_bench.attacks import ATTACKS
from sam_bench.attacks.gradient import PGDAttack
from sam_bench.attacks.margin import AdamSteps, PGDMarginAttack
from sam_bench.errors import InputError
from sam_bench.perturb.ball import Ball
from sam_bench.records import ROBUST, ComponentSpec
from sam_bench.seeds import generator

NORMS = pytest.mark.parametrize("norm", ["Linf", "L2"])


class Unbounded(Ball):
    """A ball that holds nothing back."""

    def project(self, point: Tensor, center: Tensor) -> Tensor:
        """The point."""
        return point


class Linear(nn.Module):
    """Two classes whose logits differ by a linear function: how far the boundary is, is known."""

    def __init__(self, slope: Tensor, *, scale: float = 1.0) -> None:
        super().__init__()
        self.slope, self.scale = nn.Parameter(slope), scale

    def forward(self, x: Tensor) -> Tensor:
        score = self.scale * ((x - 0.5).flatten(1) @ self.slope)
        return torch.stack([score, -score], 1)

    def reach(self, x: Tensor, norm: str) -> Tensor:
        """How far the boundary is from each image, [B]."""
        score = (x - 0.5).flatten(1) @ self.slope.detach()
        return score.abs() / self.slope.detach().norm(p=1 if norm == "Linf" else 2)


def linear(seed: int, norm: str, *, scale: float = 1.0) -> tuple[Linear, Tensor, Tensor, float, list[bool]]:
    """A model, images with the labels it gives them, and a radius within which half of them reach the boundary."""
    slope = torch.randn(16, generator=generator(seed, "slope"))
    x = 0.35 + 0.3 * torch.rand(20, 1, 4, 4, generator=generator(seed, "x"))
    model = Linear(slope, scale=scale)
    reach = model.reach(x, norm)
    eps = float(reach.sort().values[9:11].mean())
    return model, x, ((x - 0.5).flatten(1) @ slope < 0).long(), eps, (reach <= eps).tolist()


@given(seed=st.integers(0, 10_000), norm=st.sampled_from(["Linf", "L2"]))
@settings(max_examples=15, deadline=None)
def test_on_a_linear_model_exactly_those_within_reach_of_the_boundary_are_broken(seed: int, norm: Any) -> None:
    model, x, y, eps, near = linear(seed, norm)
    # The box does not bind, and nobody stands on the boundary.
    assume(eps < 0.3 and all(model.reach(x, norm).sub(eps).abs() > 5e-3 * eps))
    result = PGDMarginAttack(steps=40, restarts=1).run(model, x, y, norm=norm, eps=eps, seed=seed)
    assert result.verdicts == ["pgd-margin" if each else ROBUST for each in near]


@NORMS
def test_it_breaks_what_a_saturated_cross_entropy_hides(norm: Any) -> None:
    model, x, y, eps, near = linear(1, norm, scale=1e5)
    hidden = PGDAttack(steps=20, random_start=False).run(model, x, y, norm=norm, eps=eps)
    found = PGDMarginAttack(steps=20, restarts=1, random_start=False).run(model, x, y, norm=norm, eps=eps)
    assert [verdict != ROBUST for verdict in found.verdicts] == near
    assert hidden.verdicts.count(ROBUST) > found.verdicts.count(ROBUST)


@NORMS
def test_steps_fall_as_published_in_proportion_to_the_radius(norm: Any) -> None:
    x = torch.full((1, 1, 2, 2), 0.5)
    for eps in (8 / 255, 1 / 255, 0.5):
        steps, seen = AdamSteps(Ball(norm, eps), 40), []
        for _ in range(40):
            seen.append(steps.size() * (8 / 255) / eps)
            steps.move(x, x, torch.ones_like(x))
        assert seen == pytest.approx([0.1] * 20 + [0.01] * 10 + [0.0001] * 10)


@given(seed=st.integers(0, 1000), norm=st.sampled_from(["Linf", "L2"]), factor=st.sampled_from([1e-3, 1.0, 1e3]))
@settings(max_examples=20, deadline=None)
def test_a_row_moves_as_if_it_were_alone_whoever_leaves_and_however_steep_the_slope(
    seed: int, norm: Any, factor: float
) -> None:
    draws, ball = generator(seed), Ball(norm, 0.1)
    x = torch.rand(6, 1, 3, 3, generator=draws)
    gradients = torch.randn(5, 6, 1, 3, 3, generator=draws)
    alone = []
    for row in range(6):
        steps, at = AdamSteps(ball, 5), x[row : row + 1]
        for gradient in gradients:
            at = steps.move(at, x[row : row + 1], gradient[row : row + 1])
        alone.append(at)
    steps, at, left = AdamSteps(ball, 5), x, torch.arange(6)
    for number, gradient in enumerate(gradients):
        stays = left != number  # row 0 leaves first, row 4 last
        steps.keep(stays)
        at, left = at[stays], left[stays]
        at = steps.move(at, x[left], factor * gradient[left])
    assert left.tolist() == [5]
    torch.testing.assert_close(at, alone[5], rtol=0, atol=1e-6)


class Small(nn.Module):
    """A small float32 network with random weights."""

    def __init__(self) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            self.net = nn.Sequential(
                nn.Conv2d(1, 8, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(128, 10)
            )

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = 4 * self.net(x)
        return logits


@NORMS
def test_an_example_has_its_verdict_and_witness_whatever_the_batch_and_whoever_is_attacked_with_it(norm: Any) -> None:
    model, x = Small().eval(), torch.rand(50, 1, 8, 8, generator=generator(3))
    with torch.no_grad():
        y = model(x).argmax(1)
    attack = PGDMarginAttack(steps=6, restarts=2)
    given: dict[str, Any] = {"norm": norm, "eps": 0.07 if norm == "Linf" else 0.5, "seed": 1}
    whole = attack.run(model, x, y, **given, batch_size=50)
    assert 5 < whole.verdicts.count(ROBUST) < 45
    by_seven = attack.run(model, x, y, **given, batch_size=7)
    assert by_seven.verdicts == whole.verdicts and torch.equal(by_seven.x_adv, whole.x_adv)
    some = torch.tensor([40, 3, 17])
    part = run_part(attack, model, x[some], y[some], **given, index=some)
    assert part.verdicts == [whole.verdicts[place] for place in some] and torch.equal(part.x_adv, whole.x_adv[some])


def test_it_is_an_attack_like_any_other_with_ten_starts_of_a_hundred_steps() -> None:
    attack = ATTACKS.build(ComponentSpec(method="pgd-margin"))
    assert attack == PGDMarginAttack(steps=100, restarts=10, random_start=True) and attack.per_example


def test_in_l1_it_is_refused_before_the_model_is_asked_anything() -> None:
    x, y = torch.rand(2, 1, 4, 4), torch.zeros(2, dtype=torch.int64)
    with pytest.raises(
        InputError,
        match="norm='L1': pgd-margin searches in L2 and Linf; attack with autoattack, and",
    ):
        PGDMarginAttack().run(nn.Identity(), x, y, norm="L1", eps=1.0)


def test_progress_counts_starts_and_those_that_a_broken_example_is_spared() -> None:
    model, x = Small().eval(), torch.rand(50, 1, 8, 8, generator=generator(3))
    with torch.no_grad():
        y = model(x).argmax(1)
    attack = PGDMarginAttack(steps=2, restarts=3)
    result = run_whole(attack, model, x, y, norm="Linf", eps=0.07, batch_size=20)
    told: list[Any] = result.progress
    done = [each.done for each in told]
    assert {each.total for each in told} == {150} and done == sorted(done) and done[-1] == 150
    assert told[-1].robust == result.verdicts.count(ROBUST) < 50
    broken_in_the_first = 20 - told[0].robust + 30
    assert done[0] == 20 + 2 * broken_in_the_first


def test_in_linf_a_step_is_adams() -> None:
    steps, eps = 12, 8 / 255
    x = torch.full((2, 1, 3, 3), 0.5)
    # The published steps are longer than this ball: without its walls, as Adam has none.
    ball = Unbounded(norm="Linf", eps=eps)
    ours, point, theirs = AdamSteps(ball, steps), x.clone(), x.clone().requires_grad_()
    adam = torch.optim.Adam([theirs], betas=(0.9, 0.999), eps=1e-12, maximize=True)
    for number in range(steps):
        gradient = torch.randn(x.shape, generator=generator(number, "gradient"))
        theirs.grad, adam.param_groups[0]["lr"] = gradient.clone(), ours.size()
        adam.step()
        point = ours.move(point, x, gradient)
    torch.testing.assert_close(point, theirs.detach(), rtol=1e-5, atol=1e-6)
