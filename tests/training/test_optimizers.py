"""Optimizers: fused equals plain whatever the layout, a resumed one continues bitwise, timm's by name."""

from __future__ import annotations

import io
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from sam_bench.errors import InputError
from sam_bench.records import ComponentSpec
from sam_bench.training.optimizers import OPTIMIZERS, Optimizer, timm_optimizers

SHAPES = ((8, 3, 3, 3), (8,), (16, 8, 3, 3), (16, 8, 1, 1), (10, 16), (1,))
DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA"))]
OURS = {
    "sgd": {"method": "sgd", "lr": 0.1},
    "nesterov": {"method": "sgd", "lr": 0.1, "nesterov": True},
    "no momentum": {"method": "sgd", "lr": 0.1, "momentum": 0.0},
    "adamw": {"method": "adamw"},
}
PLAIN: dict[str, Callable[[list[nn.Parameter]], torch.optim.Optimizer]] = {
    "sgd": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, weight_decay=5e-4, foreach=False),
    "nesterov": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, weight_decay=5e-4, nesterov=True, foreach=False),
    "no momentum": lambda p: torch.optim.SGD(p, lr=0.1, weight_decay=5e-4, foreach=False),
    "adamw": lambda p: torch.optim.AdamW(p, lr=1e-3, weight_decay=0.05, foreach=False),
}


def build(**spec: Any) -> Optimizer:
    return OPTIMIZERS.build(ComponentSpec(**spec))


def weights(device: str = "cpu", *, channels_last: bool = True) -> list[nn.Parameter]:
    draws = torch.Generator().manual_seed(0)
    made = []
    for shape in SHAPES:
        tensor = torch.randn(shape, generator=draws).to(device)
        if tensor.ndim == 4 and channels_last:
            tensor = tensor.contiguous(memory_format=torch.channels_last)
        made.append(nn.Parameter(tensor))
    return made


def descend(
    optimizer: torch.optim.Optimizer, parameters: list[nn.Parameter], steps: range, layout: str = "own"
) -> None:
    """Gradients that depend on the step's number and the weights, in the parameter's layout or in another."""
    for step in steps:
        draws = torch.Generator().manual_seed(step)
        for group in optimizer.param_groups:
            group["lr"] *= 0.97
        for parameter in parameters:
            noise = torch.randn(parameter.shape, generator=draws).to(parameter.device)
            gradient = (noise + 0.1 * parameter.detach()).contiguous()
            parameter.grad = gradient if layout == "other" else torch.empty_like(parameter).copy_(gradient)
        optimizer.step()


def relative_difference(one: list[nn.Parameter], other: list[nn.Parameter]) -> float:
    return max(float(((a - b).norm() / b.norm()).detach()) for a, b in zip(one, other, strict=True))


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("layout", ["own", "other"])
@pytest.mark.parametrize("name", OURS)
def test_the_fused_step_is_the_plain_one_whatever_the_gradients_memory_layout(
    name: str, layout: str, device: str
) -> None:
    ours, plain = weights(device), weights(device)
    fused = build(**OURS[name]).build(ours)
    assert fused.param_groups[0]["fused"] is True
    descend(fused, ours, range(20), layout)
    descend(PLAIN[name](plain), plain, range(20), layout)
    assert relative_difference(ours, plain) < 1e-6


def test_parameters_that_no_fused_kernel_takes_are_stepped_several_at_a_time() -> None:
    parameters = [nn.Parameter(torch.ones(3, device="meta"))]
    groups = build(method="sgd").build(parameters).param_groups
    assert groups[0]["foreach"] is True and not groups[0]["fused"]


def resumed_difference(spec: dict[str, Any], *, channels_last_afterwards: bool = True) -> float:
    """Between weights after 6 steps, and after 3, a trip through a file, and 3 more."""
    straight = weights()
    descend(build(**spec).build(straight), straight, range(3))
    halfway = weights()
    before = build(**spec).build(halfway)
    descend(before, halfway, range(3))
    file = io.BytesIO()
    torch.save({"weights": list(halfway), "optimizer": before.state_dict()}, file)
    file.seek(0)
    loaded = torch.load(file, weights_only=True)
    resumed = weights(channels_last=channels_last_afterwards)
    with torch.no_grad():
        for parameter, saved in zip(resumed, loaded["weights"], strict=True):
            parameter.copy_(saved)
    after = build(**spec).build(resumed)
    after.load_state_dict(loaded["optimizer"])
    descend(before, halfway, range(3, 6))
    descend(after, resumed, range(3, 6))
    return max(float((a - b).detach().abs().max()) for a, b in zip(halfway, resumed, strict=True))


@pytest.mark.parametrize("spec", OURS.values(), ids=OURS)
@pytest.mark.parametrize("channels_last", [True, False])
def test_a_saved_optimizer_continues_bitwise_in_either_memory_layout(spec: dict[str, Any], channels_last: bool) -> None:
    assert resumed_difference(spec, channels_last_afterwards=channels_last) == 0.0


@pytest.mark.parametrize("opt", [*timm_optimizers(), "lookahead_lamb"])
def test_every_optimizer_of_timm_lowers_a_loss_and_continues_bitwise(opt: str) -> None:
    spec = {"method": "timm", "opt": opt, "lr": 0.01, "weight_decay": 0.01}
    assert resumed_difference(spec) == 0.0
    torch.manual_seed(0)
    model, x = nn.Linear(6, 4), torch.randn(32, 6)
    y = x[:, :4].argmax(1)
    optimizer = build(**spec).build(model.parameters())
    losses: list[Tensor] = []
    for _ in range(30):
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(model(x), y)
        losses.append(loss.detach())
        loss.backward()
        optimizer.step()
    assert math.isfinite(losses[-1]) and losses[-1] < losses[0]


@settings(max_examples=30, deadline=None)
@given(lr=st.floats(1e-4, 1), weight_decay=st.floats(0.001, 0.5))
def test_timms_sgd_decays_every_parameter_as_ours_does(lr: float, weight_decay: float) -> None:
    common = {"lr": lr, "weight_decay": weight_decay}
    ours, theirs = weights(), weights()
    descend(build(method="sgd", nesterov=True, **common).build(ours), ours, range(3))
    descend(build(method="timm", opt="sgd", **common).build(theirs), theirs, range(3))
    assert relative_difference(ours, theirs) < 1e-5


def test_timms_settings_reach_the_optimizer() -> None:
    spec = {"opt": "AdamW", "lr": 0.5, "weight_decay": 0.3, "beta1": 0.8, "beta2": 0.7, "opt_eps": 1e-3}
    (group,) = build(method="timm", **spec).build(weights()).param_groups
    assert (group["lr"], group["weight_decay"], group["betas"], group["eps"]) == (0.5, 0.3, (0.8, 0.7), 1e-3)
    (group,) = build(method="timm", opt="momentum", momentum=0.6).build(weights()).param_groups
    assert group["momentum"] == 0.6


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ({"opt": "lyon"}, r"optimizer\.opt: .*unknown optimizer of timm 'lyon'.* Did you mean 'lion'"),
        ({"opt": "lookahead_adm"}, r"Did you mean .*'adam'"),
        ({"opt": "adahessian"}, r"'adahessian' cannot be used here: its step needs the gradient's graph"),
        ({"opt": "lookahead_adahessian"}, r"cannot be used here: its step needs the gradient's graph"),
        ({"opt": "fusedlamb"}, r"needs NVIDIA's apex"),
        ({"opt": "bnbadam8bit"}, r"needs bitsandbytes"),
        ({}, r"optimizer\.opt: .*required"),
        ({"opt": "lion", "lr": 0}, r"optimizer\.lr: .*greater than 0"),
        ({"opt": "lion", "beta1": 0.9}, r"optimizer\.beta1 and optimizer\.beta2 are given together"),
        ({"opt": "momentum", "beta1": 0.9, "beta2": 0.9}, r"timm's 'momentum' cannot be built: .*betas"),
    ],
)
def test_what_timm_cannot_do_for_us_is_refused_in_one_sentence(spec: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        build(method="timm", **spec).build(weights())
    assert "\n" not in str(caught.value)


def test_nesterov_without_momentum_is_refused_by_the_name_of_the_field() -> None:
    with pytest.raises(InputError, match=r"^optimizer\.nesterov: needs a momentum above 0, and momentum is 0$"):
        build(method="sgd", nesterov=True, momentum=0)
