"""Entropy-SGD against the algorithm written out, and what its inner steps see."""

from __future__ import annotations

import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from weights_samples import batch_loss, data, deviation, flat, largest_difference, net, plain_gradient, used_gradient

from sam_bench.perturb.weights.entropy_sgd import EntropySGD


@given(
    seed=st.integers(0, 1000),
    steps=st.integers(1, 6),
    lr=st.floats(0.01, 1),
    scope=st.floats(0, 1),
    average=st.floats(0, 0.95),
    momentum=st.just(0.0) | st.floats(0.1, 0.95),
)
@settings(max_examples=25, deadline=None)
def test_without_noise_it_is_the_algorithm_written_out(
    seed: int, steps: int, lr: float, scope: float, average: float, momentum: float
) -> None:
    model, (x, y) = net(seed=seed), data(seed)
    perturbation = EntropySGD(
        inner_steps=steps, inner_lr=lr, inner_momentum=momentum, inner_noise=0, scope=scope, inner_average=average
    )
    used = used_gradient(perturbation, model, x, y)
    inner = copy.deepcopy(model)
    # PyTorch's own momentum; the pull of the scope is outside it, as in the authors' code.
    momentous = torch.optim.SGD(inner.parameters(), lr=lr, momentum=momentum, nesterov=momentum > 0)
    mean = [parameter.detach().clone() for parameter in model.parameters()]
    for _ in range(steps):
        pull = [lr * scope * (w - moving) for w, moving in zip(model.parameters(), inner.parameters(), strict=True)]
        for moving, gradient in zip(inner.parameters(), plain_gradient(inner, x, y), strict=True):
            moving.grad = gradient
        momentous.step()
        with torch.no_grad():
            for moving, back, mu in zip(inner.parameters(), pull, mean, strict=True):
                moving += back
                mu.copy_(average * mu + (1 - average) * moving)
    expected = [(w - mu).detach() for w, mu in zip(model.parameters(), mean, strict=True)]
    assert deviation("entropy-sgd, written out", flat(used), flat(expected)) < 1e-9


@given(seed=st.integers(0, 1000), lr=st.floats(0.01, 1))
@settings(max_examples=10, deadline=None)
def test_one_inner_step_without_noise_is_the_plain_gradient_scaled(seed: int, lr: float) -> None:
    model, (x, y) = net(seed=seed), data(seed)
    used = used_gradient(EntropySGD(inner_steps=1, inner_noise=0, inner_lr=lr, inner_average=0), model, x, y)
    assert largest_difference(used, [lr * gradient for gradient in plain_gradient(model, x, y)]) < 1e-12


def test_the_noise_has_the_scale_of_langevin_dynamics_and_follows_seed_and_step() -> None:
    model, (x, y) = net(width=400), data()
    quiet = EntropySGD(inner_steps=1, inner_noise=0, inner_average=0, inner_lr=0.25)
    loud = EntropySGD(inner_steps=1, inner_noise=0.1, inner_average=0, inner_lr=0.25)
    still = flat(used_gradient(quiet, model, x, y))
    first, again, later = (flat(used_gradient(loud, model, x, y, step=step, seed=1)) - still for step in (1, 1, 2))
    # sqrt(inner_lr) inner_noise, over 4,003 draws: five standard errors.
    assert first.std().item() == pytest.approx(0.5 * 0.1, rel=5 / (2 * len(first)) ** 0.5)
    assert torch.equal(first, again) and not torch.equal(first, later)


def test_a_batch_of_minibatches_gives_every_inner_step_a_fresh_one() -> None:
    """The paper's setting, as many minibatches as inner steps: every example once, at the price of one pass."""
    model, (x, y) = net(batch_norm=True), data(count=20)
    seen: list[Tensor] = []

    def score(images: Tensor) -> Tensor:
        seen.append(images)
        logits: Tensor = model(images)
        return logits

    batch = batch_loss(model, x, y, score=score)
    EntropySGD(inner_steps=5, inner_share=0.2).backward(batch)
    assert [len(images) for images in seen] == [4] * 5
    assert sorted(torch.cat(seen).tolist()) == sorted(x.tolist())
    assert (batch.passes.forward, batch.passes.backward) == (pytest.approx(1), pytest.approx(1))
    assert model.state_dict()["1.num_batches_tracked"].item() == 5
    EntropySGD(inner_steps=10, inner_share=0.2).backward(batch_loss(model, x, y))
    assert model.state_dict()["1.num_batches_tracked"].item() == 10


def test_a_learning_rate_of_one_takes_the_weights_to_the_mean_of_the_inner_ones() -> None:
    model, (x, y) = net(), data()
    losses = []
    for step in range(30):
        losses.append(EntropySGD(inner_lr=0.5).backward(batch_loss(model, x, y, step=step)).item())
        with torch.no_grad():
            for parameter in model.parameters():
                assert parameter.grad is not None
                parameter -= parameter.grad
    assert losses[-1] < 0.4 * losses[0]


def test_a_parameter_that_takes_no_part_is_left_out() -> None:
    model, (x, y) = net(), data()
    model.register_parameter("unused", nn.Parameter(torch.ones(3, dtype=torch.float64)))
    EntropySGD().backward(batch_loss(model, x, y))
    assert model.unused.grad is None and torch.equal(model.unused, torch.ones(3, dtype=torch.float64))
