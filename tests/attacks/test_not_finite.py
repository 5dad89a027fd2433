"""Models whose gradients or logits are not finite: attacks that follow them go on, and say what they met."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from autoattack_samples import CPU, Conv, Short, examples, make_search, run_whole
from torch import Tensor, nn

from sam_bench.attacks.base import Attack
from sam_bench.attacks.events import AttackWarning, Examples, Progress, Verdict
from sam_bench.attacks.gradient import FGSMAttack, PGDAttack
from sam_bench.attacks.margin import PGDMarginAttack
from sam_bench.attacks.rng import CounterRNG
from sam_bench.attacks.verify import NO_CLASS, Verifier, classes_of
from sam_bench.perturb.ball import Ball
from sam_bench.records import MISCLASSIFIED, ROBUST

EPS = {"Linf": 0.02, "L2": 0.25, "L1": 2.0}
SLOPES: dict[str, Callable[[Tensor], Tensor]] = {
    "NaN": lambda x: x.square().sqrt(),  # at 0 zero times infinity
    "infinite": lambda x: x.sqrt(),
}
FOLLOWING = {
    "pgd": lambda: PGDAttack(random_start=False),
    "fgsm": FGSMAttack,
    "pgd-margin": lambda: PGDMarginAttack(steps=20, restarts=1, random_start=False),
}


class Sloping(nn.Module):
    """Ten classes, linear in a function of each pixel whose slope at black is not finite."""

    def __init__(self, of_pixels: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.weight = torch.randn(10, 363, generator=torch.Generator().manual_seed(0))
        self.of_pixels = of_pixels

    def forward(self, x: Tensor) -> Tensor:
        return self.of_pixels(x).flatten(1) @ self.weight.t()


def partly_black(model: nn.Module) -> tuple[Tensor, Tensor]:
    """Images a third of which is black, with what the model says of them for labels."""
    draws = torch.Generator().manual_seed(1)
    x = 0.2 + 0.6 * torch.rand(12, 3, 11, 11, generator=draws)
    x = torch.where(torch.rand(x.shape, generator=draws) < 0.3, torch.zeros_like(x), x)
    return x, model(x).argmax(1)


def codes(warnings: list[AttackWarning]) -> list[str]:
    return [warning.code for warning in warnings]


def one_of_autoattack(name: str, **how: Any) -> Attack:
    return Short(engine="fast", version="custom", suite=(name,), **how)


@pytest.mark.parametrize("slope", SLOPES)
@pytest.mark.parametrize(
    ("name", "norm"),
    [
        *((name, norm) for name in FOLLOWING for norm in ("Linf", "L2")),
        *((name, norm) for name in ("apgd-ce", "apgd-t", "fab", "fab-t") for norm in ("Linf", "L2", "L1")),
    ],
)
def test_where_some_slopes_are_not_finite_the_other_pixels_still_move_and_it_is_said(
    name: str, norm: Any, slope: str
) -> None:
    model = Sloping(SLOPES[slope])
    x, y = partly_black(model)
    attack = FOLLOWING[name]() if name in FOLLOWING else one_of_autoattack(name)
    result = attack.run(model, x, y, norm=norm, eps=EPS[norm], batch_size=16)
    assert result.verdicts.count(name) >= (10 if slope == "NaN" else 6)
    assert codes(result.warnings) == ["nan-gradients"] and "square root" in result.warnings[0].text


@pytest.mark.parametrize("norm", ["Linf", "L2", "L1"])
def test_with_upstreams_draws_it_is_said_as_well(norm: Any) -> None:
    model = Sloping(SLOPES["NaN"])
    for name in ("apgd-ce", "fab-t"):
        attack = one_of_autoattack(name, rng="upstream")
        result = attack.run(model, *partly_black(model), norm=norm, eps=EPS[norm], batch_size=16)
        assert codes(result.warnings) == ["nan-gradients"]


def test_it_is_said_before_the_verdicts_that_depend_on_it() -> None:
    model = Sloping(SLOPES["NaN"])
    for attack in (PGDAttack(random_start=False), one_of_autoattack("apgd-ce")):
        events = run_whole(attack, model, *partly_black(model), norm="L2", eps=EPS["L2"]).events
        told = [each for each in events if not isinstance(each, Progress)]
        while isinstance(told[0], Verdict) and told[0].outcome is None and not told[0].attacks_survived:
            del told[0]  # right without an attack
        assert isinstance(told[0], AttackWarning) and not any(isinstance(each, AttackWarning) for each in told[1:])


@pytest.mark.parametrize("attack", ["apgd-ce", "fab", "fab-t"])
def test_finite_slopes_are_counted_as_such_and_no_doubt(attack: str) -> None:
    model = Conv(dtype=torch.float32)
    x, y = examples(model, 6)
    search = make_search(attack, model, x, y, ball=Ball("L2", 0.1), rng=CounterRNG(0, attack, torch.arange(6)), steps=3)
    rows = search.init(torch.arange(6), torch.zeros(6, dtype=torch.int64))
    for _ in range(3):
        search.step(rows)
    assert search.problem.gradient_counts.tolist() == [0, 0]


# Logits


def test_a_row_with_nan_has_no_class_and_infinite_logits_are_compared() -> None:
    nan, inf = float("nan"), float("inf")
    logits = torch.tensor(
        [[0.0, 1.0, 2.0], [nan, nan, nan], [5.0, 1.0, nan], [1.0, inf, 2.0], [-inf, -3.0, -inf], [inf, 0.0, inf]]
    )
    assert classes_of(logits).tolist() == [2, NO_CLASS, NO_CLASS, 1, 1, 0]


class Blinded(nn.Module):
    """Right by a wide margin, but NaN where the first pixel is brighter than it may be."""

    def __init__(self, label: int, limit: float) -> None:
        super().__init__()
        self.label, self.limit = label, limit

    def forward(self, x: Tensor) -> Tensor:
        brightness = x.flatten(1)[:, :1]
        sure = nn.functional.one_hot(torch.full((len(x),), self.label), 10) * (5 - 0.01 * brightness)
        return torch.where(brightness > self.limit, torch.nan, sure)


class Brighter(Attack):
    """Hands in a brighter image."""

    method = "brighter"

    def perturb(self, model: nn.Module, x: Tensor, y: Tensor, ball: Ball) -> Tensor:
        return x + ball.eps


class Unfinished(Attack):
    """Hands in no numbers."""

    method = "unfinished"

    def perturb(self, model: nn.Module, x: Tensor, y: Tensor, ball: Ball) -> Tensor:
        return x * torch.nan


def grey(label: int) -> tuple[Tensor, Tensor]:
    return torch.full((4, 3, 11, 11), 0.5), torch.full((4,), label)


@pytest.mark.parametrize("label", [0, 3])
def test_an_image_that_gives_nan_is_not_classified_right_whatever_its_label(label: int) -> None:
    x, y = grey(label)
    model = Blinded(label, 0.4)
    assert classes_of(model(x)).tolist() == [NO_CLASS] * 4
    verifier = Verifier(model, ball=Ball("Linf", 0.1), batch_size=4, device=CPU)
    assert not verifier.clean(Examples.of(x, y)).any() and codes(verifier.warnings) == ["nan-logits"]
    result = run_whole(Brighter(), model, x, y, norm="Linf", eps=0.1)
    assert result.verdicts == [MISCLASSIFIED] * 4
    assert codes(result.warnings) == ["nan-logits"]


@pytest.mark.parametrize("label", [0, 3])
@pytest.mark.parametrize("name", ["brighter", "pgd", "apgd-ce", "square"])
def test_a_point_of_the_ball_that_gives_nan_breaks_an_example_whatever_its_label_and_is_said(
    name: str, label: int
) -> None:
    x, y = grey(label)
    ours: dict[str, Attack] = {"brighter": Brighter(), "pgd": PGDAttack()}
    attack = ours.get(name) or one_of_autoattack(name)
    result = attack.run(Blinded(label, 0.55), x, y, norm="Linf", eps=0.1)
    assert result.verdicts == [name] * 4
    assert "nan-logits" in codes(result.warnings) and bool(result.x_adv.isfinite().all())


def test_candidates_that_are_nan_break_nothing_and_are_said() -> None:
    x, y = grey(0)
    result = Unfinished().run(Blinded(0, 0.55), x, y, norm="Linf", eps=0.1)
    assert result.verdicts == [ROBUST] * 4
    assert codes(result.warnings) == ["nan-candidates"] and "mend the attack" in result.warnings[0].text
