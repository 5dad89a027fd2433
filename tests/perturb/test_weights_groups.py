"""m-sharpness: group by group by hand, one group is SAM, and its passes."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn
from weights_samples import batch_loss, build, data, deviation, flat, net, plain_gradient, used_gradient

from sam_bench.errors import InputError
from sam_bench.perturb import SAM, WEIGHT_PERTURBATIONS
from sam_bench.perturb.inputs import cross_entropy
from sam_bench.perturb.weights.groups import GroupedAscent
from sam_bench.training import build_recipe, load_recipe, override
from sam_bench.training.step import TrainingStep

GROUPED = [cls.method for cls in WEIGHT_PERTURBATIONS if issubclass(cls, GroupedAscent)]


def test_the_methods_without_memory_are_those_with_groups() -> None:
    assert GROUPED == ["aace", "asam", "awp", "esam", "fsam", "gsam", "le-sam", "sam", "usam"]


@pytest.mark.parametrize(("m", "sizes"), [(4, [4, 4, 4]), (5, [4, 4, 4]), (1, [1] * 12), (8, [6, 6])])
@pytest.mark.parametrize("micro_batch", [None, 3])
def test_each_group_ascends_and_is_differentiated_alone(m: int, sizes: list[int], micro_batch: int | None) -> None:
    """Written out: the mean of SAM's gradients of the groups; the loss, the hits and the passes are the batch's."""
    model, (x, y) = net(), data()
    expected = [torch.zeros_like(parameter) for parameter in model.parameters()]
    for rows in torch.arange(12).split(sizes):
        gradients = plain_gradient(model, x[rows], y[rows])
        norm = flat(gradients).norm()
        probe = copy.deepcopy(model)
        with torch.no_grad():
            for parameter, gradient in zip(probe.parameters(), gradients, strict=True):
                parameter.add_(0.3 * gradient / norm)
        for total, gradient in zip(expected, plain_gradient(probe, x[rows], y[rows]), strict=True):
            total.add_(gradient, alpha=len(rows) / 12)
    before = copy.deepcopy(model.state_dict())
    batch = batch_loss(model, x, y, micro_batch=micro_batch)
    loss = SAM(rho=0.3, m=m).backward(batch)
    found = flat([parameter.grad for parameter in model.parameters() if parameter.grad is not None])
    assert deviation("m-sharpness, group by group", found, flat(expected)) < 1e-9
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    logits = model(x)
    torch.testing.assert_close(loss, cross_entropy(logits, y).mean().detach())
    assert batch.hits is not None and batch.hits.item() == (logits.argmax(1) == y).sum().item()
    passes = batch.passes
    assert (passes.forward, passes.backward, passes.weight_gradients) == pytest.approx((2, 2, 2))
    assert batch.ascent_norm is not None and len(batch.losses) == 12


@pytest.mark.parametrize("method", GROUPED)
@pytest.mark.parametrize("m", [12, 100])
def test_one_group_is_the_method_bit_for_bit(method: str, m: int) -> None:
    model, (x, y) = net(batch_norm=True), data()
    expected = used_gradient(build(method, rho=0.3), model, x, y)
    found = used_gradient(build(method, rho=0.3, m=m), model, x, y)
    assert all(torch.equal(one, other) for one, other in zip(found, expected, strict=True))


@pytest.mark.parametrize("method", GROUPED)
def test_groups_change_every_methods_gradient_and_not_its_passes(method: str) -> None:
    model, (x, y) = net(), data()
    whole, cut = batch_loss(model, x, y), batch_loss(model, x, y)
    gradients = []
    for batch, m in ((whole, None), (cut, 4)):
        build(method, rho=0.5, m=m).backward(batch)
        gradients.append(flat([parameter.grad for parameter in model.parameters() if parameter.grad is not None]))
    assert not torch.allclose(*gradients)
    assert (cut.passes.forward, cut.passes.backward) == pytest.approx((whole.passes.forward, whole.passes.backward))
    plain = flat(plain_gradient(model, x, y))
    if method != "esam":  # which sees a share of each group
        found = flat(used_gradient(build(method, rho=0, m=4), model, x, y))
        torch.testing.assert_close(found, plain, rtol=0, atol=1e-12)


def test_batch_norm_sees_every_group_alone_and_never_one_example() -> None:
    model, (x, y) = net(batch_norm=True), data()
    seen: list[int] = []
    model[1].register_forward_hook(lambda module, inputs, output: seen.append(len(output)))
    SAM(rho=0.3, m=1).backward(batch_loss(model, x, y))
    assert seen == [2] * 12
    assert model.state_dict()["1.num_batches_tracked"].item() == 6  # once an example


def test_a_group_has_its_own_masks_of_dropout_in_both_of_its_passes() -> None:
    torch.manual_seed(0)
    model, (x, y) = nn.Sequential(nn.Linear(6, 64), nn.Dropout(0.5), nn.Linear(64, 3)).double().train(), data()
    kept: list[Tensor] = []
    model[1].register_forward_hook(lambda module, inputs, output: kept.append(output != 0))
    SAM(rho=0.01, m=6).step_gradients(model, nn.CrossEntropyLoss(), x, y)
    first, second, third, fourth = kept
    assert torch.equal(first, second) and torch.equal(third, fourth) and not torch.equal(first, third)


def test_groups_and_an_ascent_of_the_whole_batch_are_refused_together() -> None:
    model, (x, y) = net(), data()
    message = r"m=4 does not go with sync_ascent: each group of examples ascends along its own gradient"
    with pytest.raises(InputError, match=message):
        SAM(m=4).step_gradients(model, cross_entropy, x, y, sync_ascent=True)
    with pytest.raises(InputError, match=message):
        recipe = build_recipe(override(load_recipe("sam"), {"m": 4}))
        TrainingStep(model, recipe, precision="fp32", sync_ascent=True)
