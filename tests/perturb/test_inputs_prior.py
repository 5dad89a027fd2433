"""The prior of FGSM-PGI against the algorithm written out, and what becomes of it between batches."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sam_bench.objectives import OBJECTIVES
from sam_bench.perturb.inputs import INPUT_PERTURBATIONS, InputPerturbation
from sam_bench.perturb.weights import StepContext
from sam_bench.records import ComponentSpec, Recipe
from sam_bench.seeds import generator, row_generator
from sam_bench.training import build_recipe
from sam_bench.training.step import TrainingStep

EPS = 0.1


def net() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(12, 7), nn.Tanh(), nn.Linear(7, 4)).double()


def batches(sizes: list[int]) -> list[tuple[Tensor, Tensor]]:
    draws = generator("batches")
    return [
        (torch.rand(size, 3, 2, 2, generator=draws, dtype=torch.float64), torch.randint(4, (size,), generator=draws))
        for size in sizes
    ]


def prior(**settings: Any) -> InputPerturbation:
    return INPUT_PERTURBATIONS.build(ComponentSpec(method="fgsm-pgi", eps=EPS, **settings))


def test_three_steps_of_the_recipe_are_the_algorithm_written_out() -> None:
    """Start at the last perturbation of the same place, step, pair the logits of both ends, descend."""
    ours, theirs, lr, weight, smoothing = net(), net(), 0.3, 10.0, 0.4
    method = build_recipe(
        Recipe(
            name="prior",
            summary="for the test",
            inputs=ComponentSpec(method="fgsm-pgi", eps=EPS, step_size=0.08),
            objective=ComponentSpec(method="start-pairing", pairing_weight=weight, label_smoothing=smoothing),
            optimizer=ComponentSpec(method="sgd", lr=lr, momentum=0, weight_decay=0),
            schedule=ComponentSpec(method="constant"),
        )
    )
    step = TrainingStep(ours, method, precision="fp32", micro_batch=2)
    eta: Tensor | None = None
    for number, (x, y) in enumerate(batches([6, 6, 4])):
        draws = row_generator(0, "inputs", number, first=0, total=len(x))
        result = step(x, y, at=StepContext(0, 0, number, number / 3))
        begin = method.inputs.ball.sample(x, draws) if eta is None else x + eta[: len(x)]
        start = torch.minimum(torch.maximum(begin, x - EPS), x + EPS).clamp(0, 1).requires_grad_()
        (slope,) = torch.autograd.grad(F.cross_entropy(theirs(start), y), start)
        x_adv = (x + (start.detach() - x + 0.08 * slope.sign()).clamp(-EPS, EPS)).clamp(0, 1)
        near, far = theirs(start.detach()), theirs(x_adv)
        loss = F.cross_entropy(far, y, label_smoothing=smoothing) + weight * F.mse_loss(far, near)
        gradients = torch.autograd.grad(loss, list(theirs.parameters()))
        with torch.no_grad():
            for parameter, gradient in zip(theirs.parameters(), gradients, strict=True):
                parameter -= lr * gradient
        eta = x_adv - x
        torch.testing.assert_close(result.loss, loss.detach(), rtol=0, atol=1e-12)
        assert (result.passes.attack_forward, result.passes.attack_backward) == (len(x), len(x))
        assert (result.passes.train_forward, result.passes.train_backward) == (2 * len(x), 2 * len(x))
    for mine, his in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(mine, his, rtol=0, atol=1e-12)


def test_a_place_without_a_prior_starts_at_random_and_one_that_has_it_does_not() -> None:
    attack, model = prior(), net()
    (x, y), (wider, _) = batches([4, 6])
    attack.perturb(model, x, y, generator=row_generator(1, first=0, total=4))
    one, other = (attack.starting_points(wider, generator=row_generator(seed, first=0, total=6)) for seed in (2, 3))
    assert torch.equal(one[:4], other[:4]) and not torch.equal(one[4:], other[4:])


def test_a_prior_survives_saving_and_is_forgotten_when_a_run_begins() -> None:
    attack, model = prior(), net()
    (x, y), (later, _) = batches([4, 4])
    attack.perturb(model, x, y, generator=generator(1))
    fresh = prior()
    fresh.load_state_dict(copy.deepcopy(attack.state_dict()))
    starts = [each.starting_points(later, generator=generator(2)) for each in (attack, fresh)]
    assert torch.equal(*starts)
    fresh.forget()
    assert torch.equal(
        fresh.starting_points(later, generator=generator(2)), prior().starting_points(later, generator=generator(2))
    )


@pytest.mark.parametrize("name", ["fgsm", "n-fgsm", "pgd", "gaussian", "none"])
def test_the_starting_points_are_where_a_search_begins(name: str) -> None:
    """The first input that the model sees; a method that asks no model starts at the input."""
    attack = INPUT_PERTURBATIONS.build(ComponentSpec(method=name))
    ((x, y),), seen = batches([5]), []
    model = net()
    model.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].detach().clone()))
    attack.perturb(model, x, y, generator=generator(4))
    assert torch.equal(attack.starting_points(x, generator=generator(4)), seen[0] if seen else x)


def test_pairing_without_weight_is_cross_entropy() -> None:
    (x, y), (x_adv, _) = batches([5, 5])
    pairing = OBJECTIVES.build(ComponentSpec(method="start-pairing", pairing_weight=0, label_smoothing=0.1))
    plain = OBJECTIVES.build(ComponentSpec(method="cross-entropy", label_smoothing=0.1))
    model = net()
    assert torch.equal(pairing.losses(model, x, x_adv, y), plain.losses(model, x, x_adv, y))
