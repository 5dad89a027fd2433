"""What AutoAttack doubts of its own result, and what it cannot be run on."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
from autoattack_samples import Conv, Short, ShortBF16, ShortScreen, examples, run_whole
from torch import Tensor, nn

from sam_bench.attacks import ATTACKS
from sam_bench.attacks.autoattack.suite import FEW_CLASSES
from sam_bench.errors import InputError
from sam_bench.records import MISCLASSIFIED, ROBUST, ComponentSpec

EPS = {"Linf": 0.012, "L2": 0.12, "L1": 1.0}
SUITE = ("apgd-ce", "fab-t", "square")


@pytest.fixture(scope="module")
def model() -> Conv:
    return Conv(dtype=torch.float32)


@pytest.fixture(scope="module")
def some(model: Conv) -> tuple[Tensor, Tensor]:
    x, y = examples(model, 28)
    y[::9] = (y[::9] + 1) % 10
    return x, y


def fast(**fields: Any) -> Short:
    return Short(engine="fast", version="custom", suite=SUITE, **fields)


class Wrapped(nn.Module):
    def __init__(self, net: nn.Module, how: Callable[[nn.Module, Tensor], Tensor]) -> None:
        super().__init__()
        self.net, self.how = net, how

    def forward(self, x: Tensor) -> Tensor:
        return self.how(self.net, x)


def differentiating(net: nn.Module, x: Tensor) -> Tensor:
    with torch.enable_grad():
        inner = x.detach().requires_grad_()
        (gradient,) = torch.autograd.grad(net(inner).logsumexp(1).sum(), inner)
    return net(x + 1e-4 * gradient.sign())


DEFENCES: dict[str, Callable[[nn.Module, Tensor], Tensor]] = {
    "randomized": lambda net, x: net(x + 0.05 * torch.rand_like(x)),
    "probabilities": lambda net, x: net(x).softmax(1),
    "dynamic": differentiating,
    "zero-gradients": lambda net, x: net((x * 40).round() / 40),
}


@pytest.mark.parametrize("defence", sorted(DEFENCES))
def test_doubts_are_those_of_upstream(defence: str, model: Conv) -> None:
    net = Wrapped(model, DEFENCES[defence])
    x, y = examples(model, 24, of=30)

    def codes(engine: Any) -> set[str]:
        result = Short(engine=engine).run(net, x, y, norm="Linf", eps=0.03, seed=0, batch_size=24)
        return {warning.code for warning in result.warnings}

    assert codes("fast") == codes("reference") >= {defence}


def test_a_model_whose_answers_depend_on_the_batch_is_told_of(model: Conv) -> None:
    """As those of a BatchNorm that keeps no running statistics."""
    x, y = examples(model, 4)
    for net in (Wrapped(model, lambda net, x: net(x - 0.1 * x.mean(0))), nn.Sequential(model, nn.Identity())):
        warnings = fast().run(net, x, y, norm="Linf", eps=0.0).warnings
        assert [warning.code for warning in warnings] == ["batch-dependent"] * isinstance(net, Wrapped)


def test_one_row_that_sums_to_one_is_no_probability(model: Conv) -> None:
    def first_row(net: nn.Module, x: Tensor) -> Tensor:
        logits = net(x)
        share = (logits - logits.min()) / (logits.max() - logits.min())  # in [0, 1], so that the sums alone decide
        return torch.cat([share[:1] / share[:1].sum(), share[1:]])

    x, y = examples(model, 24)
    warnings = fast().run(Wrapped(model, first_row), x, y, norm="Linf", eps=0.0).warnings
    assert "probabilities" not in {warning.code for warning in warnings}


def test_probabilities_are_told_from_a_model_that_is_certain(model: Conv) -> None:
    x, y = examples(model, 24)
    net = Wrapped(model, lambda net, x: (1000 * net(x)).softmax(1))
    assert net(x).max() == 1
    warnings = fast().run(net, x, y, norm="Linf", eps=0.0).warnings
    assert "probabilities" in {warning.code for warning in warnings}


def test_what_is_not_compiled_needs_no_compiler(model: Conv, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    x, y = examples(model, 4)
    assert len(fast().run(model, x, y, norm="Linf", eps=0.0).verdicts) == 4


def test_the_next_model_is_not_called_dynamic_for_the_last_one(model: Conv) -> None:
    x, y = examples(model, 4)
    attack = Short(engine="fast", version="custom", suite=("apgd-ce",))
    dynamic = attack.run(Wrapped(model, differentiating), x, y, norm="Linf", eps=0.2)
    assert [warning.code for warning in dynamic.warnings] == ["dynamic"]
    assert attack.run(model, x, y, norm="Linf", eps=0.2).warnings == []


@pytest.mark.parametrize(("norm", "instead"), [("L2", "the attack pgd"), ("L1", "autoattack-screen")])
def test_images_too_small_for_square_are_refused_before_any_work(norm: Any, instead: str) -> None:
    asked: list[int] = []

    class Small(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            asked.append(len(x))
            return x.flatten(1)[:, :12]

    x = torch.rand(3, 1, 4, 4, generator=torch.Generator().manual_seed(0))
    y = x.flatten(1)[:, :12].argmax(1)
    attack = Short(engine="fast")
    with pytest.raises(InputError, match=f"square in {norm} needs images of at least 5x5 pixels.*: use {instead}$"):
        attack.run(Small(), x, y, norm=norm, eps=0.5)
    assert len(asked) == 1  # to see which are right
    assert attack.run(Small(), x, y, norm="Linf", eps=0.5).verdicts == ["apgd-ce"] * 3


@pytest.mark.parametrize(("classes", "left"), [(5, 4), (2, None)])
def test_few_classes_limit_the_targets_and_too_few_are_refused(classes: int, left: int | None, model: Conv) -> None:
    net = Wrapped(model, lambda inner, x: inner(x)[:, :classes])
    x, y = examples(net, 6)
    attack = ATTACKS.build(ComponentSpec(method="autoattack-screen"))
    if left is None:
        with pytest.raises(
            InputError,
            match=f"needs at least 4 classes .* has 2: use attack='autoattack' {FEW_CLASSES.replace('`', '')}",
        ):
            attack.run(net, x, y, norm="Linf", eps=0.1)
    else:
        result = attack.run(net, x, y, norm="Linf", eps=0.05)
        assert str(result.warnings[1]).startswith(
            f"few-classes: with {classes} classes apgd-t aim at all {left} others"
        )


@pytest.mark.parametrize("norm", ["Linf", "L2", "L1"])
@pytest.mark.parametrize("classes", [2, 3])
@pytest.mark.parametrize("engine", ["fast", "reference"])
def test_what_is_said_to_be_there_for_few_classes_works_in_every_norm(
    engine: Any, classes: int, norm: Any, model: Conv
) -> None:
    version, suite = re.findall("='(.*?)'", FEW_CLASSES)
    net = Wrapped(model, lambda inner, x: inner(x)[:, :classes])
    x, y = examples(net, 10)
    attack = Short(engine=engine, version=version, suite=tuple(suite.split(",")))
    result = attack.run(net, x, y, norm=norm, eps=2 * EPS[norm], batch_size=10)
    assert {warning.code for warning in result.warnings} <= {"few-classes"}
    assert 0 < result.verdicts.count(ROBUST) < 10


@pytest.mark.parametrize(("attack", "code"), [(ShortScreen(), "upper-bound"), (ShortBF16(), "bf16")])
def test_what_is_to_be_known_of_an_attack_is_said_where_nothing_is_left_to_attack(
    attack: Any, code: str, model: Conv, some: tuple[Tensor, Tensor]
) -> None:
    x, y = some[0][:3], (model(some[0][:3]).argmax(1) + 1) % 10
    result = attack.run(model, x, y, norm="Linf", eps=0.1)
    assert result.verdicts == [MISCLASSIFIED] * 3
    ran = run_whole(attack, model, x, y, norm="Linf", eps=0.1)
    assert [warning.code for warning in result.warnings] == [code] and ran.warnings == result.warnings
    again = attack.run(model, *examples(model, 2), norm="Linf", eps=0.0, batch_size=2)
    assert again.warnings == result.warnings
