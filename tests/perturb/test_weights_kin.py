"""Kin of SAM against another library's classes, closed forms and the rules by hand over twenty steps."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pytorch_optimizer.optimizer.sam import GSAM as ReferenceGSAM  # noqa: N811
from pytorch_optimizer.optimizer.sam import WSAM as ReferenceWSAM  # noqa: N811
from pytorch_optimizer.optimizer.sam import FriendlySAM as ReferenceFriendlySAM
from torch import Tensor, nn
from weights_samples import batch_loss, build, data, deviation, flat, moves, net, plain_gradient, stepped, used_gradient

from sam_bench.errors import InputError
from sam_bench.perturb import RWP, USAM, WSAM
from sam_bench.perturb.inputs import cross_entropy
from sam_bench.perturb.weights import NoWeightPerturbation
from sam_bench.perturb.weights.rwp import filter_norms
from sam_bench.training import build_recipe, load_recipe, override
from sam_bench.training.step import TrainingStep

seeds, radii, widths = st.integers(0, 1000), st.floats(0.01, 2), st.integers(2, 20)
SGD: dict[str, float] = {"lr": 0.1, "momentum": 0.9, "weight_decay": 5e-4}


class Constant:
    """A schedule of the radius that does not move it."""

    def __init__(self, rho: float) -> None:
        self._rho = rho

    def step(self) -> float:
        return self._rho


def reference(method: str, model: nn.Module) -> Callable[[Tensor, Tensor], None]:
    """One step of pytorch_optimizer's class."""
    if method == "gsam":
        base = torch.optim.SGD(model.parameters(), **SGD)
        gsam = ReferenceGSAM(model.parameters(), base, model, Constant(0.2), alpha=0.4)

        def step(x: Tensor, y: Tensor) -> None:
            gsam.set_closure(nn.CrossEntropyLoss(), x, y)
            gsam.step()

        return step
    theirs: Any = (
        ReferenceWSAM(model, model.parameters(), torch.optim.SGD, rho=0.2, gamma=0.8, decouple=True, **SGD)
        if method == "wsam"
        else ReferenceFriendlySAM(model.parameters(), torch.optim.SGD, rho=0.2, sigma=0.7, lmbda=0.6, **SGD)
    )

    def two_passes(x: Tensor, y: Tensor) -> None:
        def closure() -> Tensor:
            theirs.zero_grad()
            loss = cross_entropy(model(x), y).mean()
            loss.backward()
            return loss

        if method == "fsam-friendly":
            closure()
        theirs.step(closure)

    return two_passes


@pytest.mark.parametrize(
    ("method", "settings"),
    [
        ("gsam", {"alpha": 0.4}),
        ("wsam", {"sharpness_weight": 0.8}),
        ("fsam-friendly", {"mean_weight": 0.7, "mean_decay": 0.6}),
    ],
)
def test_it_agrees_with_pytorch_optimizer_over_fifty_steps(method: str, settings: dict[str, float]) -> None:
    ours, theirs = net(), net()
    perturbation, step = build(method, rho=0.2, **settings), reference(method, theirs)
    optimizer = torch.optim.SGD(ours.parameters(), **SGD)
    for number in range(50):
        x, y = data(number % 7)
        perturbation.backward(batch_loss(ours, x, y, step=number, optimizer=optimizer))
        optimizer.step()
        step(x, y)
    weights = [flat(list(each.parameters())) for each in (ours, theirs)]
    assert deviation(f"{method}, pytorch_optimizer after 50 steps", *weights) < 1e-5
    assert (weights[0] - flat(list(net().parameters()))).abs().max() > 0.1


def two_gradients(model: nn.Module, rho: float, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """The gradients at `w` and at SAM's `w + e`."""
    plain = flat(plain_gradient(model, x, y))
    return plain, flat(used_gradient(build("sam", rho=rho), model, x, y))


@given(seed=seeds, rho=radii, width=widths, alpha=st.floats(0, 2))
@settings(max_examples=15, deadline=None)
def test_gsam_takes_off_the_part_of_the_gradient_that_is_orthogonal_to_sams(
    seed: int, rho: float, width: int, alpha: float
) -> None:
    model, (x, y) = net(width=width, seed=seed), data(seed)
    plain, sharp = two_gradients(model, rho, x, y)
    used = flat(used_gradient(build("gsam", rho=rho, alpha=alpha), model, x, y))
    orthogonal = plain - (plain @ sharp) / (sharp @ sharp) * sharp
    assert deviation("gsam, closed form", used, sharp - alpha * orthogonal) < 1e-9
    # To first order, the step changes the perturbed loss as SAM's does.
    assert (used @ sharp).item() == pytest.approx((sharp @ sharp).item(), rel=1e-9)


@given(seed=seeds, rho=radii, width=widths, weight=st.floats(0, 0.95))
@settings(max_examples=15, deadline=None)
def test_wsam_weighs_the_sharpness(seed: int, rho: float, width: int, weight: float) -> None:
    model, (x, y) = net(width=width, seed=seed), data(seed)
    plain, sharp = two_gradients(model, rho, x, y)
    after = stepped(build("wsam", rho=rho, sharpness_weight=weight), model, x, y)
    expected = flat(list(model.parameters())) - plain - weight / (1 - weight) * (sharp - plain)
    assert deviation("wsam, closed form", after, expected) < 1e-9


def test_the_sharpness_of_wsam_is_of_one_step_and_enters_no_momentum() -> None:
    model, (x, y) = net(), data()
    plain, sharp = two_gradients(model, 0.3, x, y)
    start = flat(list(model.parameters()))
    optimizer = torch.optim.SGD([{"params": model[0].parameters()}, {"params": model[3].parameters(), "lr": 0}], **SGD)
    wsam = build("wsam", rho=0.3, sharpness_weight=0.75)
    wsam.backward(batch_loss(model, x, y, optimizer=optimizer))  # no step is taken with it
    wsam.backward(batch_loss(model, x, y, optimizer=optimizer))
    optimizer.step()
    first = sum(parameter.numel() for parameter in model[0].parameters())
    moved = flat(list(model.parameters())) - start
    expected = -0.1 * (plain + 5e-4 * start + 3 * (sharp - plain))
    torch.testing.assert_close(moved[:first], expected[:first], rtol=1e-9, atol=1e-12)
    assert not moved[first:].any()
    kept = flat([optimizer.state[parameter]["momentum_buffer"] for parameter in model.parameters()])
    torch.testing.assert_close(kept, plain + 5e-4 * start, rtol=1e-9, atol=1e-12)
    there = flat(list(model.parameters()))
    optimizer.zero_grad()
    optimizer.step()  # follows nothing: parameters without gradients stay
    assert torch.equal(flat(list(model.parameters())), there)


def test_an_optimizer_that_wsam_cannot_follow_is_refused() -> None:
    model, (x, y) = net(), data()
    with pytest.raises(InputError, match=r"^optimizer must be given, because this method also moves the weights after"):
        WSAM().step_gradients(model, cross_entropy, x, y)
    recipe = build_recipe(override(load_recipe("wsam"), {"optimizer": "timm", "opt": "lookahead_sgd"}))
    with pytest.raises(InputError, match="wsam moves the weights after the optimizer's step, and Lookahead runs no"):
        TrainingStep(model, recipe, precision="fp32")


@given(seed=seeds, rho=radii, width=widths)
@settings(max_examples=15, deadline=None)
def test_usam_moves_by_rho_times_the_gradient(seed: int, rho: float, width: int) -> None:
    model, (x, y) = net(width=width, seed=seed), data(seed)
    (moved,) = moves(USAM(rho=rho), model, x, y)
    assert deviation("usam, closed form", flat(moved), rho * flat(plain_gradient(model, x, y))) < 1e-12


@given(seed=seeds, rho=st.floats(0.001, 1), width=widths, progress=st.floats(0, 1))
@settings(max_examples=15, deadline=None)
def test_le_sam_raises_the_loss_by_its_budget_to_first_order(
    seed: int, rho: float, width: int, progress: float
) -> None:
    model, (x, y) = net(width=width, seed=seed), data(seed)
    gradient = flat(plain_gradient(model, x, y))
    (moved,) = moves(build("le-sam", rho=rho), model, x, y, progress=progress)
    early, late = min(1.0, progress / 0.05), max(0.0, progress - 0.8) / 0.2
    budget = rho * early * (1 + torch.cos(torch.tensor(torch.pi * late)).item()) / 2
    assert deviation("le-sam, first-order rise", gradient @ flat(moved), torch.tensor(budget)) < 1e-6
    # PyTorch's own cosine takes a move shorter than 1e-8 as that long.
    cosine = gradient @ flat(moved) / (gradient.norm() * flat(moved).norm())
    assert cosine.item() == pytest.approx(1) or budget < 1e-9
    (short,) = moves(build("le-sam", rho=rho, rho_max=1e-3), model, x, y)
    assert flat(short).norm().item() == pytest.approx(min(1e-3, rho / gradient.norm().item()), rel=1e-6)


@pytest.mark.parametrize("theta", [0.2, 0.9])
def test_vasso_ascends_along_the_running_mean_by_hand_over_twenty_steps(theta: float) -> None:
    model, rho = net(), 0.3
    perturbation = build("vasso", rho=rho, theta=theta)
    optimizer = torch.optim.SGD(model.parameters(), **SGD)
    mean = torch.empty(0)
    for step in range(20):
        x, y = data(step)
        gradient = flat(plain_gradient(model, x, y))
        mean = (1 - theta) * mean + theta * gradient if step else gradient
        (moved,) = moves(perturbation, model, x, y, step=step)
        assert deviation("vasso, by hand over 20 steps", flat(moved), rho * mean / mean.norm()) < 1e-9
        optimizer.step()


def test_the_noise_of_rwp_is_gaussian_in_proportion_to_each_filter() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 4, 15), nn.Flatten(), nn.Linear(4, 1000))
    with torch.no_grad():
        model[0].weight.mul_(torch.tensor([0.1, 1, 10, 100])[:, None, None, None])
    x, y = torch.randn(4, 3, 15, 15), torch.arange(4)
    draws = [moves(RWP(rho=0.02), model, x, y, step=step)[0] for step in range(40)]
    for place, parameter in enumerate(model.parameters()):
        norms = parameter.flatten(1).norm(dim=1) if parameter.dim() > 1 else parameter.norm()[None]
        noise = torch.stack([draw[place].reshape(len(norms), -1) for draw in draws], 1).flatten(1)
        units = noise / (0.02 * norms[:, None])
        # Five standard errors. The difference of two float32 weights has lost some digits.
        assert units.mean().abs().item() < 5 / units.numel() ** 0.5
        assert units.var().item() == pytest.approx(1, abs=5 * (2 / units.numel()) ** 0.5 + 1e-3)
        if place == 0:
            assert torch.allclose(units.var(dim=1), torch.ones(4), atol=5 * (2 / units.shape[1]) ** 0.5 + 1e-3)
    assert not torch.equal(draws[0][0], draws[1][0])
    again = moves(RWP(rho=0.02), model, x, y, step=0)[0]
    assert all(torch.equal(one, other) for one, other in zip(draws[0], again, strict=True))


def test_the_norm_of_a_filter_is_that_of_what_makes_one_output() -> None:
    weight = torch.randn(5, 3, 2, 2)
    assert torch.allclose(filter_norms(weight).flatten(), weight.flatten(1).norm(dim=1))
    assert filter_norms(weight).shape == (5, 1, 1, 1)
    vector = torch.randn(7)
    assert torch.allclose(filter_norms(vector), vector.norm())


@pytest.mark.parametrize(("weight", "passes"), [(0.0, (1, 1)), (0.3, (2, 2)), (1.0, (2, 1))])
def test_rwp_mixes_the_gradients_and_runs_no_pass_that_has_no_weight(weight: float, passes: tuple[int, int]) -> None:
    model, (x, y) = net(), data()
    perturbation, seen = RWP(rho=0.1, noisy_weight=weight), []

    def score(images: Tensor) -> Tensor:
        seen.append([parameter.detach().clone() for parameter in model.parameters()])
        logits: Tensor = model(images)
        return logits

    batch = batch_loss(model, x, y, score=score)
    loss = perturbation.backward(batch)
    assert (batch.passes.forward, batch.passes.backward) == passes == perturbation.passes
    used = flat([parameter.grad for parameter in model.parameters() if parameter.grad is not None])
    torch.testing.assert_close(loss, cross_entropy(model(x), y).mean().detach())
    plain = flat(plain_gradient(model, x, y))
    if weight == 0:
        assert torch.equal(used, plain)
        return
    with torch.no_grad():
        for parameter, there in zip(model.parameters(), seen[-1], strict=True):
            parameter.copy_(there)
    noisy = flat(plain_gradient(model, x, y))
    assert not torch.allclose(noisy, plain)
    assert deviation("rwp, mixture", used, (1 - weight) * plain + weight * noisy) < 1e-12


@pytest.mark.parametrize("method", ["gsam", "wsam"])
def test_what_is_not_perturbed_learns_from_both_gradients_too(method: str) -> None:
    model, (x, y) = net(), data()
    plain = flat(used_gradient(NoWeightPerturbation(), model, x, y))
    sharp = flat(used_gradient(build("sam", rho=0.4, perturb_only="last"), model, x, y))
    used = flat(list(model.parameters())) - stepped(build(method, rho=0.4, perturb_only="last"), model, x, y)
    orthogonal = plain - (plain @ sharp) / (sharp @ sharp) * sharp
    expected = sharp - 0.4 * orthogonal if method == "gsam" else plain + 9 * (sharp - plain)
    torch.testing.assert_close(used, expected, rtol=1e-9, atol=1e-12)


def test_weights_out_of_range_are_refused() -> None:
    for method, setting in (
        ("wsam", {"sharpness_weight": 1}),
        ("rwp", {"noisy_weight": 1.1}),
        ("vasso", {"theta": 0}),
        ("sam", {"m": 0}),
    ):
        with pytest.raises(InputError, match=rf"weights\.{next(iter(setting))}: .*(greater|less) than"):
            build(method, **setting)
