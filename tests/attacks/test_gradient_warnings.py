"""Attacks with gradients doubt themselves where gradients mislead, and are done with examples a few at a time."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from autoattack_samples import run_whole
from torch import Tensor, nn

from sam_bench.attacks import Attack, Progress, Verdict
from sam_bench.attacks.autoattack import AutoAttack
from sam_bench.attacks.gradient import FGSMAttack, PGDAttack
from sam_bench.attacks.margin import PGDMarginAttack
from sam_bench.errors import InputError
from sam_bench.records import ROBUST, ComponentSpec
from sam_bench.registry import Registry

GRADIENT = [PGDAttack(steps=3), FGSMAttack(), PGDMarginAttack(steps=3, restarts=2)]


class Plane(nn.Module):
    """Two classes by the mean of the image, one that no image is of; `front` meets the image, `back` the logits."""

    def __init__(self, front: Any = lambda x: x, back: Any = lambda logits: logits) -> None:
        super().__init__()
        self.front, self.back = front, back

    def forward(self, x: Tensor) -> Tensor:
        score = 20 * (self.front(x).mean((1, 2, 3)) - 0.5)
        return self.back(torch.stack([-score, score, torch.full_like(score, -40.0)], 1))


def images(count: int = 24) -> tuple[Tensor, Tensor]:
    x = torch.rand(count, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    return x, (x.mean((1, 2, 3)) > 0.5).long()


def codes(attack: Attack, model: nn.Module, eps: float = 0.001) -> list[str]:
    result = attack.run(model, *images(), norm="Linf", eps=eps, batch_size=16)
    return [each.code for each in result.warnings]


@pytest.mark.parametrize("attack", GRADIENT, ids=lambda attack: attack.method)
@pytest.mark.parametrize(
    ("model", "expected"),
    [
        (Plane(), []),
        (Plane(front=lambda x: torch.cat([x[:, :, 1:], torch.zeros_like(x[:, :, :1])], 2)), []),
        (Plane(back=lambda logits: logits.softmax(1)), ["probabilities"]),
        (Plane(front=lambda x: x + 0.05 * torch.rand_like(x)), ["randomized"]),
        (Plane(front=lambda x: x + 0.02 * (x.mean(0) - 0.5)), ["batch-dependent"]),
        (Plane(front=lambda x: (16 * x).round() / 16), ["zero-gradients"]),
        (Plane(back=lambda logits: logits * 1e4), ["zero-gradients"]),
    ],
    ids=["plain", "a row of pixels that nobody looks at", "softmax", "noise", "mixed", "rounded", "saturated"],
)
def test_a_doubt_for_each_way_in_which_gradients_mislead(model: nn.Module, expected: list[str], attack: Attack) -> None:
    if attack.method == "pgd-margin" and expected == ["zero-gradients"] and model(images(1)[0]).abs().max() > 1e3:
        expected = []  # a margin does not saturate: that is what it is for
    assert codes(attack, model) == expected


def test_the_random_stream_of_whoever_called_goes_on_where_it_was() -> None:
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    codes(PGDAttack(steps=2), Plane(front=lambda x: x + 0.05 * torch.rand_like(x)))
    before = torch.random.get_rng_state()
    codes(FGSMAttack(), Plane())
    assert torch.equal(before, torch.random.get_rng_state())
    torch.manual_seed(5)
    assert torch.equal(torch.rand(3), expected)


def test_what_has_all_its_starts_behind_it_is_told_before_the_next_examples_begin() -> None:
    attack = PGDAttack(steps=2, restarts=3)
    x, y = images(80)
    result = run_whole(attack, Plane(), x, y, norm="Linf", eps=1e-4, batch_size=4)
    told = result.events
    assert set(result.verdicts) == {ROBUST}
    first = next(place for place, each in enumerate(told) if isinstance(each, Verdict) and each.outcome is not None)
    behind = [each for each in told[:first] if isinstance(each, Progress)]
    assert max(each.done for each in behind) <= 3 * 16  # starts of four batches, of 240 in all
    shown = [each.done for each in told if isinstance(each, Progress)]
    assert shown == sorted(shown) and shown[-1] == 240


@pytest.mark.parametrize("size", ["0", "-1/255"])
def test_a_step_that_goes_nowhere_is_refused(size: str) -> None:
    registry: Registry[Attack] = Registry(kind="attack", field="attack", group="none")
    registry._classes["pgd"] = PGDAttack
    with pytest.raises(InputError, match="step_size"):
        registry.build(ComponentSpec(method="pgd", step_size=size))


class Squeezed(nn.Module):
    """Works for two images and more, as whatever squeezes too much."""

    def __init__(self) -> None:
        super().__init__()
        self.net = Plane()

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.net(x)
        return logits.squeeze(0)


@pytest.mark.parametrize(
    "attack", [*GRADIENT, AutoAttack(version="custom", suite=("apgd-ce", "square"))], ids=lambda attack: attack.method
)
def test_the_last_example_is_never_alone(attack: Attack) -> None:
    x, y = images(1)
    assert attack.run(Squeezed(), x, y, norm="Linf", eps=1e-4).verdicts == [ROBUST]


class Unsure(nn.Module):
    """Answers wrongly now and then, wherever it is asked."""

    def __init__(self, share: float) -> None:
        super().__init__()
        self.net, self.share = Plane(), share

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.net(x)
        turned = torch.rand(len(x)) < self.share
        return torch.where(turned[:, None], logits[:, [1, 0, 2]], logits)


def test_a_random_model_is_asked_once_by_each_attack_and_not_until_it_errs() -> None:
    """At radius 0 nothing can be found: what is broken is what erred when it was asked for the verdict."""
    x, y = images(200)
    attack = AutoAttack(version="custom", suite=("apgd-ce", "square"))
    result = attack.run(Unsure(0.05), x, y, norm="Linf", eps=0.0, batch_size=64)
    assert result.warnings[0].code == "randomized"
    # Misclassified at first, and judged once by each of two attacks: nearly all of 0.95 cubed.
    assert result.verdicts.count(ROBUST) / len(x) > 0.75
