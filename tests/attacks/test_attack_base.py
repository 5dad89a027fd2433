"""The base of all attacks believes nothing that it is handed."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from autoattack_samples import run_whole
from torch import Tensor, nn

from sam_bench.attacks import ATTACKS, Attack, ExampleAttack
from sam_bench.attacks.events import AttackWarning, Event, Examples, Verdict
from sam_bench.attacks.gradient import FGSMAttack, PGDAttack
from sam_bench.attacks.verify import Verifier, rows_for
from sam_bench.errors import InputError, SamBenchError
from sam_bench.perturb.ball import Ball
from sam_bench.records import MISCLASSIFIED, ROBUST, ComponentSpec


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
        (lambda x, y: (x, y - 3), "y must be labels from 0, not from -3"),
        (lambda x, y: (x, y + 8), r"y has labels up to \d+, but the model knows \d+ classes"),
        (lambda x, y: (x, y.float()), r"not float32 \[100\]"),
    ],
    ids=[
        "0..255",
        "-0.5..0.5",
        "nan",
        "bytes",
        "one image",
        "too few labels",
        "labels below 0",
        "labels beyond the classes",
        "labels of another type",
    ],
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
