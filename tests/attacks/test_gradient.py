"""PGD and FGSM as attacks: closed forms, another library, and a base that believes nothing it is handed."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
import torchattacks
from autoattack_samples import run_whole
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from sklearn.datasets import load_digits
from torch import Tensor, nn

from sam_bench.attacks import ATTACKS, Attack, ExampleAttack
from sam_bench.attacks.events import AttackWarning, Event, Examples, Verdict
from sam_bench.attacks.gradient import FGSMAttack, PGDAttack
from sam_bench.attacks.verify import SMALLEST_BATCH, Verifier, rows_for
from sam_bench.errors import InputError, SamBenchError
from sam_bench.perturb.ball import Ball
from sam_bench.perturb.inputs import input_gradient
from sam_bench.records import MISCLASSIFIED, ROBUST, ComponentSpec
from sam_bench.seeds import generator


@pytest.fixture(scope="module")
def examples() -> tuple[Tensor, Tensor]:
    """A hundred digits no network here was trained on."""
    digits = load_digits()
    return torch.tensor(digits.images[-100:], dtype=torch.float32)[:, None] / 16, torch.tensor(digits.target[-100:])


@pytest.fixture(scope="module")
def net() -> nn.Sequential:
    """A small CNN with BatchNorm, trained for a second."""
    digits = load_digits()
    x, y = torch.tensor(digits.images[:800], dtype=torch.float32)[:, None] / 16, torch.tensor(digits.target[:800])
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = nn.Sequential(
            nn.Conv2d(1, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(),
            nn.Linear(128, 10),
        )  # fmt: skip
        optimizer = torch.optim.SGD(model.parameters(), lr=0.2, momentum=0.9)
        for _ in range(40):
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(x), y).backward()
            optimizer.step()
    return model.eval()


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


# The base


class Fake(Attack):
    """A search that returns whatever it is told to; not registered, so that it is nobody's option."""

    method = "fake"
    offset: float = 0.0
    value: float | None = None

    @property
    def warnings(self) -> list[AttackWarning]:
        return [AttackWarning("fake", "a warning")]

    def perturb(self, model: nn.Module, x: Tensor, y: Tensor, ball: Ball) -> Tensor:
        """The same for every example."""
        return x + self.offset if self.value is None else torch.full_like(x, self.value)


class Brightness(nn.Module):
    """Class 1 from a mean brightness of 0.6 on."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.stack([torch.full((len(x),), 0.6), x.flatten(1).mean(1)], 1)


GREY = torch.full((5, 1, 4, 4), 0.5), torch.zeros(5, dtype=torch.int64)


def test_claims_without_a_misclassified_witness_earn_nothing() -> None:
    result = Fake(offset=0.05).run(Brightness(), *GREY, norm="Linf", eps=0.2)
    assert result.verdicts == [ROBUST] * 5 and torch.equal(result.x_adv, GREY[0])
    assert [str(each) for each in result.warnings] == ["fake: a warning"]


@pytest.mark.parametrize("norm", ["Linf", "L2"])
def test_witnesses_outside_the_ball_are_judged_where_they_fall_inside(norm: Any) -> None:
    # White is misclassified; the point of the ball on the way there only if the ball is large enough.
    small, large = (0.05, 0.15) if norm == "Linf" else (4 * 0.05, 4 * 0.15)
    outside = Fake(value=1.0)
    assert outside.run(Brightness(), *GREY, norm=norm, eps=small).verdicts == [ROBUST] * 5
    result = outside.run(Brightness(), *GREY, norm=norm, eps=large)
    assert result.verdicts == ["fake"] * 5
    assert result.x_adv.flatten().tolist() == pytest.approx([0.65] * 80)


@pytest.mark.parametrize("value", [5.0, -5.0, 1e30])
def test_witnesses_outside_the_box_are_judged_in_it(value: float) -> None:
    result = Fake(value=value).run(Brightness(), *GREY, norm="Linf", eps=1.0)
    assert result.x_adv.min() >= 0 and result.x_adv.max() <= 1
    assert result.verdicts == (["fake"] if value > 0 else [ROBUST]) * 5


@pytest.mark.parametrize("norm", ["Linf", "L2"])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_witnesses_that_are_no_numbers_earn_nothing_by_being_misclassified(value: float, norm: Any) -> None:
    x, y = GREY[0], torch.ones(5, dtype=torch.int64)
    dark = nn.Sequential(nn.Flatten(), nn.Linear(16, 2))
    with torch.no_grad():
        for parameter in dark.parameters():
            parameter.zero_()
        dark[1].bias[1] = 1.0  # always right, and NaN for NaN, whose argmax is 0: wrong
    result = Fake.model_construct(offset=0.0, value=value).run(dark, x, y, norm=norm, eps=0.1)
    assert result.verdicts == [ROBUST] * 5 and bool(result.x_adv.isfinite().all())


class Hostile(ExampleAttack):
    """Yields verdicts that nobody has granted, after a look at candidates that are `offset` brighter."""

    method = "hostile"
    claims: tuple[tuple[int, str | None, int], ...]
    offset: float | None = None

    def events(self, model: nn.Module, examples: Examples, verifier: Verifier, **how: Any) -> Iterator[Event]:
        examples.x.fill_(1.0)
        if self.offset is not None:
            verifier.check(torch.arange(len(examples)), GREY[0] + self.offset)
        for index, outcome, survived in self.claims:
            yield Verdict(index, outcome, survived, x_adv=torch.ones(1, 4, 4))


@pytest.mark.parametrize(
    ("claim", "message"),
    [
        ((0, "hostile", 0), "the attack hostile claims to have broken example 0, which the verifier has not found"),
        ((0, MISCLASSIFIED, 0), "the attack says 'misclassified' of example 0; it may say hostile, robust or None"),
        ((0, "another", 0), "the attack says 'another' of example 0; it may say hostile"),
        ((7, ROBUST, 0), "the attack says 'robust' of example 7; .* of the examples that it was given"),
        ((0, None, 2), "the attack says that example 0 has survived 2 of 1 attacks, after 0"),
        ((0, None, -1), "the attack says that example 0 has survived -1 of 1 attacks, after 0"),
    ],
)
@pytest.mark.parametrize("offset", [None, 0.05])
def test_a_verdict_that_the_verifier_did_not_grant_is_refused(
    claim: tuple[int, str | None, int], message: str, offset: float | None
) -> None:
    hostile = Hostile(claims=(claim,), offset=offset)
    with pytest.raises(SamBenchError, match=message):
        hostile.run(Brightness(), *GREY, norm="Linf", eps=0.2)


@pytest.mark.parametrize(
    "claims",
    [
        (),
        tuple((index, ROBUST, 1) for index in range(5)),
        tuple((index, "hostile", 0) for index in [0, 1, 2, 3, 4, 4, 0]),
        ((2, "hostile", 0), (2, ROBUST, 1), (2, None, 1)),
    ],
    ids=["silent", "all robust", "twice", "changes its mind"],
)
def test_what_the_verifier_found_broken_is_broken_once_whatever_the_attack_says(claims: Any) -> None:
    ran = run_whole(Hostile(claims=claims, offset=0.15), Brightness(), *GREY, norm="Linf", eps=0.2)
    final = [each for each in ran.events if isinstance(each, Verdict) and each.outcome is not None]
    assert sorted(each.example for each in final) == list(range(5))
    assert ran.verdicts == ["hostile"] * 5 and ran.x_adv.flatten().tolist() == pytest.approx([0.65] * 80)


def test_what_was_broken_without_a_word_was_broken_by_the_attack_that_came_next() -> None:
    x, y = GREY
    verifier = Verifier(Brightness(), ball=Ball(norm="Linf", eps=0.2), batch_size=5, device=x.device)
    verifier.clean(Examples(x, y, torch.arange(5), torch.tensor([0, 1, 1, 2, 0])))
    verifier.check(torch.tensor([0, 1, 3]), x[:3] + 0.15)
    told = list(verifier.remaining(["first", "second"]))
    # The fourth had survived both, when something broke it: the last one is named.
    assert [each.outcome for each in told] == ["first", "second", ROBUST, "second", ROBUST]


def test_an_attack_that_implements_nothing_says_so() -> None:
    class Nothing(Attack):
        method = "nothing"

    with pytest.raises(NotImplementedError, match="Nothing implements neither `perturb` nor `events`"):
        Nothing().run(Brightness(), *GREY, norm="Linf", eps=0.2)


class Spoiling(Fake):
    """A search that writes into what it is handed."""

    def perturb(self, model: nn.Module, x: Tensor, y: Tensor, ball: Ball) -> Tensor:
        y.fill_(1)
        return x.fill_(1.0)


def test_a_search_that_writes_into_its_inputs_changes_nothing_it_is_judged_by() -> None:
    x, y = GREY[0].clone(), GREY[1].clone()
    assert Spoiling().run(Brightness(), x, y, norm="Linf", eps=0.05).verdicts == [ROBUST] * 5
    assert torch.equal(x, GREY[0]) and torch.equal(y, GREY[1])


class Failing(Fake):
    def perturb(self, model: nn.Module, x: Tensor, y: Tensor, ball: Ball) -> Tensor:
        raise RuntimeError("out of memory")


@contextmanager
def unchanged(model: nn.Module) -> Iterator[None]:
    def state() -> list[Any]:
        flags = [(module.training,) for module in model.modules()]
        grads = [
            (parameter.requires_grad, None if parameter.grad is None else parameter.grad.tolist())
            for parameter in model.parameters()
        ]
        return [*flags, *grads, {name: value.tolist() for name, value in model.state_dict().items()}]

    before = state()
    yield
    assert state() == before


@pytest.mark.parametrize("attack", [PGDAttack(), FGSMAttack(), Fake(), Failing()], ids=lambda each: type(each).__name__)
def test_the_model_is_given_back_as_it_was(attack: Attack, net: nn.Module, examples: tuple[Tensor, Tensor]) -> None:
    model, (x, y) = copy.deepcopy(net).train(), examples
    model[1].eval()
    model[0].weight.requires_grad_(False)
    nn.functional.cross_entropy(model(x), y).backward()
    with unchanged(model):
        if isinstance(attack, Failing):
            with pytest.raises(RuntimeError, match="out of memory"):
                attack.run(model, x, y, norm="Linf", eps=0.1)
        else:
            attack.run(model, x, y, norm="Linf", eps=0.1)


def test_nothing_is_searched_where_nothing_is_right() -> None:
    result = Failing().run(Brightness(), GREY[0], torch.ones(5, dtype=torch.int64), norm="Linf", eps=0.1)
    assert result.verdicts == [MISCLASSIFIED] * 5


@pytest.mark.parametrize("name", ATTACKS.names())
def test_every_registered_attack_says_what_it_is(name: str) -> None:
    attack = ATTACKS.build(ComponentSpec(method=name))
    assert attack.attacks and not {ROBUST, MISCLASSIFIED} & set(attack.attacks)
    assert attack.implementation.split()[0] and all(field.description for field in type(attack).model_fields.values())
    assert ATTACKS.build(attack.spec()) == attack


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ({"method": "pdg"}, "unknown attack 'pdg'. Did you mean 'pgd'"),
        ({"method": "pgd", "steps": 0}, r"attack\.steps: .*greater than or equal to 1"),
        ({"method": "pgd", "restarts": 0}, r"attack\.restarts: .*greater than or equal to 1"),
        (
            {"method": "pgd", "restarts": 2, "random_start": False},
            r"attack\.restarts: more than one needs random_start: from the clean input all are.*; give restarts 1",
        ),
        ({"method": "pgd-margin", "random_start": False}, r"attack\.restarts: more than one needs random_start"),
        ({"method": "fgsm", "steps": 3}, r"attack\.steps: attack 'fgsm' takes no settings"),
        ({"method": "pgd", "step_size": "8/0"}, r"attack\.step_size: .*divides by zero"),
    ],
)
def test_a_wrong_setting_is_named(spec: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        ATTACKS.build(ComponentSpec(**spec))


def test_the_ball_of_a_run_is_the_one_it_was_asked_for() -> None:
    seen: list[Ball] = []

    class Looking(Fake):
        def perturb(self, model: nn.Module, x: Tensor, y: Tensor, ball: Ball) -> Tensor:
            seen.append(ball)
            return super().perturb(model, x, y, ball)

    Looking().run(Brightness(), *GREY, norm="L2", eps=0.25)
    assert seen == [Ball(norm="L2", eps=0.25)]


def test_what_is_judged_is_computed_in_float32_and_the_search_is_left_what_it_was_given(
    net: nn.Sequential, examples: tuple[Tensor, Tensor]
) -> None:
    seen: dict[bool, set[str]] = {True: set(), False: set()}

    class Asking(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            seen[x.requires_grad].add(torch.backends.cudnn.conv.fp32_precision)
            logits: Tensor = net(x)
            return logits

    ordinary = torch.backends.cudnn.conv.fp32_precision
    FGSMAttack().run(Asking(), *examples, norm="Linf", eps=0.1)
    assert seen == {True: {ordinary}, False: {"ieee"}} and ordinary != "ieee"
    seen[True].clear()
    PGDAttack(steps=2).run(Asking(), *examples, norm="Linf", eps=0.1)
    assert seen == {True: {"ieee"}, False: {"ieee"}}, "PGD leaves an example as soon as it takes it for broken"
    assert torch.backends.cudnn.conv.fp32_precision == ordinary


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda x, y: (x * 255, y), r"x must be in \[0, 1\], not in \[0, 255\]"),
        (lambda x, y: (x - 0.5, y), r"x must be in \[0, 1\], not in \[-0\.5, 0\.5\]"),
        (lambda x, y: (x * float("nan"), y), r"x must be in \[0, 1\], not in \[nan, nan\]"),
        (lambda x, y: ((x * 255).byte(), y), r"x must be float \[N, C, H, W\] in \[0, 1\], not uint8 \[100, 1, 8, 8\]"),
        (lambda x, y: (x[0], y), r"not float32 \[1, 8, 8\]"),
        (lambda x, y: (x, y[:5]), r"y must be 100 integers, a label for each of x, not int64 \[5\]"),
        (lambda x, y: (x, y.float()), r"not float32 \[100\]"),
    ],
    ids=["0..255", "-0.5..0.5", "nan", "bytes", "one image", "too few labels", "labels of another type"],
)
def test_inputs_that_would_look_robust_are_refused(
    change: Any, message: str, net: nn.Module, examples: tuple[Tensor, Tensor]
) -> None:
    with pytest.raises(InputError, match=message):
        PGDAttack(steps=1).run(net, *change(*examples), norm="Linf", eps=0.1)


def test_a_shrinking_batch_has_few_shapes_on_a_gpu() -> None:
    cpu, gpu = torch.device("cpu"), torch.device("cuda")
    assert {rows_for(count, gpu) for count in range(1, 257)} == {16, 32, 64, 128, 256}
    assert all(count <= rows_for(count, gpu) < max(17, 2 * count) for count in range(1, 257))
    assert {rows_for(count, cpu) for count in range(1, 257)} == {16}
