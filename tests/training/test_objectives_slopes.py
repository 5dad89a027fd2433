"""GradAlign and the penalty on the input's gradient: the rules by hand, their counted passes, one-step overfitting."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from test_objectives import batch, network
from test_step import Counter
from torch import Tensor, nn
from training_samples import Steps, digits, method_of, tiny_net

from sam_bench.data import to_float
from sam_bench.errors import InputError
from sam_bench.objectives import CrossEntropy, GradAlign, InputGradient
from sam_bench.objectives.gradalign import misalignment
from sam_bench.records import Radius
from sam_bench.training import load_recipe, override
from sam_bench.training.build import build_recipe
from sam_bench.training.compiling import choose_compile

seeds = st.integers(0, 1000)


def slope(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    """Each example's own gradient, one at a time; differentiable."""
    rows = []
    for image, label in zip(x, y, strict=True):
        point = image[None].clone().requires_grad_(True)
        loss = F.cross_entropy(model(point), label[None])
        rows.append(torch.autograd.grad(loss, point, create_graph=True)[0])
    return torch.cat(rows)


@given(seed=seeds, eps=st.floats(0, 0.1))
@settings(max_examples=10, deadline=None)
def test_the_input_gradient_penalty_is_the_l1_norm_of_each_examples_own_gradient(seed: int, eps: float) -> None:
    model, (x, x_adv, y) = network(), batch(seed)
    found = InputGradient(gradient_eps=Radius(eps)).losses(model, x, x_adv, y)
    expected = F.cross_entropy(model(x), y, reduction="none") + eps * slope(model, x, y).abs().sum((1, 2, 3))
    gradients = [torch.autograd.grad(each.mean(), list(model.parameters())) for each in (found, expected)]
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)
    for ours, theirs in zip(*gradients, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-12)


def test_it_is_the_largest_loss_in_a_small_ball_to_first_order() -> None:
    model, (x, x_adv, y) = network(), batch(1)
    eps = 1e-5
    corner = x + eps * slope(model, x, y).sign()
    worst = F.cross_entropy(model(corner), y, reduction="none")
    torch.testing.assert_close(
        InputGradient(gradient_eps=Radius(eps)).losses(model, x, x_adv, y), worst, rtol=0, atol=1e-8
    )


@given(seed=seeds, weight=st.floats(0.01, 3), smoothing=st.floats(0, 0.5))
@settings(max_examples=10, deadline=None)
def test_gradalign_is_the_angle_to_a_slope_that_is_held_fixed(seed: int, weight: float, smoothing: float) -> None:
    model, (x, x_adv, y) = network(), batch(seed)
    torch.manual_seed(seed)
    found = GradAlign(align_weight=weight, label_smoothing=smoothing).losses(model, x, x_adv, y)
    torch.manual_seed(seed)
    radius = (x_adv - x).abs().amax((1, 2, 3), keepdim=True)
    noisy = (x + radius * (2 * torch.rand_like(x) - 1)).clamp(0, 1)
    assert ((noisy - x).abs() <= radius).all() and not torch.equal(noisy, x)
    cosine = F.cosine_similarity(slope(model, x, y).detach().flatten(1), slope(model, noisy, y).flatten(1), eps=1e-30)
    losses = F.cross_entropy(model(x_adv), y, reduction="none", label_smoothing=smoothing)
    expected = losses + weight * (1 - cosine)
    gradients = [torch.autograd.grad(each.mean(), list(model.parameters())) for each in (found, expected)]
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-12)
    for ours, theirs in zip(*gradients, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-7, atol=1e-10)


def test_slopes_that_are_zero_or_tiny_have_a_finite_angle() -> None:
    one = torch.tensor([[0.0, 0.0], [1e-30, 0.0], [3.0, 4.0], [1.0, 0.0]], requires_grad=True)
    other = torch.tensor([[1.0, 0.0], [0.0, 1e-30], [6.0, 8.0], [-1.0, 0.0]])
    found = misalignment(one, other)
    found.sum().backward()
    torch.testing.assert_close(found, torch.tensor([0.0, 1.0, 0.0, 2.0]))
    assert one.grad is not None and bool(one.grad[[0, 2, 3]].isfinite().all())


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize(
    "recipe",
    [{"objective": "gradalign", "inputs": "fgsm"}, {"objective": "input-gradient"}],
    ids=lambda x: x["objective"],
)
@pytest.mark.parametrize("weights", ["none", "sam", "noise"])
def test_the_passes_counted_are_those_run(recipe: dict[str, str], weights: str, precision: str) -> None:
    model = tiny_net().train()
    counter = Counter(model)
    method = method_of("standard", {**recipe, "weights": weights})
    step = Steps(model, method, seed=0, precision=precision)  # type: ignore[arg-type]
    split = digits().head(16)
    for number in range(2):
        result = step.at(to_float(split.images), split.labels, step=number, progress=number / 2)
        assert bool(result.loss.isfinite())
    counted, run = step.passes, counter.passes
    assert (counted.train_forward, counted.train_backward) == (run.train_forward, run.train_backward)
    assert (counted.attack_forward, counted.attack_backward) == (run.attack_forward, run.attack_backward)


def test_without_weight_the_penalty_is_plain_training_and_costs_no_pass() -> None:
    model, (x, x_adv, y) = network(), batch()
    found = InputGradient(gradient_eps=Radius(0)).losses(model, x, x_adv, y)
    assert torch.equal(found, CrossEntropy().losses(model, x, x, y))
    assert InputGradient(gradient_eps=Radius(0)).passes == (1, 1)


def test_such_a_run_is_not_compiled_and_says_why() -> None:
    built = build_recipe(load_recipe("input-gradient"))
    model, device = tiny_net(), torch.device("cpu")
    compiled, why = choose_compile("auto", model, built, shape=(1, 8, 8), examples=10**9, device=device, rows=8)
    assert not compiled and why == "objective input-gradient differentiates a gradient, which torch.compile cannot"
    with pytest.raises(InputError, match="compile='on' cannot be had: objective input-gradient differentiates"):
        choose_compile("on", model, built, shape=(1, 8, 8), examples=1, device=device, rows=8)


def test_masks_and_noise_are_the_same_in_both_passes_of_sam() -> None:
    model, split = tiny_net().train(), digits().head(16)
    outcomes = []
    for _ in range(2):
        copied = copy.deepcopy(model)
        recipe = override(load_recipe("gradalign"), {"weights": "sam", "rho": 0, "crop_padding": 1})
        step = Steps(copied, build_recipe(recipe), seed=0, precision="fp32")
        step.at(to_float(split.images), split.labels, step=3, progress=0.5)
        outcomes.append(copied.state_dict())
    plain = copy.deepcopy(model)
    step = Steps(plain, build_recipe(override(load_recipe("gradalign"), {"crop_padding": 1})), seed=0, precision="fp32")
    step.at(to_float(split.images), split.labels, step=3, progress=0.5)
    for found in outcomes:
        assert all(torch.equal(value, plain.state_dict()[name]) for name, value in found.items())
