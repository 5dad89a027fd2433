"""Perturbations of the input, against closed forms, another library, and what they must leave alone."""

from __future__ import annotations

import copy

import pytest
import torch
import torchattacks
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from sam_bench.errors import InputError
from sam_bench.perturb.inputs import FGSM, INPUT_PERTURBATIONS, PGD, NoInputPerturbation, cross_entropy
from sam_bench.records import ComponentSpec, Radius
from sam_bench.seeds import generator


class Linear(nn.Module):
    """Two classes, logit difference linear in the input: the worst case of a ball is known."""

    def __init__(self, seed: int, size: int) -> None:
        super().__init__()
        self.slope = nn.Parameter(torch.randn(size, generator=generator(seed), dtype=torch.float64))

    def forward(self, x: Tensor) -> Tensor:
        score = x.flatten(1) @ self.slope
        return torch.stack([score, -score], 1)


def small_net() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 3, stride=2), nn.BatchNorm2d(8),
        nn.ReLU(), nn.Flatten(), nn.Linear(8 * 9, 10),
    )  # fmt: skip


def images(count: int = 6, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
    x = torch.rand(count, 3, 8, 8, generator=generator("images"), dtype=dtype)
    return x, torch.randint(10, (count,), generator=generator("labels"))


@given(seed=st.integers(0, 1000), norm=st.sampled_from(["Linf", "L2"]), eps=st.floats(0.01, 0.1))
@settings(max_examples=40, deadline=None)
def test_pgd_reaches_the_closed_form_optimum_on_a_linear_model(seed: int, norm: str, eps: float) -> None:
    model = Linear(seed, 16)
    # Far enough from the box's walls that the ball alone binds.
    x = 0.3 + 0.4 * torch.rand(5, 1, 4, 4, generator=generator(seed, "x"), dtype=torch.float64)
    y = torch.randint(2, (5,), generator=generator(seed, "y"))
    found = PGD(norm=norm, eps=eps, steps=40, step_size=eps / 4).perturb(model, x, y, generator=generator(seed))
    sign = torch.where(y == 0, -1.0, 1.0).to(x).view(-1, 1)
    slope = model.slope.detach()
    step = slope.sign() if norm == "Linf" else slope / slope.norm()
    best = (x.flatten(1) + sign * eps * step).view_as(x)
    worst, reached = (cross_entropy(model(inputs).detach(), y) for inputs in (best, found))
    torch.testing.assert_close(reached, worst, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("random_start", [True, False])
@pytest.mark.parametrize("norm", ["Linf", "L2"])
def test_pgd_agrees_with_torchattacks_from_an_equal_start(norm: str, random_start: bool) -> None:
    model, (x, y) = small_net().double().eval(), images(dtype=torch.float64)
    x = 0.3 + 0.4 * x if random_start else x
    eps, size, steps = (8 / 255, 2 / 255, 10) if norm == "Linf" else (0.25, 0.05, 10)
    ours = PGD(norm=norm, eps=eps, step_size=size, steps=steps, random_start=random_start)
    start = ours.ball.sample(x, generator(3)) if random_start else x
    found = ours.perturb(model, x, y, generator=generator(3))
    kind = torchattacks.PGD if norm == "Linf" else torchattacks.PGDL2
    if random_start:
        # Theirs cannot be handed a start: its steps are replayed one at a time. The walls of the box
        # are out of reach here, so that clipping to them before or after the projection is the same.
        theirs = start
        for _ in range(steps):
            step = kind(model, eps=10.0, alpha=size, steps=1, random_start=False)
            theirs = ours.ball.project(step(theirs, y), x)
    else:
        theirs = kind(model, eps=eps, alpha=size, steps=steps, random_start=False)(x, y)
    assert (found - theirs).abs().max() < 1e-5


@pytest.mark.parametrize("bn_mode", ["train", "eval"])
@pytest.mark.parametrize("kind", [PGD, FGSM])
def test_searching_leaves_gradients_statistics_modes_and_weights_untouched(kind: type, bn_mode: str) -> None:
    model, (x, y) = small_net().train(), images()
    model[0].eval()  # a mode of its own, which must come back
    model[3].weight.requires_grad_(False)  # so must a frozen parameter
    cross_entropy(model(x), y).sum().backward()
    before = copy.deepcopy(model)
    gradients = [None if parameter.grad is None else parameter.grad.clone() for parameter in model.parameters()]
    moved = kind(bn_mode=bn_mode).perturb(model, x, y, generator=generator(0))
    assert not moved.requires_grad and (moved - x).abs().max() > 0
    for (name, now), (_, then) in zip(model.state_dict().items(), before.state_dict().items(), strict=True):
        assert torch.equal(now, then), name
    for now, then, gradient in zip(model.parameters(), before.parameters(), gradients, strict=True):
        assert now.requires_grad == then.requires_grad
        assert now.grad is None if gradient is None else torch.equal(now.grad, gradient)
    assert [module.training for module in model.modules()] == [module.training for module in before.modules()]


def test_the_mode_of_batch_norm_decides_what_is_attacked() -> None:
    model, (x, y) = small_net().train(), images()
    found = {mode: PGD(bn_mode=mode).perturb(model, x, y, generator=generator(0)) for mode in ("train", "eval")}
    assert not torch.equal(found["train"], found["eval"])
    assert torch.equal(found["eval"], PGD().perturb(model.eval(), x, y, generator=generator(0)))


def test_nothing_is_left_behind_when_the_model_fails() -> None:
    class Failing(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.zeros(1))

        def forward(self, x: Tensor) -> Tensor:
            raise RuntimeError("broken")

    model, (x, y) = Failing().train(), images()
    with pytest.raises(RuntimeError, match="broken"):
        PGD().perturb(model, x, y, generator=generator(0))
    assert model.training and model.weight.requires_grad


@pytest.mark.parametrize("method", INPUT_PERTURBATIONS.names())
def test_every_registered_perturbation_moves_inputs_within_its_ball_and_counts_its_passes(method: str) -> None:
    perturbation = INPUT_PERTURBATIONS.build(ComponentSpec(method=method))
    model, (x, y) = small_net().train(), images()
    calls = []
    perturbation.follow(torch.randn(x.shape, generator=generator(1)))  # for those that the step before moves
    model.register_forward_hook(lambda *_: calls.append(1))
    moved = perturbation.perturb(model, x, y, generator=generator(0))
    assert len(calls) == perturbation.passes[0]
    assert moved.shape == x.shape and moved.dtype == x.dtype
    assert moved.min() >= 0 and moved.max() <= 1
    assert (moved - x).abs().max() <= perturbation.reach + 1e-6
    assert (perturbation.reach == 0) == torch.equal(moved, x)
    assert INPUT_PERTURBATIONS.build(perturbation.spec()).spec() == perturbation.spec()


def test_eps_zero_is_the_clean_input() -> None:
    model, (x, y) = small_net().train(), images()
    assert torch.equal(PGD(eps=0).perturb(model, x, y, generator=generator(0)), x)
    assert NoInputPerturbation().perturb(model, x, y, generator=generator(0)) is x


def test_equal_seeds_give_equal_inputs_and_others_do_not() -> None:
    model, (x, y) = small_net().train(), images()
    first, again, other = (PGD().perturb(model, x, y, generator=generator(seed)) for seed in (1, 1, 2))
    assert torch.equal(first, again) and not torch.equal(first, other)


def test_default_steps_are_the_sources() -> None:
    assert PGD().eps == Radius("8/255") and PGD().steps == 10
    _, (x, y) = small_net(), images(1)
    flat = Linear(0, 192)
    # One step without a random start moves by exactly the default length.
    moved = PGD(steps=1, random_start=False).perturb(flat, x.double() * 0.5 + 0.25, y % 2, generator=generator(0))
    assert (moved - (x.double() * 0.5 + 0.25)).abs().max().item() == pytest.approx(2 / 255)


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ({"method": "pgdd"}, "unknown input perturbation 'pgdd'. Did you mean 'pgd'"),
        ({"method": "pgd", "rho": 1}, "inputs.rho: input perturbation 'pgd' takes .*eps.*steps"),
        ({"method": "pgd", "steps": 0}, "inputs.steps: .*greater than or equal to 1"),
        ({"method": "pgd", "eps": "8/0"}, "inputs.eps: .*divides by zero"),
        ({"method": "pgd", "eps": -1}, "inputs.eps: .*at least 0"),
        ({"method": "pgd", "norm": "L1"}, "inputs.norm: .*'Linf' or 'L2'"),
    ],
)
def test_a_wrong_setting_is_named(spec: dict[str, object], message: str) -> None:
    with pytest.raises(InputError, match=message):
        INPUT_PERTURBATIONS.build(ComponentSpec(**spec))
