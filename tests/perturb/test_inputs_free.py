"""Free-AT against the algorithm written out, and what becomes of its perturbation between batches."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from test_inputs_prior import EPS, batches, net
from torch import Tensor, nn

from sam_bench.perturb.inputs import INPUT_PERTURBATIONS, InputPerturbation
from sam_bench.perturb.weights import StepContext
from sam_bench.records import ComponentSpec, Recipe
from sam_bench.seeds import generator, row_generator
from sam_bench.training import BuiltRecipe, build_recipe
from sam_bench.training.step import TrainingStep

LR = 0.3


def method(inputs: ComponentSpec, **parts: Any) -> BuiltRecipe:
    return build_recipe(
        Recipe(
            name="free",
            summary="for the test",
            inputs=inputs,
            optimizer=ComponentSpec(method="sgd", lr=LR, momentum=0, weight_decay=0),
            schedule=ComponentSpec(method="constant"),
            **parts,
        )
    )


def learned(model: nn.Module, recipe: BuiltRecipe, sizes: list[int], **options: Any) -> list[Tensor]:
    step = TrainingStep(model, recipe, precision="fp32", **options)
    for number, (x, y) in enumerate(batches(sizes)):
        step(x, y, at=StepContext(0, 0, number, number / len(sizes)))
    return list(model.parameters())


@pytest.mark.parametrize("micro_batch", [None, 2])
def test_three_batches_are_the_algorithm_written_out(micro_batch: int | None) -> None:
    """Each replay learns at the perturbed images; the same backward pass moves the perturbation."""
    ours, theirs, replays, size = net(), net(), 3, 0.06
    recipe = method(ComponentSpec(method="free", eps=EPS, step_size=size, replays=replays))
    step = TrainingStep(ours, recipe, precision="fp32", micro_batch=micro_batch)
    delta = torch.zeros(6, 3, 2, 2, dtype=torch.float64)
    for number, (x, y) in enumerate(batches([6, 4, 6])):
        result = step(x, y, at=StepContext(0, 0, number, number / 3))
        for _ in range(replays):
            images = (x + delta[: len(x)]).clamp(0, 1).requires_grad_()
            loss = F.cross_entropy(theirs(images), y)
            slope, *gradients = torch.autograd.grad(loss, [images, *theirs.parameters()])
            delta[: len(x)] = (delta[: len(x)] + size * slope.sign()).clamp(-EPS, EPS)
            with torch.no_grad():
                for parameter, gradient in zip(theirs.parameters(), gradients, strict=True):
                    parameter -= LR * gradient
        torch.testing.assert_close(result.loss, loss.detach(), rtol=0, atol=1e-12)
        assert (result.passes.train_forward, result.passes.train_backward) == (3 * len(x), 3 * len(x))
        assert (result.passes.attack_forward, result.passes.attack_backward) == (0, 0)
    for mine, his in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(mine, his, rtol=0, atol=1e-12)


def test_one_replay_of_radius_0_is_standard_training() -> None:
    free, plain = (ComponentSpec(method="free", eps=0, replays=1), ComponentSpec(method="none"))
    for mine, his in zip(learned(net(), method(free), [6, 4]), learned(net(), method(plain), [6, 4]), strict=True):
        assert torch.equal(mine, his)


def _moved() -> InputPerturbation:
    attack = INPUT_PERTURBATIONS.build(ComponentSpec(method="free", eps=EPS))
    attack.follow(torch.randn(4, 3, 2, 2, generator=generator("slope"), dtype=torch.float64))
    return attack


def test_the_perturbation_survives_saving_and_is_forgotten_when_a_run_begins() -> None:
    ((x, y),), attack, fresh = batches([4]), _moved(), INPUT_PERTURBATIONS.build(ComponentSpec(method="free", eps=EPS))
    fresh.load_state_dict(copy.deepcopy(attack.state_dict()))
    moved = [each.perturb(net(), x, y, generator=generator(1)) for each in (attack, fresh)]
    assert torch.equal(*moved) and not torch.equal(moved[0], x)
    fresh.forget()
    assert torch.equal(fresh.perturb(net(), x, y, generator=generator(1)), x)


def test_a_part_of_a_batch_has_the_perturbations_of_its_places() -> None:
    ((x, y),), attack = batches([4]), _moved()
    whole = attack.perturb(net(), x, y, generator=row_generator(1, first=0, total=4))
    part = attack.perturb(net(), x[2:], y[2:], generator=row_generator(1, first=2, total=4))
    assert torch.equal(part, whole[2:])


def test_with_sam_the_images_follow_the_gradients_of_both_passes() -> None:
    ((x, y),), model, rho = batches([4]), net(), 0.5
    recipe = method(ComponentSpec(method="free", eps=EPS, replays=1), weights=ComponentSpec(method="sam", rho=rho))
    images, theirs = x.clone().requires_grad_(), net()
    slope, *gradients = torch.autograd.grad(F.cross_entropy(theirs(images), y), [images, *theirs.parameters()])
    length = torch.stack([gradient.norm() for gradient in gradients]).norm()
    with torch.no_grad():
        for parameter, gradient in zip(theirs.parameters(), gradients, strict=True):
            parameter += rho * gradient / length
    (second,) = torch.autograd.grad(F.cross_entropy(theirs(images), y), images)
    TrainingStep(model, recipe, precision="fp32")(x, y, at=StepContext(0, 0, 0, 0.0))
    assert torch.equal(recipe.inputs.state_dict()["delta"], EPS * (slope + second).sign())
    assert not torch.equal(slope.sign(), (slope + second).sign())


@pytest.mark.parametrize("settings", [{"tensor_share": 0.6, "example_share": 0.5}, {"perturb_only": "last"}])
def test_images_follow_the_first_pass_also_where_it_is_for_a_part_of_the_weights(settings: dict[str, Any]) -> None:
    """ESAM's second pass sees half of the examples: by itself it would leave the other half where they are."""
    ((x, y),) = batches([6])
    weights = ComponentSpec(method="esam", rho=0.1, **settings)
    recipe = method(ComponentSpec(method="free", eps=EPS, replays=1), weights=weights)
    TrainingStep(net(), recipe, precision="fp32")(x, y, at=StepContext(0, 0, 0, 0.0))
    assert bool((recipe.inputs.state_dict()["delta"].abs() == EPS).all())


def test_an_epoch_costs_its_replays() -> None:
    assert method(ComponentSpec(method="free", replays=8)).passes_per_epoch == 8
