"""Sparse SAM: the masks against ones made by hand, when they are renewed, and how."""

from __future__ import annotations

import copy
import math
from itertools import pairwise
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from weights_samples import batch_loss, build, data, deviation, flat, moves, net, plain_gradient

from sam_bench.perturb import WeightPerturbation
from sam_bench.perturb.weights.ssam import SSAM
from sam_bench.perturb.weights.ssam_dynamic import DynamicSSAM


def moved(perturbation: WeightPerturbation, model: nn.Module, x: Tensor, y: Tensor, **where: Any) -> Tensor:
    """How far the last pass, the one at the perturbed weights, is from the first."""
    return flat(moves(perturbation, model, x, y, **where)[-1])


@given(
    seed=st.integers(0, 1000),
    rho=st.floats(0.01, 1),
    sparsity=st.sampled_from([0.1, 0.5, 0.9, 0.98]),
    examples=st.integers(1, 16),
)
@settings(max_examples=20, deadline=None)
def test_the_weights_of_the_largest_fisher_information_move_as_sams_and_the_others_stay(
    seed: int, rho: float, sparsity: float, examples: int
) -> None:
    model, (x, y) = net(batch_norm=True, seed=seed), data(seed)
    gradient = flat(plain_gradient(model, x, y))
    model.load_state_dict(net(batch_norm=True, seed=seed).state_dict())
    single = copy.deepcopy(model)
    perturbation = SSAM(rho=rho, sparsity=sparsity, fisher_examples=examples)
    found = moved(perturbation, model, x, y)
    # The mask is made at the weights and with the running statistics after the first pass.
    single(x)
    single.eval()
    singles = [flat(plain_gradient(single, x[i : i + 1], y[i : i + 1])) for i in range(min(examples, len(y)))]
    fisher = torch.stack(singles).square().sum(0)
    kept = round((1 - sparsity) * len(fisher))
    mask = torch.zeros_like(fisher)
    mask[fisher.sort(descending=True).indices[:kept]] = 1
    assert deviation("ssam, mask by hand", found, rho * gradient / gradient.norm() * mask) < 1e-9
    assert model.training and model.state_dict()["1.num_batches_tracked"].item() == 1


def test_the_fisher_mask_counts_the_passes_it_costs_and_is_renewed_when_due() -> None:
    model, perturbation = net(), SSAM(refresh_epochs=2, fisher_examples=3)
    masks, costs = [], []
    for step in range(10):
        batch = batch_loss(model, *data(step), step=step, epoch=step // 2)
        perturbation.backward(batch)
        masks.append(flat(perturbation.state_dict()["mask"]))
        costs.append(batch.passes.forward - 2)
    assert costs == pytest.approx([0.25 if step in (0, 4, 8) else 0 for step in range(10)])
    assert [torch.equal(one, other) for one, other in pairwise(masks)] == [step + 1 not in (4, 8) for step in range(9)]


@given(
    seed=st.integers(0, 1000),
    sparsity=st.sampled_from([0.1, 0.5, 0.9]),
    exchange=st.sampled_from([0.0, 0.3, 1.0]),
    width=st.integers(4, 20),
)
@settings(max_examples=20, deadline=None)
def test_the_dynamic_mask_gives_up_its_flattest_weights_for_as_many_from_outside(
    seed: int, sparsity: float, exchange: float, width: int
) -> None:
    model, perturbation = net(width=width, seed=seed), DynamicSSAM(sparsity=sparsity, exchange=exchange, rho=0.1)
    masks = []
    for epoch in range(3):
        x, y = data(seed + epoch)
        where = {"step": epoch, "epoch": epoch, "seed": seed, "progress": epoch / 3}
        found = moved(perturbation, model, x, y, **where)
        masks.append(flat(perturbation.state_dict()["mask"]))
        slopes = flat(plain_gradient(model, x, y)).abs()
        assert not found[~masks[-1]].any()
        expected = 0.1 * slopes / slopes.norm()
        assert deviation("ssam-dynamic, closed form", found.abs()[masks[-1]], expected[masks[-1]]) < 1e-9
        if epoch == 0:
            continue
        before, now = masks[-2:]
        share = exchange * (1 + math.cos(math.pi * epoch / 3)) / 2  # .75, then .25 of it
        exchanged = min(round(share * int(before.sum())), int((~before).sum()))
        dropped = before & ~now
        assert int(dropped.sum()) == int((now & ~before).sum()) == exchanged
        if 0 < exchanged < int(before.sum()):
            assert slopes[dropped].max() <= slopes[before & now].min()
    assert len({int(mask.sum()) for mask in masks}) == 1
    assert int(masks[0].sum()) == round((1 - sparsity) * masks[0].numel())


def test_the_dynamic_mask_is_drawn_by_the_seed() -> None:
    def mask(seed: int) -> Tensor:
        perturbation = DynamicSSAM()
        perturbation.backward(batch_loss(net(), *data(), seed=seed))
        return flat(perturbation.state_dict()["mask"])

    assert torch.equal(mask(0), mask(0)) and not torch.equal(mask(0), mask(1))


@pytest.mark.parametrize("method", ["ssam", "ssam-dynamic"])
def test_masks_follow_weights_in_another_memory_order(method: str) -> None:
    """The same network, data and mask, whether convolutions are stored with channels first or last."""
    found = []
    for memory_format in (torch.contiguous_format, torch.channels_last):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.Flatten(), nn.Linear(8 * 36, 3)).double()
        model.to(memory_format=memory_format)
        x = torch.randn(4, 3, 8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
        perturbation = build(method, sparsity=0.0 if method == "ssam-dynamic" else 0.7)
        found.append(moved(perturbation, model, x, torch.tensor([0, 1, 2, 0])))
    torch.testing.assert_close(found[0], found[1], rtol=1e-9, atol=1e-12)
    assert found[0].abs().max() > 0
