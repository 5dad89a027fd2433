"""LookSAM: another library's over fifty steps, and what is reused between two ascents."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pytorch_optimizer.optimizer.sam import LookSAM as ReferenceLookSAM
from torch import Tensor
from weights_samples import (
    OneTensor,
    batch_loss,
    build,
    data,
    deviation,
    flat,
    largest_difference,
    net,
    plain_gradient,
    used_gradient,
)

from sam_bench.perturb.inputs import cross_entropy
from sam_bench.perturb.weights import NoWeightPerturbation
from sam_bench.perturb.weights.looksam import LookSAM


@pytest.mark.parametrize(("interval", "rho"), [(1, 0.1), (5, 0.1), (5, 0.5), (10, 0.1)])
def test_looksam_agrees_with_pytorch_optimizer_over_fifty_steps(interval: int, rho: float) -> None:
    """Theirs takes its norms tensor by tensor, the paper over all: theirs gets the network as one tensor."""
    x, y = data()
    ours, theirs = net(), OneTensor(net())
    perturbation = LookSAM(rho=rho, interval=interval, alpha=0.7)
    optimizer = torch.optim.SGD(ours.parameters(), lr=0.1, momentum=0.9, weight_decay=5e-4)
    reference = ReferenceLookSAM(
        theirs.parameters(), torch.optim.SGD, rho=rho, k=interval, alpha=0.7, lr=0.1, momentum=0.9, weight_decay=5e-4
    )

    def closure() -> Tensor:
        reference.zero_grad()
        loss = cross_entropy(theirs(x), y).mean()
        loss.backward()
        return loss

    for step in range(50):
        perturbation.backward(batch_loss(ours, x, y, step=step))
        optimizer.step()
        closure()
        reference.step(closure)
    weights = flat(list(ours.parameters()))
    assert deviation(f"looksam k {interval}, pytorch_optimizer after 50 steps", weights, theirs.vector) < 1e-5


@given(seed=st.integers(0, 1000), rho=st.floats(0.05, 1), alpha=st.floats(0, 2), width=st.integers(2, 20))
@settings(max_examples=20, deadline=None)
def test_between_two_ascents_the_gradient_is_turned_by_a_part_orthogonal_to_the_one_it_came_from(
    seed: int, rho: float, alpha: float, width: int
) -> None:
    model, (x, y) = net(width=width, seed=seed), data(seed)
    other_x, other_y = data(seed + 1)
    perturbation = LookSAM(rho=rho, interval=3, alpha=alpha)
    sharp = flat(used_gradient(perturbation, model, x, y, step=0))
    plain = flat(plain_gradient(model, x, y))
    turn = sharp - (sharp @ plain) / (plain @ plain) * plain
    for step in (1, 2):
        batch = batch_loss(model, other_x, other_y, step=step)
        perturbation.backward(batch)
        now = flat(plain_gradient(model, other_x, other_y))
        used = flat([parameter.grad for parameter in model.parameters() if parameter.grad is not None])
        assert deviation("looksam, closed form", used, now + alpha * now.norm() / turn.norm() * turn) < 1e-7
        assert (batch.passes.forward, batch.passes.backward) == (1, 1)


def test_with_alpha_zero_it_is_sam_in_every_so_many_th_step() -> None:
    model, (x, y) = net(), data()
    looks, sam = LookSAM(rho=0.3, alpha=0, interval=4), build("sam", rho=0.3, interval=4)
    for step in range(9):
        gradients = [used_gradient(each, model, x, y, step=step) for each in (looks, sam)]
        assert all(torch.equal(one, other) for one, other in zip(*gradients, strict=True))


def test_what_is_reused_covers_the_weights_that_are_not_perturbed_too() -> None:
    model, (x, y) = net(batch_norm=True), data()
    perturbation = LookSAM(rho=0.3, perturb_only="last", interval=2)
    sharp = flat(used_gradient(perturbation, model, x, y, step=0))
    plain = flat(used_gradient(NoWeightPerturbation(), model, x, y))
    turn = sharp - (sharp @ plain) / (plain @ plain) * plain
    used = flat(used_gradient(perturbation, model, x, y, step=1))
    torch.testing.assert_close(used, plain + 0.7 * plain.norm() / turn.norm() * turn, rtol=1e-5, atol=1e-8)
    assert largest_difference([turn[: 6 * 16]], [torch.zeros(6 * 16, dtype=turn.dtype)]) > 1e-3


def test_where_there_is_nothing_to_reuse_yet_there_is_an_ascent_whatever_the_step() -> None:
    model, perturbation, passes = net(), LookSAM(rho=0.3, interval=5), []
    for step in (3, 4, 5, 6):
        batch = batch_loss(model, *data(), step=step)
        perturbation.backward(batch)
        passes.append(batch.passes.backward)
    assert passes == [2, 1, 2, 1]
