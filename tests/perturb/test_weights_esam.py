"""ESAM: which tensors move, which examples count, and what is saved."""

from __future__ import annotations

import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from weights_samples import batch_loss, build, data, deviation, flat, moves, net, plain_gradient, used_gradient

from sam_bench.perturb.inputs import cross_entropy
from sam_bench.perturb.weights.esam import ESAM


@given(seed=st.integers(0, 1000), rho=st.floats(0.01, 1), share=st.floats(0.05, 0.95))
@settings(max_examples=20, deadline=None)
def test_the_chosen_tensors_move_along_their_normalised_gradient_scaled_up(seed: int, rho: float, share: float) -> None:
    model, (x, y) = net(seed=seed), data(seed)
    perturbation = ESAM(rho=rho, tensor_share=share, example_share=1)
    chosen = set(map(id, perturbation.chosen(batch_loss(model, x, y, seed=seed)) or []))
    gradients = plain_gradient(model, x, y)
    kept = [id(parameter) in chosen for parameter in model.parameters()]
    norm = flat([gradient for gradient, keep in zip(gradients, kept, strict=True) if keep]).norm()
    (moved,) = moves(perturbation, model, x, y, seed=seed)
    assert any(kept)
    for move, gradient, keep in zip(moved, gradients, kept, strict=True):
        expected = rho / share * gradient / norm if keep else torch.zeros_like(gradient)
        assert deviation("esam, perturbation in closed form", move, expected) < 1e-9


def test_each_tensor_is_perturbed_as_often_as_its_share_says() -> None:
    model, (x, y) = net(), data()
    perturbation = ESAM(tensor_share=0.6)
    counts = [0, 0, 0, 0]
    for step in range(1500):
        chosen = set(map(id, perturbation.chosen(batch_loss(model, x, y, step=step)) or []))
        counts = [count + (id(p) in chosen) for count, p in zip(counts, model.parameters(), strict=True)]
    # One tensor is always taken, which of four adds .4^4 / 4; the standard error is .013.
    assert [count / 1500 for count in counts] == pytest.approx([0.6064] * 4, abs=0.05)


@given(seed=st.integers(0, 1000), rho=st.floats(0.01, 1), share=st.sampled_from([0.1, 0.25, 0.5, 0.9]))
@settings(max_examples=20, deadline=None)
def test_the_second_gradient_is_of_the_examples_whose_loss_rose_most(seed: int, rho: float, share: float) -> None:
    model, (x, y) = net(seed=seed), data(seed)
    perturbation = ESAM(rho=rho, tensor_share=1, example_share=share)
    look, second = moves(perturbation, model, x, y)
    assert all(torch.equal(one, other) for one, other in zip(look, second, strict=True))
    used = [parameter.grad for parameter in model.parameters() if parameter.grad is not None]
    probe = copy.deepcopy(model)
    with torch.no_grad():
        for parameter, by in zip(probe.parameters(), look, strict=True):
            parameter.add_(by)
        rise = cross_entropy(probe(x), y) - cross_entropy(model(x), y)
    count = -int(-share * len(y) // 1)
    rows = rise.sort(descending=True).indices[:count]
    expected = flat(plain_gradient(probe, x[rows], y[rows]))
    assert deviation("esam, gradient of the rows chosen by hand", flat(used), expected) < 1e-9


def test_both_halves_save_work() -> None:
    """Gradients of tensors that stay are never computed in the first pass; examples not chosen, never in the second."""
    model, (x, y) = net(), data()
    computed: list[tuple[int, int]] = []
    backward_rows: list[int] = []
    passes = 0

    def score(images: Tensor) -> Tensor:
        nonlocal passes
        passes += 1
        logits: Tensor = model(images)
        if logits.requires_grad:
            logits.register_hook(lambda gradient: backward_rows.append(len(gradient)))
        return logits

    for index, parameter in enumerate(model.parameters()):
        parameter.register_hook(lambda gradient, index=index: computed.append((passes, index)))
    perturbation = ESAM(tensor_share=0.5, example_share=0.5)
    batch = batch_loss(model, x, y, score=score, seed=3)
    chosen = set(map(id, perturbation.chosen(batch) or []))
    expected = {index for index, parameter in enumerate(model.parameters()) if id(parameter) in chosen}
    assert 0 < len(expected) < 4
    perturbation.backward(batch)
    assert {index for number, index in computed if number == 1} == expected
    assert {index for number, index in computed if number == 3} == {0, 1, 2, 3}
    assert backward_rows == [12, 6]
    assert (passes, batch.passes.forward, batch.passes.backward) == (3, 2.5, 1.5)


def test_the_step_and_the_seed_decide_what_is_chosen() -> None:
    model, (x, y) = net(), data()
    steps = [used_gradient(build("esam", rho=0.5), model, x, y, step=step, seed=seed) for step, seed in
             [(1, 0), (1, 0), (2, 0), (1, 1)]]  # fmt: skip
    same = [all(torch.equal(a, b) for a, b in zip(steps[0], other, strict=True)) for other in steps[1:]]
    assert same == [True, False, False]


def test_defaults_are_those_of_the_authors_code() -> None:
    perturbation = ESAM()
    assert (perturbation.rho, perturbation.tensor_share, perturbation.example_share) == (0.05, 0.6, 0.5)
