"""The loss of a batch: parts, chosen rows and parameters, losses per example, and the passes counted."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from weights_samples import batch_loss, data, largest_difference, net, plain_gradient

from sam_bench.perturb import BatchLoss
from sam_bench.perturb.inputs import cross_entropy
from sam_bench.perturb.weights import Runner, Score


def grads(model: torch.nn.Module) -> list[Tensor | None]:
    return [parameter.grad for parameter in model.parameters()]


@given(
    seed=st.integers(0, 1000),
    micro=st.integers(1, 15),
    rows=st.lists(st.integers(0, 11), min_size=1, max_size=12, unique=True),
)
@settings(max_examples=25, deadline=None)
def test_the_gradient_of_chosen_rows_in_parts_is_that_of_their_mean_loss(
    seed: int, micro: int, rows: list[int]
) -> None:
    model, (x, y) = net(seed=seed), data(seed)
    batch = batch_loss(model, x, y, micro_batch=micro)
    loss = batch.backward(rows=torch.tensor(rows)).loss
    expected = cross_entropy(model(x[rows]), y[rows])
    torch.testing.assert_close(batch.losses, expected.detach())
    assert loss.item() == pytest.approx(expected.mean().item())
    found = [gradient for gradient in grads(model) if gradient is not None]
    assert largest_difference(found, plain_gradient(model, x[rows], y[rows])) < 1e-12
    assert batch.passes.forward == batch.passes.backward == len(rows) / 12
    hits = int((model(x[rows]).argmax(1) == y[rows]).sum())
    assert batch.hits is not None and batch.hits.item() == hits * 12 // len(rows)


def test_parameters_left_out_get_no_gradient_and_cost_none() -> None:
    model, (x, y) = net(), data()
    parameters = list(model.parameters())
    computed: list[int] = []
    for index, parameter in enumerate(parameters):
        parameter.register_hook(lambda gradient, index=index: computed.append(index))
    expected = plain_gradient(model, x, y)
    computed.clear()
    batch = batch_loss(model, x, y)
    batch.backward(only=parameters[1:3])
    assert sorted(computed) == [1, 2]
    assert [gradient is None for gradient in grads(model)] == [True, False, False, True]
    found, gradients = batch.gradients()
    assert list(map(id, found)) == list(map(id, parameters[1:3]))
    assert largest_difference(gradients, expected[1:3]) < 1e-12
    sizes = [parameter.numel() for parameter in parameters]
    assert batch.passes.weight_gradients == pytest.approx(sum(sizes[1:3]) / sum(sizes))


@pytest.mark.parametrize(
    ("ascent", "sync_ascent", "own", "local"),
    [
        (False, False, False, False),
        (True, False, False, True),
        (True, True, False, False),
        (False, True, True, True),
        (False, False, True, True),
    ],
)
def test_on_several_devices_only_what_stays_is_cut_to_the_chosen_parameters(
    ascent: bool, sync_ascent: bool, own: bool, local: bool
) -> None:
    """Devices that average wait for every parameter; the contract, no gradient for the others, holds all the same."""
    model, (x, y) = net(), data()
    stays: list[bool] = []
    computed: list[int] = []
    inside = False

    @contextmanager
    def no_sync() -> Iterator[None]:
        nonlocal inside
        inside = True
        yield
        inside = False

    def score(images: Tensor) -> Tensor:
        stays.append(inside)
        logits: Tensor = model(images)
        return logits

    for index, parameter in enumerate(model.parameters()):
        parameter.register_hook(lambda gradient, index=index: computed.append(index))
    batch = batch_loss(model, x, y, score=score, no_sync=no_sync, sync_ascent=sync_ascent, micro_batch=6)
    sync = batch.runner.sync_ascent if ascent else not own
    batch.backward(sync=sync, only=list(model.parameters())[:1])
    # All but the last part of a batch stay on the device in any case.
    assert stays == [True, local]
    assert set(computed[1:]) == ({0} if local else {0, 1, 2, 3})
    assert [gradient is None for gradient in grads(model)] == [False, True, True, True]


class TwoPasses:
    """An objective that says it takes two passes."""

    passes = (2.0, 2.0)

    def losses(self, score: Score, x: Tensor, x_adv: Tensor, y: Tensor) -> Tensor:
        return cross_entropy(score(x_adv), y)


@pytest.mark.parametrize("micro", [None, 5])
def test_a_look_gives_every_loss_without_a_gradient(micro: int | None) -> None:
    model, (x, y) = net(batch_norm=True), data()
    batch = BatchLoss(model, x, y, objective=TwoPasses(), runner=Runner(micro_batch=micro), at=None)
    statistics = model.state_dict()["1.running_mean"].clone()
    losses = batch.evaluate(update_bn=False)
    if micro is None:
        assert torch.equal(model.state_dict()["1.running_mean"], statistics)
        torch.testing.assert_close(losses, cross_entropy(model(x), y).detach())
    assert len(losses) == 12 and not losses.requires_grad and torch.equal(losses, batch.losses)
    assert grads(model) == [None] * 6
    assert (batch.passes.forward, batch.passes.backward) == (2, 0)
    batch.evaluate()
    assert not torch.equal(model.state_dict()["1.running_mean"], statistics)


def test_no_parameter_keeps_a_gradient_of_an_earlier_pass() -> None:
    model, (x, y) = net(), data()
    batch = batch_loss(model, x, y)
    batch.backward()
    first = [gradient for gradient in grads(model) if gradient is not None]
    before = [gradient.clone() for gradient in first]
    batch.backward(rows=torch.tensor([0]))
    # The earlier ones are the caller's to change: nothing was written into them.
    assert all(torch.equal(one, other) for one, other in zip(first, before, strict=True))
    assert all(one is not other for one, other in zip(first, grads(model), strict=True))
