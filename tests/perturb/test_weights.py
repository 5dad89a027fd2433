"""What holds of every perturbation of the weights, and SAM against another library's."""

from __future__ import annotations

import copy
import io
from typing import Any

import pytest
import timm
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pytorch_optimizer import SAM as ReferenceSAM  # noqa: N811
from torch import Tensor, nn
from weights_samples import (
    ASCENTS,
    MOVING,
    batch_loss,
    build,
    data,
    deviation,
    flat,
    largest_difference,
    moves,
    net,
    one_step,
    plain_gradient,
    stepped,
    used_gradient,
)

from sam_bench.errors import InputError
from sam_bench.perturb import WEIGHT_PERTURBATIONS
from sam_bench.perturb.inputs import cross_entropy
from sam_bench.perturb.weights import NoWeightPerturbation, displaced
from sam_bench.perturb.weights.ascent import part_of
from sam_bench.perturb.weights.sam import SAM

METHODS = WEIGHT_PERTURBATIONS.names()


@given(seed=st.integers(0, 1000), rho=st.floats(0, 2), width=st.integers(2, 20))
@settings(max_examples=30, deadline=None)
def test_sam_takes_the_gradient_at_distance_rho_along_the_gradient(seed: int, rho: float, width: int) -> None:
    model, (x, y) = net(width=width, seed=seed), data(seed)
    gradient = flat(plain_gradient(model, x, y))
    (moved,) = moves(SAM(rho=rho), model, x, y)
    assert deviation("sam, closed form", flat(moved), rho * gradient / gradient.norm()) < 1e-9
    # The gradient that is left is the one at w + e: checked by evaluating it there afresh.
    probe = copy.deepcopy(model)
    with torch.no_grad():
        for parameter, by in zip(probe.parameters(), moved, strict=True):
            parameter.add_(by)
    used = [parameter.grad for parameter in model.parameters() if parameter.grad is not None]
    assert largest_difference(used, plain_gradient(probe, x, y)) < 1e-12


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_every_method_restores_the_weights_bit_for_bit_and_reports_the_loss_there(
    method: str, dtype: torch.dtype
) -> None:
    model, (x, y) = net(dtype=dtype), data(dtype=dtype)
    perturbation = build(method)
    before = copy.deepcopy(model.state_dict())
    batch = batch_loss(model, x, y)
    loss = perturbation.backward(batch)
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    logits = model(x)
    assert loss.item() == pytest.approx(cross_entropy(logits, y).mean().item(), rel=1e-6)
    assert batch.hits is not None and batch.hits.item() == (logits.argmax(1) == y).sum().item()
    assert all(parameter.grad is not None and bool(parameter.grad.isfinite().all()) for parameter in model.parameters())
    assert build(method, **perturbation.spec().settings).spec() == perturbation.spec()


@pytest.mark.parametrize(
    ("method", "fields"),
    [
        *((method, {}) for method in METHODS),
        *(("esam", fields) for fields in ({"interval": 3}, {"example_share": 1})),
        *(("rwp", fields) for fields in ({"interval": 3}, {"noisy_weight": 0}, {"noisy_weight": 1})),
    ],
)
def test_the_passes_a_method_states_are_those_it_takes_on_average(method: str, fields: dict[str, Any]) -> None:
    model, (x, y) = net(), data()
    perturbation = build(method, **fields)
    forward = backward = 0.0
    interval = getattr(perturbation, "interval", 1)
    # From the second step on: the first of an epoch is also the one that makes a mask.
    for step in range(1 + interval):
        batch = batch_loss(model, x, y, step=step)
        perturbation.backward(batch)
        if step > 0:
            forward, backward = forward + batch.passes.forward, backward + batch.passes.backward
    assert (forward / interval, backward / interval) == pytest.approx(perturbation.passes)


@pytest.mark.parametrize("method", [method for method in METHODS if method not in ("none", "msam")])
def test_the_weights_come_back_when_a_later_pass_fails(method: str) -> None:
    model, (x, y) = net(), data()
    before = copy.deepcopy(model.state_dict())
    passes = iter([True, False])

    def score(images: Tensor) -> Tensor:
        if not next(passes):
            raise RuntimeError("out of memory")
        logits: Tensor = model(images)
        return logits

    with pytest.raises(RuntimeError, match="out of memory"):
        build(method).backward(batch_loss(model, x, y, score=score))
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())


@pytest.mark.parametrize("method", ASCENTS)
def test_rho_zero_is_the_base_optimizer_bit_for_bit(method: str) -> None:
    x, y = data(dtype=torch.float32)
    weights = []
    # A gradient of half the examples is another one, wherever it is taken.
    others = {"esam": {"example_share": 1}}.get(method, {})
    for perturbation in (NoWeightPerturbation(), build(method, rho=0, **others)):
        model = net(batch_norm=True, dtype=torch.float32)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
        for step in range(20):
            perturbation.backward(batch_loss(model, x, y, step=step, epoch=step // 5))
            optimizer.step()
        weights.append(model.state_dict())
    assert all(torch.equal(weights[0][name], value) for name, value in weights[1].items())


COLLAPSES: list[tuple[str, dict[str, Any]]] = [
    ("esam", {"tensor_share": 1, "example_share": 1}),
    ("looksam", {"interval": 1}),
    ("ssam", {"sparsity": 0}),
    ("ssam-dynamic", {"sparsity": 0}),
    ("fsam", {"eta": 0}),
    ("fsam-friendly", {"mean_weight": 0}),
    ("gsam", {"alpha": 0}),
    ("vasso", {"theta": 1}),
]


@pytest.mark.parametrize(("method", "collapsed"), COLLAPSES)
@given(seed=st.integers(0, 1000), rho=st.floats(0.001, 1), width=st.integers(2, 20))
@settings(max_examples=10, deadline=None)
def test_a_method_at_its_trivial_setting_is_sam(
    method: str, collapsed: dict[str, Any], seed: int, rho: float, width: int
) -> None:
    model, (x, y) = net(batch_norm=True, width=width, seed=seed), data(seed)
    perturbation = build(method, rho=rho, **collapsed)
    for step in range(2):
        expected = used_gradient(SAM(rho=rho), model, x, y, step=step)
        found = used_gradient(perturbation, model, x, y, step=step)
        assert deviation(f"{method}, at its trivial setting sam", flat(found), flat(expected)) < 1e-9
    if method != "fsam":  # the one that takes its norm another way
        assert all(torch.equal(one, other) for one, other in zip(found, expected, strict=True))


@pytest.mark.parametrize("method", ASCENTS)
def test_before_its_first_epoch_a_method_is_the_base_optimizer_and_afterwards_it_is_not(method: str) -> None:
    model, (x, y) = net(), data()
    perturbation = build(method, rho=0.3, start_epoch=2, **MOVING.get(method, {}))
    plain = stepped(NoWeightPerturbation(), model, x, y)
    for epoch in range(4):
        # Step 7 is no multiple of any interval: LookSAM, too, has to look up before it can reuse anything.
        batch, optimizer = one_step(model, x, y, epoch=epoch, step=7 * epoch)
        perturbation.backward(batch)
        optimizer.step()
        assert torch.equal(flat(batch.parameters), plain) == (epoch < 2)
        assert ((batch.passes.forward, batch.passes.backward) == (1, 1)) == (
            epoch < 2 or (method == "looksam" and epoch == 3)
        )


@pytest.mark.parametrize("method", [method for method in ASCENTS if method != "looksam"])
def test_between_the_steps_of_its_interval_a_method_is_the_base_optimizer(method: str) -> None:
    model, (x, y) = net(), data()
    perturbation = build(method, rho=0.3, interval=3, **MOVING.get(method, {}))
    plain = stepped(NoWeightPerturbation(), model, x, y)
    for step in range(7):
        assert torch.equal(stepped(perturbation, model, x, y, step=step), plain) == (step % 3 != 0)


@pytest.mark.parametrize("part", ["bn", "all-but-bn", "norm", "all-but-norm", "last"])
@pytest.mark.parametrize("method", ASCENTS)
def test_only_the_part_asked_for_is_perturbed_and_everything_learns(method: str, part: str) -> None:
    model, (x, y) = net(batch_norm=True), data()
    perturbation = build(method, rho=0.3, perturb_only=part, **MOVING.get(method, {}))
    if method == "awp" and part in ("bn", "norm"):
        with pytest.raises(
            InputError, match=rf"perturb_only='{part}' does not fit: awp moves tensors of two or more dimensions"
        ):
            perturbation.backward(batch_loss(model, x, y))
        return
    perturbation.backward(batch_loss(model, x, y, step=0))  # leaves gradients of all behind
    moved = flat_by_name(model, moves(perturbation, model, x, y, step=perturbation.interval)[-1])
    parts = {"bn": {"1.weight", "1.bias"}, "norm": {"1.weight", "1.bias"}, "last": {"3.weight", "3.bias"}}
    allowed = parts.get(part, set(moved) - parts["bn"])
    assert {name for name, distance in moved.items() if distance > 0} <= allowed
    assert any(moved[name] > 0 for name in allowed)
    assert all(parameter.grad is not None for parameter in model.parameters())


def flat_by_name(model: nn.Module, tensors: list[Tensor]) -> dict[str, float]:
    return {name: tensor.norm().item() for (name, _), tensor in zip(model.named_parameters(), tensors, strict=True)}


def test_a_part_that_the_model_lacks_is_refused() -> None:
    with pytest.raises(InputError, match=r"perturb_only='bn' does not fit: the model has no parameters of BatchNorm"):
        SAM(perturb_only="bn").backward(batch_loss(net(), *data()))


def test_every_layer_that_normalises_is_the_part_norm_of_a_transformer() -> None:
    model = timm.create_model("vit_tiny_patch16_224", img_size=16, patch_size=8, depth=1, num_classes=3)
    with pytest.raises(InputError, match="the model has no parameters of BatchNorm; choose norm, all or last"):
        part_of(model, "bn")
    found, rest = part_of(model, "norm"), part_of(model, "all-but-norm")
    assert found is not None and rest is not None
    names = {name for name, each in model.named_parameters() if any(each is one for one in found)}
    assert names == {name for name, _ in model.named_parameters() if "norm" in name} and len(names) == 6
    assert len(found) + len(rest) == len(list(model.parameters()))


@pytest.mark.parametrize("name", ["levit_128s", "repvit_m0_9"])
def test_a_convolution_with_a_norm_of_its_own_is_no_norm(name: str) -> None:
    model = timm.create_model(name, num_classes=3)
    found = part_of(model, "norm")
    assert found is not None
    assert 0 < sum(each.numel() for each in found) < 0.02 * sum(each.numel() for each in model.parameters())
    assert {each.dim() for each in found} == {1}


@pytest.mark.parametrize("method", METHODS)
def test_batch_norm_statistics_move_once_a_step(method: str) -> None:
    x, y = data(dtype=torch.float32)
    model, plain = net(batch_norm=True, dtype=torch.float32), net(batch_norm=True, dtype=torch.float32)
    build(method).backward(batch_loss(model, x, y))
    NoWeightPerturbation().backward(batch_loss(plain, x, y))
    for name in ("1.running_mean", "1.running_var", "1.num_batches_tracked"):
        assert torch.equal(model.state_dict()[name], plain.state_dict()[name])


@pytest.mark.parametrize("method", ASCENTS)
def test_batch_norm_statistics_move_in_the_second_pass_too_where_asked_for(method: str) -> None:
    model, (x, y) = net(batch_norm=True), data()
    build(method, bn_second_pass="update").backward(batch_loss(model, x, y))
    assert model.state_dict()["1.num_batches_tracked"].item() == 2


@pytest.mark.parametrize("method", METHODS)
def test_a_method_restored_from_its_state_goes_on_as_if_uninterrupted(method: str) -> None:
    x, y = data(dtype=torch.float32)

    def steps(perturbation: Any, model: nn.Module, first: int, last: int) -> None:
        for step in range(first, last):
            perturbation.backward(batch_loss(model, x, y, step=step, epoch=step // 3, seed=5))
            with torch.no_grad():
                for parameter in model.parameters():
                    assert parameter.grad is not None
                    parameter -= 0.1 * parameter.grad

    whole, parts = net(dtype=torch.float32), net(dtype=torch.float32)
    steps(build(method), whole, 0, 12)
    first = build(method)
    steps(first, parts, 0, 7)
    file = io.BytesIO()
    torch.save(first.state_dict(), file)
    file.seek(0)
    second = build(method)
    second.load_state_dict(torch.load(file, weights_only=True))
    steps(second, parts, 7, 12)
    assert all(torch.equal(one, other) for one, other in zip(whole.parameters(), parts.parameters(), strict=True))


@pytest.mark.parametrize("method", METHODS)
def test_an_object_used_for_a_second_run_remembers_nothing_of_the_first(method: str) -> None:
    x, y = data()
    used, fresh = build(method), build(method)
    for step in range(3):
        used.backward(batch_loss(net(seed=9), x, y, step=step))
    for step in range(3):
        gradients = [used_gradient(each, net(), x, y, step=step) for each in (used, fresh)]
        assert all(torch.equal(one, other) for one, other in zip(*gradients, strict=True))


def test_sam_agrees_with_pytorch_optimizer_over_fifty_steps() -> None:
    x, y = data()
    ours, theirs = net(), net()
    optimizer = torch.optim.SGD(ours.parameters(), lr=0.1, momentum=0.9, weight_decay=5e-4)
    reference = ReferenceSAM(
        theirs.parameters(), torch.optim.SGD, rho=0.2, lr=0.1, momentum=0.9, weight_decay=5e-4, adaptive=False
    )
    for _ in range(50):
        SAM(rho=0.2).backward(batch_loss(ours, x, y))
        optimizer.step()
        cross_entropy(theirs(x), y).mean().backward()
        reference.first_step(zero_grad=True)
        cross_entropy(theirs(x), y).mean().backward()
        reference.second_step(zero_grad=True)
    weights = [flat(list(each.parameters())) for each in (ours, theirs)]
    assert deviation("sam, pytorch_optimizer after 50 steps", *weights) < 1e-5


def test_a_parameter_that_takes_no_part_is_left_out() -> None:
    model = net()
    model.register_parameter("unused", nn.Parameter(torch.ones(3, dtype=torch.float64)))
    x, y = data()
    SAM(rho=0.1).backward(batch_loss(model, x, y))
    assert model.unused.grad is None and torch.equal(model.unused, torch.ones(3, dtype=torch.float64))


def test_displacing_and_restoring_large_weights_leaves_no_rounding_behind() -> None:
    weight = nn.Parameter(torch.tensor([1e8, 1.0, 1e-8]))
    before = weight.detach().clone()
    with displaced([weight], [torch.tensor([0.3, 1e-9, 5.0])]):
        assert not torch.equal(weight, before)
    assert torch.equal(weight, before)


@pytest.mark.parametrize("method", ASCENTS)
def test_a_negative_radius_is_refused(method: str) -> None:
    with pytest.raises(InputError, match=r"weights\.rho: .*greater than or equal to 0"):
        build(method, rho=-0.1)
