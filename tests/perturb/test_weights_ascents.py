"""ASAM, Fisher SAM, AWP, AACE and noise: closed forms, optimality, another library, finite differences."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from pytorch_optimizer import SAM as ReferenceSAM  # noqa: N811
from torch import Tensor, nn
from weights_samples import batch_loss, build, data, deviation, flat, largest_difference, moves, net, plain_gradient

from sam_bench.perturb.inputs import cross_entropy
from sam_bench.perturb.weights.aace import adversarial_cross_entropy
from sam_bench.perturb.weights.asam import ASAM
from sam_bench.perturb.weights.base import draw_normal, views_like
from sam_bench.seeds import generator

seeds, radii, widths = st.integers(0, 1000), st.floats(0.01, 2), st.integers(2, 20)


def assert_worst(move: Tensor, gradient: Tensor, size: Tensor, rho: float) -> None:
    """`move` has length rho in units of `size`, and no other of that length goes uphill faster."""
    assert (move / size).norm().item() == pytest.approx(rho, rel=1e-6)
    others = torch.randn(200, len(move), dtype=move.dtype, generator=generator(0))
    others = rho * others / others.norm(dim=1, keepdim=True) * size
    near = move + 0.1 * others
    near = rho * near / (near / size).norm(dim=1, keepdim=True)
    rise = gradient @ move
    assert rise > 0
    assert torch.cat([others, near]).mv(gradient).max() <= rise * (1 + 1e-9)


@given(seed=seeds, rho=radii, width=widths, eta=st.floats(0.001, 1))
@settings(max_examples=20, deadline=None)
def test_asam_is_the_worst_case_in_a_ball_scaled_by_the_weights(seed: int, rho: float, width: int, eta: float) -> None:
    model, (x, y) = net(batch_norm=True, width=width, seed=seed), data(seed)
    size = flat([p.abs() + eta if "weight" in name else torch.ones_like(p) for name, p in model.named_parameters()])
    gradient = flat(plain_gradient(model, x, y))
    (moved,) = moves(build("asam", rho=rho, eta=eta), model, x, y)
    closed = rho * size**2 * gradient / (size * gradient).norm()
    assert deviation("asam, closed form", flat(moved), closed) < 1e-9
    assert_worst(flat(moved), gradient, size, rho)


def test_asam_agrees_with_pytorch_optimizer_over_fifty_steps() -> None:
    """Theirs scales every tensor, by its weights alone: a network of weights, eta 0."""
    x, y = data()
    ours, theirs = net(bias=False), net(bias=False)
    optimizer = torch.optim.SGD(ours.parameters(), lr=0.1, momentum=0.9, weight_decay=5e-4)
    reference = ReferenceSAM(
        theirs.parameters(), torch.optim.SGD, rho=0.5, lr=0.1, momentum=0.9, weight_decay=5e-4, adaptive=True
    )
    for _ in range(50):
        ASAM(rho=0.5, eta=0).backward(batch_loss(ours, x, y))
        optimizer.step()
        cross_entropy(theirs(x), y).mean().backward()
        reference.first_step(zero_grad=True)
        cross_entropy(theirs(x), y).mean().backward()
        reference.second_step(zero_grad=True)
    weights = [flat(list(each.parameters())) for each in (ours, theirs)]
    assert deviation("asam, pytorch_optimizer after 50 steps", *weights) < 1e-5
    assert largest_difference(list(ours.parameters()), list(net(bias=False).parameters())) > 0.1


@given(seed=seeds, rho=radii, width=widths, eta=st.floats(0, 100))
@settings(max_examples=20, deadline=None)
def test_fisher_sam_is_the_worst_case_in_the_ellipsoid_of_the_fisher_information(
    seed: int, rho: float, width: int, eta: float
) -> None:
    model, (x, y) = net(width=width, seed=seed), data(seed)
    gradient = flat(plain_gradient(model, x, y))
    (moved,) = moves(build("fsam", rho=rho, eta=eta), model, x, y)
    size = (1 + eta * gradient**2).rsqrt()
    closed = rho * size**2 * gradient / (size * gradient).norm()
    assert deviation("fsam, closed form", flat(moved), closed) < 1e-9
    assert_worst(flat(moved), gradient, size, rho)


@given(seed=seeds, rho=radii, width=widths)
@settings(max_examples=20, deadline=None)
def test_awp_moves_each_matrix_uphill_by_its_share_of_its_norm_and_nothing_else(
    seed: int, rho: float, width: int
) -> None:
    model, (x, y) = net(batch_norm=True, width=width, seed=seed), data(seed)
    gradients = plain_gradient(model, x, y)
    (moved,) = moves(build("awp", rho=rho), model, x, y)
    for parameter, gradient, move in zip(model.parameters(), gradients, moved, strict=True):
        expected = rho * parameter.norm() * gradient / gradient.norm() if parameter.dim() > 1 else 0 * gradient
        assert deviation("awp, closed form", move, expected.detach()) < 1e-9


@given(seed=seeds, classes=st.integers(2, 12), scale=st.floats(0.01, 8))
@settings(max_examples=30, deadline=None)
def test_the_adversarial_cross_entropy_is_its_divergence_in_value_and_gradient(
    seed: int, classes: int, scale: float
) -> None:
    draws = generator(seed)
    logits = (scale * torch.randn(5, classes, dtype=torch.float64, generator=draws)).requires_grad_()
    y = torch.randint(classes, (5,), generator=draws)
    losses = adversarial_cross_entropy(logits, y)
    p = logits.softmax(1)
    # 1 - p_y as the sum of the others: subtracting from 1 would lose the digits where p_y is nearly that.
    assert deviation("aace, -log(1 - p_y)", losses, -p.scatter(1, y[:, None], 0).sum(1).log()) < 1e-9
    # The paper's: the distribution over the other classes, held fixed, against the prediction.
    others = p.detach().scatter(1, y[:, None], 0)
    target = others / others.sum(1, keepdim=True)
    divergence = F.kl_div(p.log(), target, reduction="none").sum(1)
    assert deviation("aace, the divergence by torch", losses, divergence) < 1e-9
    (ours,) = torch.autograd.grad(losses.sum(), logits, retain_graph=True)
    (theirs,) = torch.autograd.grad(divergence.sum(), logits)
    assert deviation("aace, the divergence's gradient by torch", ours, theirs) < 1e-9
    assert torch.autograd.gradcheck(lambda z: adversarial_cross_entropy(z, y), logits.detach().requires_grad_())


def test_the_adversarial_cross_entropy_is_finite_where_the_prediction_is_certain() -> None:
    logits = torch.tensor([[1e4, 0.0, -1e4], [-1e4, 0.0, 1e4]], requires_grad=True)
    losses = adversarial_cross_entropy(logits, torch.tensor([0, 0]))
    losses.sum().backward()
    assert losses.tolist() == [1e4, 0.0]
    assert logits.grad is not None and bool(logits.grad.isfinite().all())


@given(seed=seeds, rho=radii, width=widths)
@settings(max_examples=15, deadline=None)
def test_aace_moves_along_its_own_gradient_unnormalised(seed: int, rho: float, width: int) -> None:
    model, (x, y) = net(width=width, seed=seed), data(seed)
    away = (1 - model(x).softmax(1).gather(1, y[:, None])).log().mean()
    gradient = torch.autograd.grad(away, list(model.parameters()))
    (moved,) = moves(build("aace", rho=rho), model, x, y)
    assert deviation("aace, closed form", flat(moved), rho * flat(gradient)) < 1e-9


@given(seed=seeds, rho=radii, width=widths)
@settings(max_examples=15, deadline=None)
def test_noise_has_the_length_of_sams_step_and_only_seed_and_step_decide_its_direction(
    seed: int, rho: float, width: int
) -> None:
    model, (x, y) = net(width=width), data(seed)
    other_x, other_y = data(seed + 1)

    def move(x: Tensor, y: Tensor, **where: int) -> Tensor:
        (moved,) = moves(build("noise", rho=rho), model, x, y, **where)
        return flat(moved)

    first = move(x, y, seed=seed, step=3)
    assert first.norm().item() == pytest.approx(rho, rel=1e-6)
    assert torch.equal(first, move(other_x, other_y, seed=seed, step=3))
    for other in (move(x, y, seed=seed, step=4), move(x, y, seed=seed + 1, step=3)):
        assert not torch.allclose(first, other)


def test_the_noise_is_standard_normal_and_has_the_memory_order_of_the_weights() -> None:
    convolution = nn.Conv2d(8, 64, 5).to(memory_format=torch.channels_last)
    parameters = list(convolution.parameters())
    drawn = torch.cat([flat(draw_normal(parameters, 0, step)) for step in range(5)])
    # 64,320 draws: five standard errors.
    assert abs(drawn.mean().item()) < 5 / len(drawn) ** 0.5
    assert drawn.var().item() == pytest.approx(1, abs=5 * (2 / len(drawn)) ** 0.5)
    for noise, parameter in zip(draw_normal(parameters, 0, 0), parameters, strict=True):
        assert noise.shape == parameter.shape and noise.stride() == parameter.stride()


def test_views_cover_a_vector_once_whatever_the_strides() -> None:
    parameters = [torch.zeros(2, 3, 4, 5).to(memory_format=torch.channels_last), torch.zeros(7), torch.zeros(4, 3).t()]
    vector = torch.arange(120.0 + 7 + 12)
    views = views_like(vector, parameters)
    assert [view.shape for view in views] == [parameter.shape for parameter in parameters]
    assert flat(views).sort().values.equal(vector)


@pytest.mark.parametrize("method", ["sam", "asam", "fsam", "awp", "aace", "ssam", "esam"])
@given(seed=seeds, width=widths)
@settings(max_examples=5, deadline=None)
def test_a_short_ascent_raises_what_it_climbs_as_the_gradient_foretells(method: str, seed: int, width: int) -> None:
    model, (x, y) = net(width=width, seed=seed), data(seed)

    def climbed(network: nn.Module) -> Tensor:
        logits = network(x)
        # AACE's own loss: over a batch, the cross-entropy may well fall on its way.
        return (-adversarial_cross_entropy(logits, y) if method == "aace" else cross_entropy(logits, y)).mean()

    gradient = flat(list(torch.autograd.grad(climbed(model), list(model.parameters()))))
    moved = moves(build(method, rho=1e-5), model, x, y)[-1]
    losses = []
    for sign in (1, -1):
        probe = copy.deepcopy(model)
        with torch.no_grad():
            for parameter, by in zip(probe.parameters(), moved, strict=True):
                parameter.add_(by, alpha=sign)
            losses.append(climbed(probe).item())
    foretold = (gradient @ flat(moved)).item()
    assert foretold > 0
    assert (losses[0] - losses[1]) / 2 == pytest.approx(foretold, rel=1e-4)
