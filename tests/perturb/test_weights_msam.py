"""Momentum-SAM: the algorithm by hand, one pass, and the weights of an interrupted step."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from weights_samples import batch_loss, data, deviation, flat, net, plain_gradient, used_gradient

from sam_bench.errors import InputError
from sam_bench.perturb import MSAM
from sam_bench.perturb.weights import NoWeightPerturbation
from sam_bench.training import build_recipe, load_recipe, override
from sam_bench.training.optimizers import timm_optimizers
from sam_bench.training.step import TrainingStep


def by_hand(model: nn.Module, rho: float, steps: int, decay: float) -> list[Tensor]:
    """Algorithm 1 of the paper: the weights stay perturbed from step to step, and are put back at the end."""
    weights, shapes = flat(list(model.parameters())), [each.shape for each in model.parameters()]
    momentum, perturbed = torch.zeros_like(weights), weights.clone()

    def unit(vector: Tensor) -> Tensor:
        return vector / vector.norm() if vector.norm() > 0 else vector

    for step in range(steps):
        x, y = data(step)
        pieces = perturbed.split([shape.numel() for shape in shapes])
        with torch.no_grad():
            for parameter, piece in zip(model.parameters(), pieces, strict=True):
                parameter.copy_(piece.view_as(parameter))
        gradient = flat(plain_gradient(model, x, y))
        weights = perturbed + rho * unit(momentum)
        momentum = 0.9 * momentum + gradient + decay * weights
        weights = weights - 0.1 * momentum
        perturbed = weights - rho * unit(momentum)
    return [perturbed + rho * unit(momentum)]


@pytest.mark.parametrize(("rho", "decay"), [(0.0, 5e-4), (0.3, 0.0), (3.0, 5e-4)])
def test_it_is_the_papers_algorithm_over_twenty_steps(rho: float, decay: float) -> None:
    model = net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=decay)
    for step in range(20):
        x, y = data(step)
        MSAM(rho=rho).step_gradients(model, F.cross_entropy, x, y, optimizer=optimizer)
        optimizer.step()
    (expected,) = by_hand(net(), rho, 20, decay)
    assert deviation("msam, the algorithm by hand over 20 steps", flat(list(model.parameters())), expected) < 1e-9


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_the_one_pass_is_at_the_length_rho_against_the_momentum_and_leaves_the_weights_alone(optimizer: str) -> None:
    model, (x, y) = net(batch_norm=True), data()
    built: torch.optim.Optimizer = (
        torch.optim.SGD(model.parameters(), 0.1, momentum=0.9)
        if optimizer == "sgd"
        else torch.optim.AdamW(model.parameters(), 0.1)
    )
    NoWeightPerturbation().backward(batch_loss(model, x, y))
    built.step()
    before, seen = copy.deepcopy(list(model.parameters())), []

    def score(images: Tensor) -> Tensor:
        seen.append(flat(list(model.parameters())) - flat(before))
        logits: Tensor = model(images)
        return logits

    batch = batch_loss(model, x, y, score=score, optimizer=built)
    loss = MSAM(rho=0.7).backward(batch)
    key = "momentum_buffer" if optimizer == "sgd" else "exp_avg"
    kept = flat([built.state[parameter][key] for parameter in model.parameters()])
    (moved,) = seen
    assert deviation("msam, closed form", moved, -0.7 * kept / kept.norm()) < 1e-9
    assert all(torch.equal(one, other) for one, other in zip(before, model.parameters(), strict=True))
    assert (batch.passes.forward, batch.passes.backward) == (1, 1)
    assert model.state_dict()["1.num_batches_tracked"].item() == 2  # one step each
    # What it reports is the loss at the perturbed weights: there is no pass at the others.
    probe = copy.deepcopy(model)
    with torch.no_grad():
        for parameter, piece in zip(probe.parameters(), moved.split([p.numel() for p in before]), strict=True):
            parameter.add_(piece.view_as(parameter))
    torch.testing.assert_close(loss, F.cross_entropy(probe(x), y).detach())


def with_momentum(model: nn.Module) -> torch.optim.Optimizer:
    """SGD whose running mean of the gradients is 1 everywhere."""
    optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9)
    for parameter in model.parameters():
        optimizer.state[parameter]["momentum_buffer"] = torch.ones_like(parameter)
    return optimizer


def test_only_the_part_asked_for_is_perturbed_and_not_before_its_epoch() -> None:
    model, (x, y) = net(), data()
    plain = used_gradient(NoWeightPerturbation(), model, x, y)
    msam = MSAM(rho=0.5, perturb_only="last", start_epoch=1)
    seen: list[list[Tensor]] = []

    def score(images: Tensor) -> Tensor:
        seen.append([parameter.detach().clone() for parameter in model.parameters()])
        logits: Tensor = model(images)
        return logits

    how: dict[str, Any] = {"optimizer": with_momentum(model), "score": score}
    early = used_gradient(msam, model, x, y, epoch=0, **how)
    late = used_gradient(msam, model, x, y, epoch=1, **how)
    assert all(torch.equal(one, other) for one, other in zip(early, plain, strict=True))
    assert not torch.equal(late[0], plain[0])
    moved = [(one - other).abs().max().item() for one, other in zip(*seen, strict=True)]
    assert moved[:2] == [0, 0] and min(moved[2:]) > 0


def test_the_weights_come_back_when_its_pass_fails() -> None:
    model, (x, y) = net(), data()
    before = copy.deepcopy(model.state_dict())

    def score(images: Tensor) -> Tensor:
        raise RuntimeError("out of memory")

    with pytest.raises(RuntimeError, match="out of memory"):
        MSAM(rho=1).backward(batch_loss(model, x, y, score=score, optimizer=with_momentum(model)))
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())


def test_an_optimizer_without_momentum_is_refused() -> None:
    model, (x, y) = net(), data()
    with pytest.raises(InputError, match=r"^optimizer must be given, because this method follows the optimizer's mom"):
        MSAM().step_gradients(model, F.cross_entropy, x, y)
    plain = torch.optim.SGD(model.parameters(), lr=0.1)
    with pytest.raises(InputError, match="msam follows the optimizer's momentum, and this SGD has none; choose one"):
        MSAM().step_gradients(model, F.cross_entropy, x, y, optimizer=plain)
    recipe = build_recipe(override(load_recipe("msam"), {"momentum": 0}))
    with pytest.raises(InputError, match="this SGD has none"):
        TrainingStep(model, recipe, precision="fp32")


@pytest.mark.parametrize("opt", [*timm_optimizers(), "lookahead_sgd", "lookahead_madgrad"])
def test_timms_optimizers_have_a_momentum_to_follow_or_are_refused(opt: str) -> None:
    """No run takes plain steps throughout: a setting called momentum need not be a running mean of the gradients."""
    model, (x, y) = net(), data()
    recipe = build_recipe(override(load_recipe("msam"), {"optimizer": "timm", "opt": opt, "weight_decay": 0}))
    optimizer, msam = recipe.optimizer.build(model.parameters()), MSAM(rho=0.5)
    try:
        for _ in range(2):
            msam.step_gradients(model, F.cross_entropy, x, y, optimizer=optimizer)
            optimizer.step()
    except InputError as error:
        assert "msam follows the optimizer's momentum, and this" in str(error)
        return
    plain = used_gradient(NoWeightPerturbation(), model, x, y)
    msam.step_gradients(model, F.cross_entropy, x, y, optimizer=optimizer)
    assert not torch.equal(flat(plain), flat([parameter.grad for parameter in model.parameters()]))
