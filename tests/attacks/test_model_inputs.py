"""What a model does to the tensor it is given: writing into it, and taking its layout for granted."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from autoattack_samples import Conv, Short, examples
from torch import Tensor, nn

from sam_bench.attacks import ATTACKS, Attack
from sam_bench.attacks.gradient import FGSMAttack, PGDAttack
from sam_bench.attacks.margin import PGDMarginAttack
from sam_bench.errors import InputError
from sam_bench.models import check_input_gradient, check_model
from sam_bench.modes import attacking
from sam_bench.records import ROBUST, ComponentSpec

MEAN, STD, LEVELS = 0.45, 1.1, 12


class Wrapped(nn.Module):
    """A network behind a function of its input."""

    def __init__(self, before: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.net, self.before = Conv(dtype=torch.float32), before

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.net(self.before(x))
        return logits


def in_data(x: Tensor) -> Tensor:
    x.data.sub_(MEAN).div_(STD)
    return x


def with_gradient_only(x: Tensor) -> Tensor:
    return x.sub_(MEAN).div_(STD) if torch.is_grad_enabled() else (x - MEAN) / STD


def shifted_data(x: Tensor) -> Tensor:
    return x + ((x - MEAN) / STD - x).detach()


# In place, out of place, and whether the model writes into its first input.
WAYS: dict[str, tuple[Callable[[Tensor], Tensor], Callable[[Tensor], Tensor], bool]] = {
    "normalises": (lambda x: x.sub_(MEAN).div_(STD), lambda x: (x - MEAN) / STD, True),
    "normalises its data": (in_data, shifted_data, True),
    "quantises": (lambda x: x.mul_(LEVELS).round_().div_(LEVELS), lambda x: (x * LEVELS).round() / LEVELS, True),
    "only with gradients": (with_gradient_only, lambda x: (x - MEAN) / STD, False),
}

ATTACKS_TRIED: dict[str, Callable[[], Attack]] = {
    "fgsm": FGSMAttack,
    "pgd": lambda: PGDAttack(steps=4, restarts=2),
    "pgd-margin": lambda: PGDMarginAttack(steps=4, restarts=2),
    "square": lambda: Short(version="custom", suite=("square",)),
    "autoattack": lambda: Short(),
    "upstream's draws": lambda: Short(rng="upstream"),
    "reference": lambda: Short(engine="reference"),
    "torchattacks": lambda: ATTACKS.build(ComponentSpec.model_validate({"method": "torchattacks:PGD", "steps": 3})),
}


@pytest.mark.parametrize(
    ("attack", "way"),
    [
        (attack, way)
        for attack in ATTACKS_TRIED
        for way in WAYS
        if way == "normalises" or attack not in ("reference", "upstream's draws")  # slow
    ],
)
def test_a_model_that_writes_into_its_input_has_the_verdicts_of_the_same_model_out_of_place(
    attack: str, way: str
) -> None:
    in_place, out_of_place, tells = WAYS[way]
    x, _ = examples(Conv(dtype=torch.float32), 40)
    with torch.no_grad():
        y = Wrapped(out_of_place)(x).argmax(1)
    y[:3] = (y[:3] + 1) % 10
    before = x.clone()
    how: dict[str, Any] = {"norm": "Linf", "eps": 0.02, "batch_size": 20}
    found = ATTACKS_TRIED[attack]().run(Wrapped(in_place), x, y, **how)
    expected = ATTACKS_TRIED[attack]().run(Wrapped(out_of_place), x, y, **how)
    assert torch.equal(x, before), "the caller's images"
    assert found.verdicts == expected.verdicts and ROBUST in found.verdicts[3:]
    assert torch.equal(found.x_adv, expected.x_adv) and float((found.x_adv - x).abs().max()) <= 0.02 + 1e-6
    codes = {warning.code for warning in found.warnings}
    assert ("changes-input" in codes) == tells
    assert codes - {"changes-input"} == {warning.code for warning in expected.warnings}


def test_the_check_of_a_model_says_that_it_writes_into_its_input_and_finds_its_gradient() -> None:
    model = Wrapped(WAYS["normalises"][0])
    with pytest.warns(UserWarning, match=r"the model changes its input in place, as x\.sub_\(mean\) does"):
        check_model(model, num_classes=10, input_shape=(3, 11, 11))
    check_input_gradient(model, (3, 11, 11), attack="pgd")


def test_inputs_are_copied_once_for_scripted_modules_too_and_only_for_the_time_of_an_attack() -> None:
    class Writes(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.sub_(1.0).sum(1)

    for model in (Writes(), torch.jit.script(Writes())):
        x = torch.ones(2, 3)
        with attacking(model) as outer, attacking(model) as inner:
            assert not outer.changed
            assert torch.equal(model(x), torch.zeros(2)) and torch.equal(x, torch.ones(2, 3))
            assert outer.changed and inner.changed
        model(x)
        assert torch.equal(x, torch.zeros(2, 3))


# Layout


class Views(nn.Module):
    """Takes for granted that images and gradients are contiguous."""

    def __init__(self, where: str) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.body, self.head = nn.Conv2d(3, 6, 3, padding=1), nn.Linear(6 * 11 * 11, 10)
        self.where = where

    def forward(self, x: Tensor) -> Tensor:
        if self.where == "backward":
            return self.head(_Views.apply(self.body(x)).flatten(1))  # type: ignore[no-any-return, no-untyped-call]
        if self.where == "strides":
            x = torch.as_strided(x, x.shape, (3 * 121, 121, 11, 1))
        features = self.body(x)
        flat = features.reshape(len(x), -1) if self.where == "strides" else features.view(x.size(0), -1)
        logits: Tensor = self.head(flat)
        return logits


class _Views(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.shape = x.shape
        return x.tanh()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        gradient = gradients[0].contiguous(memory_format=torch.preserve_format)
        ordered = gradient.transpose(1, 1) if gradient.is_contiguous() else gradient.view(len(gradient), -1)
        return ordered.view(ctx.shape)


@pytest.mark.parametrize("where", ["forward", "backward", "strides"])
def test_a_model_that_needs_contiguous_images_is_given_them(where: str) -> None:
    model = Views(where).eval()
    x = torch.rand(24, 3, 11, 11, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        y = model(x).argmax(1)
    fast = Short().run(model, x, y, norm="Linf", eps=0.01)
    reference = Short(engine="reference").run(model, x, y, norm="Linf", eps=0.01)
    agree = sum(one == other for one, other in zip(fast.verdicts, reference.verdicts, strict=True))
    assert agree >= 22 and len(set(fast.verdicts)) > 1


# Types


@pytest.mark.parametrize(
    "change",
    [
        lambda x, y: (x.double(), y.int()),
        lambda x, y: (x, y.to(torch.uint8)),
        lambda x, y: (x.to(memory_format=torch.channels_last), y),
        lambda x, y: (x.clone().requires_grad_(), y),
    ],
    ids=["float64 and int32", "uint8 labels", "channels last", "requires grad"],
)
def test_examples_of_another_type_are_converted(change: Any) -> None:
    model = Conv(dtype=torch.float32)
    x, y = examples(model, 18)
    expected = PGDAttack(steps=3).run(model, x, y, norm="Linf", eps=0.02)
    found = PGDAttack(steps=3).run(model, *change(x, y), norm="Linf", eps=0.02)
    assert found.verdicts == expected.verdicts and torch.equal(found.x_adv, expected.x_adv)
    assert found.x_adv.dtype == torch.float32


def test_no_examples_are_refused() -> None:
    model = Conv(dtype=torch.float32)
    with pytest.raises(InputError, match="x holds no examples; give at least one"):
        PGDAttack().run(model, torch.zeros(0, 3, 11, 11), torch.zeros(0, dtype=torch.int64), norm="Linf", eps=0.1)


def test_the_caller_s_model_is_left_as_it_was() -> None:
    model = Wrapped(WAYS["normalises"][0])
    whole = copy.deepcopy(model.__dict__["_forward_pre_hooks"])
    x, y = examples(model.net, 18)
    FGSMAttack().run(model, x, y, norm="Linf", eps=0.02)
    assert model._forward_pre_hooks == whole and not model._forward_hooks
