"""Masked models: what an attack finds, what it warns of, and what it finds with a stand-in's gradient."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from autoattack_samples import Conv
from torch import Tensor, nn

import sam_bench
from sam_bench.attacks import ATTACKS, AttackResult
from sam_bench.models import GradientFrom
from sam_bench.records import ComponentSpec

EPS = 0.06


class Masked(nn.Module):
    """A network behind something that hides its gradient."""

    def __init__(self, net: nn.Module, how: Callable[[nn.Module, Tensor], Tensor]) -> None:
        super().__init__()
        self.net, self.how = net, how

    def forward(self, x: Tensor) -> Tensor:
        return self.how(self.net, x)


MASKS: dict[str, tuple[str, Callable[[nn.Module, Tensor], Tensor]]] = {
    "quantised input": ("zero-gradients", lambda net, x: net((x * 30).round() / 30)),
    "saturated logits": ("zero-gradients", lambda net, x: net(x) * 1e4),
    "random layer": ("randomized", lambda net, x: net((x * 30 + torch.rand_like(x)).floor() / 30)),
}


def attacked(model: nn.Module, x: Tensor, y: Tensor) -> AttackResult:
    return ATTACKS.build(ComponentSpec(method="pgd", steps=20)).run(model, x, y, norm="Linf", eps=EPS)


def robust(result: AttackResult) -> float:
    return result.verdicts.count("robust") / len(result.verdicts)


@pytest.fixture(scope="module")
def net() -> nn.Module:
    return Conv(dtype=torch.float32)


@pytest.fixture(scope="module")
def examples(net: nn.Module) -> tuple[Tensor, Tensor]:
    """The images that the network is surest of, of many."""
    x = torch.rand(600, 3, 11, 11, generator=torch.Generator().manual_seed(0))
    top = net(x).topk(2).values
    surest = (top[:, 0] - top[:, 1]).argsort(descending=True)[:60]
    return x[surest], net(x[surest]).argmax(1)


@pytest.mark.parametrize("mask", MASKS)
def test_the_warning_the_stand_in_and_the_number(mask: str, net: nn.Module, examples: tuple[Tensor, Tensor]) -> None:
    code, how = MASKS[mask]
    model = Masked(net, how).eval()
    plain, masked = attacked(net, *examples), attacked(model, *examples)
    through = attacked(GradientFrom(model, net), *examples)
    print(f"{mask}: {robust(plain):.1%} plain, {robust(masked):.1%} masked, {robust(through):.1%} with the stand-in")
    assert robust(masked) > robust(plain) + 0.2
    assert code in [each.code for each in masked.warnings]
    assert abs(robust(through) - robust(plain)) <= 0.1


def test_the_stand_in_answers_where_a_gradient_is_asked_for() -> None:
    model, stand_in = Conv(0), Conv(1)
    x = torch.rand(4, 3, 11, 11, dtype=torch.float64)
    searched = GradientFrom(model, stand_in)
    assert torch.equal(searched(x), model(x))
    assert torch.equal(searched(x.clone().requires_grad_()), stand_in(x))
    with torch.no_grad():
        assert torch.equal(searched(x.clone().requires_grad_()), model(x))


def test_evaluate_takes_it(tmp_path: object, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(str(tmp_path))
    net = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
    model = Masked(net, lambda inner, x: inner((x * 4).round() / 4))
    record = sam_bench.evaluate(
        GradientFrom(model, net),
        dataset="digits",
        image_size=8,
        attack="pgd",
        eps=0.3,
        n_examples=20,
        allow_large_eps=True,
    )
    assert record.model.startswith("GradientFrom-")
