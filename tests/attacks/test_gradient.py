"""PGD and FGSM as attacks: closed forms, and another library."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
import torchattacks
from autoattack_samples import run_whole
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from sam_bench.attacks import Attack
from sam_bench.attacks.gradient import FGSMAttack, PGDAttack
from sam_bench.attacks.verify import SMALLEST_BATCH
from sam_bench.perturb.inputs import input_gradient
from sam_bench.records import MISCLASSIFIED, ROBUST
from sam_bench.seeds import generator


def accuracy(verdicts: list[str]) -> float:
    return verdicts.count(ROBUST) / len(verdicts)


# PGD and FGSM


@pytest.mark.parametrize("norm", ["Linf", "L2"])
@pytest.mark.parametrize("attack", [PGDAttack(), FGSMAttack()], ids=["pgd", "fgsm"])
def test_eps_zero_breaks_nothing_that_is_right(
    attack: Attack, norm: Any, net: nn.Module, examples: tuple[Tensor, Tensor]
) -> None:
    x, y = examples
    result = attack.run(net, x, y, norm=norm, eps=0.0)
    right = (net(x).argmax(1) == y).tolist()
    assert 0.8 < sum(right) / len(right) < 1
    assert result.verdicts == [ROBUST if each else MISCLASSIFIED for each in right]
    assert torch.equal(result.x_adv, x)


@pytest.mark.parametrize("norm", ["Linf", "L2"])
def test_robust_accuracy_falls_as_the_radius_rises(norm: Any, net: nn.Module, examples: tuple[Tensor, Tensor]) -> None:
    radii = [0.0, 0.02, 0.05, 0.1, 0.2, 0.6] if norm == "Linf" else [0.0, 0.1, 0.3, 0.6, 1.2, 4.0]
    found = [accuracy(PGDAttack(steps=20).run(net, *examples, norm=norm, eps=eps).verdicts) for eps in radii]
    assert found == sorted(found, reverse=True)
    assert found[0] > 0.8 and found[-1] == 0 and len(set(found)) >= 4


class Linear(nn.Module):
    """Two classes whose logits differ by a linear function: how far the boundary is, is known."""

    def __init__(self, slope: Tensor, offset: float) -> None:
        super().__init__()
        self.slope, self.offset = nn.Parameter(slope), offset

    def forward(self, x: Tensor) -> Tensor:
        score = x.flatten(1) @ self.slope + self.offset
        return torch.stack([score, -score], 1)


@given(seed=st.integers(0, 10_000), norm=st.sampled_from(["Linf", "L2"]), random_start=st.booleans())
@settings(max_examples=40, deadline=None)
def test_on_a_linear_model_exactly_those_within_reach_of_the_boundary_are_broken(
    seed: int, norm: Any, random_start: bool
) -> None:
    slope = torch.randn(16, generator=generator(seed, "slope"))
    # Inside the box by more than any radius here, so that the ball alone binds.
    x = 0.35 + 0.3 * torch.rand(24, 1, 4, 4, generator=generator(seed, "x"))
    model = Linear(slope, float(-(x.flatten(1) @ slope).mean()))
    margin = (x.flatten(1) @ slope + model.offset).detach()
    dual = slope.norm(p=1 if norm == "Linf" else 2)
    reach = margin.abs() / dual
    eps = float(reach.sort().values[11:13].mean())  # half of them are within reach
    assume(eps < 0.3 and float((reach - eps).abs().min()) > 2e-3 * eps)
    y = torch.randint(2, (24,), generator=generator(seed, "y"))
    predicted = (margin < 0).long()
    expected = [
        MISCLASSIFIED if wrong else "pgd" if near else ROBUST
        for wrong, near in zip((predicted != y).tolist(), (reach <= eps).tolist(), strict=True)
    ]
    attack = PGDAttack(steps=60, random_start=random_start)
    result = attack.run(model, x, y, norm=norm, eps=eps, seed=seed)
    assert result.verdicts == expected


@pytest.mark.parametrize("norm", ["Linf", "L2"])
def test_fgsm_is_one_step_of_the_gradient_clipped_to_the_box(
    norm: Any, net: nn.Module, examples: tuple[Tensor, Tensor]
) -> None:
    x, y = examples
    eps = 0.1 if norm == "Linf" else 0.8
    _, gradient = input_gradient(net, x, y)
    flat = gradient.flatten(1)
    unit = gradient.sign() if norm == "Linf" else (flat / flat.norm(dim=1, keepdim=True)).view_as(x)
    moved = (x + eps * unit).clamp(0, 1)
    result = FGSMAttack().run(net, x, y, norm=norm, eps=eps)
    with torch.no_grad():
        wrong = net(moved).argmax(1) != y
    clean = torch.tensor([verdict != MISCLASSIFIED for verdict in result.verdicts])
    broken = torch.tensor([verdict == "fgsm" for verdict in result.verdicts])
    assert torch.equal(broken, wrong & clean) and 5 < broken.sum() < 100
    torch.testing.assert_close(result.x_adv[broken], moved[broken], rtol=0, atol=1e-6)


@pytest.mark.parametrize("norm", ["Linf", "L2"])
def test_pgd_breaks_all_that_torchattacks_breaks(norm: Any, net: nn.Module, examples: tuple[Tensor, Tensor]) -> None:
    x, y = examples
    eps, steps = (0.08 if norm == "Linf" else 0.6), 10
    kind = torchattacks.PGD if norm == "Linf" else torchattacks.PGDL2
    theirs = kind(net, eps=eps, alpha=eps / 4, steps=steps, random_start=False)(x, y)
    with torch.no_grad():
        broken_by_them = net(theirs).argmax(1) != y
    ours = PGDAttack(steps=steps, random_start=False).run(net, x, y, norm=norm, eps=eps)
    not_robust = torch.tensor([verdict != ROBUST for verdict in ours.verdicts])
    assert 10 < broken_by_them.sum() < 95
    # Every iterate counts here and only the last one there, so ours may break more, never fewer.
    assert bool((not_robust | ~broken_by_them).all())


class Band(nn.Module):
    """Class 1 only for a mean brightness close to 0.555; the gradient points there from both sides."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.stack([torch.zeros(len(x)), 0.01 - (x.flatten(1).mean(1) - 0.555).abs()], 1)


def test_every_iterate_counts_and_what_is_broken_is_left_alone() -> None:
    x, y = torch.full((3, 1, 4, 4), 0.5), torch.zeros(3, dtype=torch.int64)
    # From 0.5 to 0.56, inside the band, and back to 0.5: the last iterate is classified right.
    last = torchattacks.PGD(Band(), eps=0.2, alpha=0.06, steps=2, random_start=False)(x, y)
    assert last.flatten().tolist() == pytest.approx([0.5] * 48)
    result = PGDAttack(steps=2, step_size=0.06, random_start=False).run(Band(), x, y, norm="Linf", eps=0.2)
    assert result.verdicts == ["pgd"] * 3 and result.x_adv.flatten().tolist() == pytest.approx([0.56] * 48)


def test_verdicts_in_linf_do_not_depend_on_the_batch_size(net: nn.Module, examples: tuple[Tensor, Tensor]) -> None:
    # In float64, where batches of another size do not change a gradient's sign by rounding.
    model, (x, y) = copy.deepcopy(net).double(), examples
    runs = [
        PGDAttack(steps=5, restarts=2).run(model, x.double(), y, norm="Linf", eps=0.07, batch_size=size, seed=1)
        for size in (7, 100, 128)
    ]
    assert runs[0].verdicts == runs[1].verdicts == runs[2].verdicts
    assert 0.1 < accuracy(runs[0].verdicts) < 0.9


@pytest.mark.parametrize("attack", [PGDAttack(steps=3), FGSMAttack()], ids=lambda each: each.method)
def test_the_model_never_sees_so_few_rows_that_an_examples_numbers_would_depend_on_them(
    attack: Attack, net: nn.Module, examples: tuple[Tensor, Tensor]
) -> None:
    seen: list[int] = []
    watched = copy.deepcopy(net)
    watched.register_forward_pre_hook(lambda _, given: seen.append(len(given[0])))
    attack.run(watched, examples[0][:5], examples[1][:5], norm="Linf", eps=0.05, batch_size=2)
    assert seen and min(seen) >= SMALLEST_BATCH


def test_equal_seeds_give_equal_examples_and_others_do_not(net: nn.Module, examples: tuple[Tensor, Tensor]) -> None:
    first, again, other = (
        PGDAttack(steps=2).run(net, *examples, norm="Linf", eps=0.1, seed=seed).x_adv for seed in (1, 1, 2)
    )
    assert torch.equal(first, again) and not torch.equal(first, other)


def test_restarts_only_add_to_what_is_broken(net: nn.Module, examples: tuple[Tensor, Tensor]) -> None:
    found = [
        PGDAttack(steps=1, step_size=0.02, restarts=restarts).run(net, *examples, norm="Linf", eps=0.15, seed=0)
        for restarts in (1, 3, 12)
    ]
    broken = [{number for number, verdict in enumerate(each.verdicts) if verdict == "pgd"} for each in found]
    assert broken[0] <= broken[1] <= broken[2] and len(broken[0]) < len(broken[2])
    for number in broken[0]:
        assert torch.equal(found[0].x_adv[number], found[2].x_adv[number])


@pytest.mark.parametrize("norm", ["Linf", "L2"])
def test_every_verdict_has_its_witness(norm: Any, net: nn.Module, examples: tuple[Tensor, Tensor]) -> None:
    x, y = examples
    eps = 0.1 if norm == "Linf" else 0.7
    result = PGDAttack(restarts=2).run(net, x, y, norm=norm, eps=eps)
    delta = (result.x_adv - x).flatten(1)
    size = delta.abs().amax(1) if norm == "Linf" else delta.norm(dim=1)
    assert size.max() <= eps + 1e-6 and result.x_adv.min() >= 0 and result.x_adv.max() <= 1
    with torch.no_grad():
        right, right_before = net(result.x_adv).argmax(1) == y, net(x).argmax(1) == y
    for verdict, now, before in zip(result.verdicts, right.tolist(), right_before.tolist(), strict=True):
        assert verdict == (MISCLASSIFIED if not before else ROBUST if now else "pgd")
    assert {ROBUST, MISCLASSIFIED, "pgd"} == set(result.verdicts)
    untouched = torch.tensor([verdict != "pgd" for verdict in result.verdicts])
    assert torch.equal(result.x_adv[untouched], x[untouched])


def test_progress_counts_up_to_the_examples_and_down_to_the_robust(
    net: nn.Module, examples: tuple[Tensor, Tensor]
) -> None:
    result = run_whole(PGDAttack(), net, *examples, norm="Linf", eps=0.1, batch_size=30)
    told: list[Any] = result.progress
    attacked = sum(verdict != MISCLASSIFIED for verdict in result.verdicts)
    assert [each.done for each in told] == [30, 60, 90, attacked] and {each.total for each in told} == {attacked}
    assert told[-1].robust == result.verdicts.count(ROBUST)
    once: list[Any] = run_whole(FGSMAttack(), net, *examples, norm="Linf", eps=0.1, batch_size=30).progress
    assert [each.done for each in once] == [30, 60, 90, attacked] and {each.total for each in once} == {attacked}
