"""Objectives against torch's own functions, the papers' equations and finite differences."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from training_samples import Steps, assert_same, digits, method_of, tiny_net

from sam_bench.data import to_float
from sam_bench.errors import InputError
from sam_bench.objectives import MART, OBJECTIVES, TRADES, CrossEntropy
from sam_bench.objectives.mart import boosted_cross_entropy
from sam_bench.records import ComponentSpec
from sam_bench.seeds import generator
from sam_bench.training import build_recipe, load_recipe, override

seeds = st.integers(0, 1000)


def network(*, norm: bool = False) -> nn.Sequential:
    torch.manual_seed(0)
    layer: nn.Module = nn.BatchNorm1d(7) if norm else nn.Identity()
    return nn.Sequential(nn.Flatten(), nn.Linear(12, 7), layer, nn.Tanh(), nn.Linear(7, 4)).double()


def batch(seed: int = 0, count: int = 6) -> tuple[Tensor, Tensor, Tensor]:
    draws = generator(seed, "batch")
    x = torch.rand(count, 3, 2, 2, generator=draws, dtype=torch.float64)
    x_adv = (x + 0.3 * torch.randn(x.shape, generator=draws, dtype=torch.float64)).clamp(0, 1)
    return x, x_adv, torch.randint(4, (count,), generator=draws)


@given(seed=seeds, smoothing=st.floats(0, 0.9))
@settings(max_examples=20, deadline=None)
def test_cross_entropy_is_torchs_at_the_perturbed_inputs(seed: int, smoothing: float) -> None:
    model, (x, x_adv, y) = network(), batch(seed)
    found = CrossEntropy(label_smoothing=smoothing).losses(model, x, x_adv, y)
    expected = F.cross_entropy(model(x_adv), y, label_smoothing=smoothing)
    torch.testing.assert_close(found.mean(), expected, rtol=1e-12, atol=1e-12)


@given(seed=seeds, beta=st.floats(0, 10))
@settings(max_examples=20, deadline=None)
def test_trades_is_cross_entropy_plus_torchs_kl_with_both_gradients(seed: int, beta: float) -> None:
    model, (x, x_adv, y) = network(), batch(seed)
    gradients = []
    kl = F.kl_div(model(x_adv).log_softmax(1), model(x).softmax(1), reduction="batchmean")
    for loss in (F.cross_entropy(model(x), y) + beta * kl, TRADES(beta=beta).losses(model, x, x_adv, y).mean()):
        gradients.append([loss.detach(), *torch.autograd.grad(loss, list(model.parameters()))])
    for ours, expected in zip(*gradients, strict=True):
        torch.testing.assert_close(ours, expected, rtol=1e-9, atol=1e-12)


@given(seed=seeds, beta=st.floats(0, 10))
@settings(max_examples=20, deadline=None)
def test_mart_is_the_papers_equation_of_probabilities(seed: int, beta: float) -> None:
    model, (x, x_adv, y) = network(), batch(seed)
    found = MART(beta=beta).losses(model, x, x_adv, y)
    for row, (clean, perturbed, label) in enumerate(
        zip(model(x).softmax(1).tolist(), model(x_adv).softmax(1).tolist(), y.tolist(), strict=True)
    ):
        rival = max(p for k, p in enumerate(perturbed) if k != label)
        boosted = -torch.tensor(perturbed[label]).log() - torch.tensor(1 - rival).log()
        kl = sum(p * torch.tensor(p / q).log() for p, q in zip(clean, perturbed, strict=True))
        assert found[row].item() == pytest.approx(float(boosted + beta * kl * (1 - clean[label])), rel=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_marts_margin_is_finite_where_a_probability_is_one(dtype: torch.dtype) -> None:
    logits = torch.tensor([[200.0, -200.0, 0.0], [-200.0, 200.0, 0.0]], dtype=dtype, requires_grad=True)
    found = boosted_cross_entropy(logits.float(), torch.tensor([0, 0]))
    found.sum().backward()
    # Right and sure: nothing left to gain. Wrong and sure: both terms are as large as the margin.
    assert found.tolist() == pytest.approx([0.0, 600.0]) and logits.grad.isfinite().all()


@pytest.mark.parametrize("name", [name for name in OBJECTIVES.names() if name != "gradalign"])  # holds a slope fixed
def test_every_objectives_gradient_is_that_of_finite_differences(name: str) -> None:
    objective = OBJECTIVES.build(ComponentSpec(method=name))
    model, (x, x_adv, y) = network(), batch(3)
    parameters = list(model.parameters())
    draws = generator("direction")
    direction = [torch.randn(each.shape, generator=draws, dtype=torch.float64) for each in parameters]
    slopes = torch.autograd.grad(objective.losses(model, x, x_adv, y).sum(), parameters)
    slope = sum((a * b).sum() for a, b in zip(slopes, direction, strict=True))
    values = []
    for sign in (1, -1):
        moved = copy.deepcopy(model)
        with torch.no_grad():
            for parameter, step in zip(moved.parameters(), direction, strict=True):
                parameter.add_(step, alpha=sign * 1e-6)
            values.append(objective.losses(moved, x, x_adv, y).sum())
    assert slope.item() == pytest.approx(((values[0] - values[1]) / 2e-6).item(), rel=1e-6)


@pytest.mark.parametrize(
    "settings", [{"method": name} for name in OBJECTIVES.names()] + [{"method": "trades", "beta": 0}]
)
def test_every_objective_runs_the_passes_it_counts_and_the_clean_inputs_first(settings: dict[str, Any]) -> None:
    objective = OBJECTIVES.build(ComponentSpec(**settings))
    model, (x, x_adv, y) = network(), batch()
    seen: list[Tensor] = []

    def score(images: Tensor) -> Tensor:
        seen.append(images)
        logits: Tensor = model(images)
        return logits

    found = objective.losses(score, x, x_adv, y)
    assert found.shape == (6,) and len(seen) == objective.passes[0]
    # One pass back for every pass forward, and one more through a gradient that is differentiated itself.
    assert objective.passes[1] == len(seen) + objective.differentiates_slopes
    assert torch.equal(seen[0], x if objective.compares_inputs or not objective.sees_perturbed else x_adv)


@pytest.mark.parametrize("name", ["trades", "mart"])
def test_batch_norm_sees_clean_and_perturbed_inputs_one_after_the_other(name: str) -> None:
    model, (x, x_adv, y) = network(norm=True).train(), batch()
    expected = copy.deepcopy(model)
    OBJECTIVES.build(ComponentSpec(method=name)).losses(model, x, x_adv, y)
    expected(x), expected(x_adv)
    assert_same(dict(model.state_dict()), dict(expected.state_dict()))


def test_trades_with_beta_zero_is_plain_training_bit_for_bit() -> None:
    split = digits().head(16)
    x, y = to_float(split.images), split.labels
    states = []
    for chosen in ({}, {"objective": "trades", "beta": 0, "inputs": "pgd", "steps": 2}):
        model = tiny_net().train()
        step = Steps(model, method_of("standard", chosen), seed=0, precision="fp32")
        for number in range(4):
            step.at(x, y, step=number, progress=number / 4)
        states.append({**model.state_dict(), "momentum": list(step.optimizer.state_dict()["state"].values())})
        assert (step.passes.attack_forward, step.passes.train_forward) == (0, 4 * 16)  # nobody looks: no search
    assert_same(states[0], states[1])


@pytest.mark.parametrize("name", ["trades", "mart", "gradalign"])
@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        ({}, "the recipe has none; choose inputs among fgsm, .*pgd.* or objective cross-entropy"),
        ({"inputs": "pgd", "eps": 0}, "its pgd has radius 0"),
        ({"inputs": "gaussian", "std": 0}, "its gaussian has radius 0"),
    ],
)
def test_an_objective_that_compares_inputs_is_refused_where_nothing_moves_them(
    name: str, inputs: dict[str, Any], message: str
) -> None:
    with pytest.raises(InputError, match=f"objective '{name}' compares clean with perturbed inputs, and .*{message}"):
        build_recipe(override(load_recipe("standard"), {"objective": name, **inputs}))


def test_a_search_of_inputs_that_the_objective_never_looks_at_is_refused() -> None:
    with pytest.raises(InputError, match="looks at the clean inputs alone, so the recipe's pgd would do nothing"):
        build_recipe(override(load_recipe("at"), {"objective": "input-gradient"}))
    build_recipe(override(load_recipe("at"), {"objective": "input-gradient", "inputs": "none"}))
