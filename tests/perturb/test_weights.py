"""Perturbations of the weights: exact restore, the base optimizer at rho 0, and another library's SAM."""

from __future__ import annotations

import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pytorch_optimizer import SAM as ReferenceSAM  # noqa: N811
from torch import Tensor, nn

from sam_bench.errors import InputError
from sam_bench.perturb import WEIGHT_PERTURBATIONS, BatchLoss
from sam_bench.perturb.inputs import cross_entropy
from sam_bench.perturb.weights import NoWeightPerturbation, displaced, global_norm
from sam_bench.perturb.weights.sam import SAM
from sam_bench.records import ComponentSpec
from sam_bench.seeds import generator


def net(*, batch_norm: bool = False, dtype: torch.dtype = torch.float64) -> nn.Sequential:
    torch.manual_seed(1)
    norm: nn.Module = nn.BatchNorm1d(16) if batch_norm else nn.Identity()
    return nn.Sequential(nn.Linear(6, 16), norm, nn.Tanh(), nn.Linear(16, 3)).to(dtype)


def data(seed: int = 0, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    draws = generator(seed)
    return torch.randn(12, 6, generator=draws, dtype=dtype), torch.randint(3, (12,), generator=draws)


def batch_of(model: nn.Module, x: Tensor, y: Tensor) -> BatchLoss:
    return BatchLoss(model, x, y)


@given(seed=st.integers(0, 1000), rho=st.floats(0, 2))
@settings(max_examples=30, deadline=None)
def test_sam_takes_the_gradient_at_distance_rho_along_the_gradient(seed: int, rho: float) -> None:
    model, (x, y) = net(), data(seed)
    seen: list[list[Tensor]] = []

    def score(images: Tensor) -> Tensor:
        seen.append([parameter.detach().clone() for parameter in model.parameters()])
        logits: Tensor = model(images)
        return logits

    SAM(rho=rho).differentiate(BatchLoss(model, x, y, score=score))
    at_w, perturbed = seen
    moved = [after - before for before, after in zip(at_w, perturbed, strict=True)]
    assert global_norm(moved).item() == pytest.approx(rho, rel=1e-6, abs=1e-9)
    # The gradient that is left is the one at w + e: checked by evaluating it there afresh.
    probe = copy.deepcopy(model)
    with torch.no_grad():
        for parameter, value in zip(probe.parameters(), perturbed, strict=True):
            parameter.copy_(value)
    cross_entropy(probe(x), y).mean().backward()
    for ours, fresh in zip(model.parameters(), probe.parameters(), strict=True):
        assert torch.equal(ours.grad, fresh.grad)


@pytest.mark.parametrize("method", WEIGHT_PERTURBATIONS.names())
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_every_method_restores_the_weights_bit_for_bit_and_counts_its_passes(method: str, dtype: torch.dtype) -> None:
    model, (x, y) = net(dtype=dtype), data(dtype=dtype)
    perturbation = WEIGHT_PERTURBATIONS.build(ComponentSpec(method=method))
    before = copy.deepcopy(model.state_dict())
    batch = batch_of(model, x, y)
    loss = perturbation.differentiate(batch)
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert loss.item() == cross_entropy(model(x), y).mean().item()
    assert all(parameter.grad is not None for parameter in model.parameters())
    assert (batch.forward, batch.backward) == perturbation.passes
    assert WEIGHT_PERTURBATIONS.build(perturbation.spec()) == perturbation


def test_the_weights_come_back_when_the_second_pass_fails() -> None:
    model, (x, y) = net(), data()
    before = copy.deepcopy(model.state_dict())
    passes = iter([True, False])

    def score(images: Tensor) -> Tensor:
        if not next(passes):
            raise RuntimeError("out of memory")
        logits: Tensor = model(images)
        return logits

    with pytest.raises(RuntimeError, match="out of memory"):
        SAM(rho=0.5).differentiate(BatchLoss(model, x, y, score=score))
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())


def test_rho_zero_is_the_base_optimizer_bit_for_bit() -> None:
    x, y = data(dtype=torch.float32)
    weights = []
    for perturbation in (NoWeightPerturbation(), SAM(rho=0)):
        model = net(batch_norm=True, dtype=torch.float32)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
        for _ in range(20):
            perturbation.differentiate(batch_of(model, x, y))
            optimizer.step()
        weights.append(model.state_dict())
    assert all(torch.equal(weights[0][name], value) for name, value in weights[1].items())


def test_batch_norm_statistics_move_once_a_step() -> None:
    x, y = data(dtype=torch.float32)
    model, plain = net(batch_norm=True, dtype=torch.float32), net(batch_norm=True, dtype=torch.float32)
    SAM(rho=0.3).differentiate(batch_of(model, x, y))
    NoWeightPerturbation().differentiate(batch_of(plain, x, y))
    for name in ("1.running_mean", "1.running_var", "1.num_batches_tracked"):
        assert torch.equal(model.state_dict()[name], plain.state_dict()[name])


def test_sam_agrees_with_pytorch_optimizer_over_fifty_steps() -> None:
    x, y = data()
    ours, theirs = net(), net()
    optimizer = torch.optim.SGD(ours.parameters(), lr=0.1, momentum=0.9, weight_decay=5e-4)
    reference = ReferenceSAM(
        theirs.parameters(), torch.optim.SGD, rho=0.2, lr=0.1, momentum=0.9, weight_decay=5e-4, adaptive=False
    )
    for _ in range(50):
        SAM(rho=0.2).differentiate(batch_of(ours, x, y))
        optimizer.step()
        cross_entropy(theirs(x), y).mean().backward()
        reference.first_step(zero_grad=True)
        cross_entropy(theirs(x), y).mean().backward()
        reference.second_step(zero_grad=True)
    deviation = max((a - b).abs().max().item() for a, b in zip(ours.parameters(), theirs.parameters(), strict=True))
    assert deviation < 1e-5


def test_a_parameter_that_takes_no_part_is_left_out() -> None:
    model = net()
    model.register_parameter("unused", nn.Parameter(torch.ones(3, dtype=torch.float64)))
    x, y = data()
    SAM(rho=0.1).differentiate(batch_of(model, x, y))
    assert model.unused.grad is None and torch.equal(model.unused, torch.ones(3, dtype=torch.float64))


def test_displacing_and_restoring_large_weights_leaves_no_rounding_behind() -> None:
    weight = nn.Parameter(torch.tensor([1e8, 1.0, 1e-8]))
    before = weight.detach().clone()
    with displaced([weight], [torch.tensor([0.3, 1e-9, 5.0])]):
        assert not torch.equal(weight, before)
    assert torch.equal(weight, before)


def test_a_negative_radius_is_refused() -> None:
    with pytest.raises(InputError, match=r"weights\.rho: .*greater than or equal to 0"):
        WEIGHT_PERTURBATIONS.build(ComponentSpec(method="sam", rho=-0.1))
