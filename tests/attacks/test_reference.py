"""AutoAttack through upstream: the same verdicts as upstream's own run, attack by attack, with its doubts."""

from __future__ import annotations

import copy
import logging
from collections.abc import Callable
from typing import Any

import pyautoattack
import pytest
import torch
from autoattack_samples import run_whole
from hypothesis import given
from hypothesis import strategies as st
from sklearn.datasets import load_digits
from torch import Tensor, nn

from sam_bench.attacks.autoattack import AutoAttack
from sam_bench.attacks.base import ATTACKS, AttackResult
from sam_bench.attacks.events import Examples
from sam_bench.attacks.reference import ReferenceAutoAttack
from sam_bench.attacks.verify import Verifier
from sam_bench.attacks.warnings import explain
from sam_bench.errors import InputError
from sam_bench.integrations import upstream
from sam_bench.perturb.ball import Ball
from sam_bench.records import ComponentSpec


def shorten(suite: Any) -> Any:
    """Fewer iterations than the published attack: enough to break what is easily broken."""
    for attacker in (suite.apgd, suite.apgd_targeted):
        attacker.n_iter = attacker.n_iter_orig = 20
    suite.apgd_targeted.n_target_classes = suite.fab.n_target_classes = 3
    suite.fab.n_iter, suite.square.n_queries = 8, 150
    return suite


class ShortDriver(ReferenceAutoAttack):
    def suite(self, *args: Any, **kwargs: Any) -> Any:
        return shorten(super().suite(*args, **kwargs))


class Reference(AutoAttack):
    """The registered attack with its engine `reference`."""

    engine: Any = "reference"


class Short(Reference):
    """AutoAttack with its iterations cut, everything else as it is."""

    @property
    def _reference(self) -> ReferenceAutoAttack:
        return ShortDriver(self.version, self.suite)


@pytest.fixture(scope="module")
def images() -> tuple[Tensor, Tensor]:
    digits = load_digits()
    return torch.tensor(digits.images, dtype=torch.float32)[:, None] / 16, torch.tensor(digits.target)


def trained(x: Tensor, y: Tensor, *, front: nn.Module | None = None) -> nn.Module:
    """A small CNN, trained for a few seconds at most."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        net = nn.Sequential(
            nn.Conv2d(1, 8, 3, padding=1),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Flatten(),
            nn.Linear(128, int(y.max()) + 1),
        )
        if front is not None:
            net.insert(0, front)
        optimizer = torch.optim.Adam(net.parameters(), 1e-2)
        for _ in range(6):
            for index in torch.randperm(len(x)).split(64):
                optimizer.zero_grad()
                nn.functional.cross_entropy(net(x[index]), y[index]).backward()
                optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    return net.eval()


@pytest.fixture(scope="module")
def model(images: tuple[Tensor, Tensor]) -> nn.Module:
    return trained(images[0][:1297], images[1][:1297])


def held_out(images: tuple[Tensor, Tensor], count: int) -> tuple[Tensor, Tensor]:
    return images[0][1297 : 1297 + count], images[1][1297 : 1297 + count]


def upstreams_own(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    *,
    batch_size: int,
    version: str = "standard",
    prepare: Callable[[Any], Any] = lambda suite: suite,
    **settings: Any,
) -> tuple[Tensor, list[bool], Tensor]:
    """What `pyautoattack` says by itself: who was correct, which of those it broke, and with what."""
    adversary = prepare(pyautoattack.AutoAttack(model, version=version, **settings))
    with torch.no_grad():
        correct = model(x).argmax(1) == y
    x_adv, y_adv = adversary.run_standard_evaluation(x, y, batch_size=batch_size)
    return correct, (y_adv != y)[correct].tolist(), x_adv[correct]


def broken(result: AttackResult) -> list[bool]:
    return [verdict != "robust" for verdict in result.verdicts if verdict != "misclassified"]


@pytest.mark.parametrize(
    ("norm", "eps", "version", "batch_size", "count"),
    [
        ("Linf", 0.11, "standard", 7, 20),
        ("Linf", 0.12, "plus", 10, 16),
        ("L2", 0.55, "standard", 10, 24),
        ("Linf", 0.1, "rand", 9, 16),
        ("L1", 1.6, "standard", 7, 20),
    ],
)
def test_breaks_exactly_what_upstreams_own_evaluation_breaks(
    model: nn.Module, images: tuple[Tensor, Tensor], norm: Any, eps: float, version: Any, batch_size: int, count: int
) -> None:
    x, y = held_out(images, count)
    result = Short(version=version).run(model, x, y, norm=norm, eps=eps, seed=3, batch_size=batch_size)
    correct, expected, x_adv = upstreams_own(
        model, x, y, batch_size=batch_size, version=version, prepare=shorten, norm=norm, eps=eps, seed=3
    )
    assert not correct.all(), "the set has to hold misclassified examples, which upstream drops before batching"
    assert broken(result) == expected
    assert {True, False} == set(expected)
    assert torch.allclose(result.x_adv[correct], x_adv, atol=1e-6)


def test_an_example_is_put_down_to_the_attack_at_which_upstream_loses_it(
    model: nn.Module, images: tuple[Tensor, Tensor]
) -> None:
    x, y = held_out(images, 24)
    result = Short().run(model, x, y, norm="L2", eps=0.55, seed=0, batch_size=8)
    verdicts = [verdict for verdict in result.verdicts if verdict != "misclassified"]
    for count in (1, 2, 3):
        ran = result.attacks[:count]

        def only(suite: Any, ran: list[str] = ran) -> Any:
            suite.attacks_to_run = ran
            return shorten(suite)

        _, lost, _ = upstreams_own(model, x, y, batch_size=8, prepare=only, norm="L2", eps=0.55, seed=0)
        assert [verdict in ran for verdict in verdicts] == lost


@pytest.mark.slow
def test_breaks_exactly_what_upstream_breaks_with_the_published_number_of_iterations(
    model: nn.Module, images: tuple[Tensor, Tensor]
) -> None:
    x, y = held_out(images, 5)
    result = Reference().run(model, x, y, norm="Linf", eps=0.1, seed=0, batch_size=5)
    _, expected, _ = upstreams_own(model, x, y, batch_size=5, norm="Linf", eps=0.1, seed=0)
    assert broken(result) == expected
    assert {True, False} == set(expected)


def test_names_the_attack_that_broke_each_example_and_counts_the_batches(
    model: nn.Module, images: tuple[Tensor, Tensor]
) -> None:
    x, y = held_out(images, 24)
    result = run_whole(Short(), model, x, y, norm="L2", eps=0.55, seed=0, batch_size=5)
    assert Short().attacks == ["apgd-ce", "apgd-t", "fab-t", "square"]
    left = 24 - result.verdicts.count("misclassified")
    for attack in Short().attacks:
        stage = [progress for progress in result.progress if progress.stage == attack]
        assert stage[0].total == left
        assert [progress.done for progress in stage] == [0, *range(5, left, 5), left]
        left -= result.verdicts.count(attack)
        assert stage[-1].robust == left
    assert left == result.verdicts.count("robust") > 0


def test_the_same_seed_gives_the_same_examples_whatever_ran_before(
    model: nn.Module, images: tuple[Tensor, Tensor]
) -> None:
    x, y = held_out(images, 12)
    first = Short().run(model, x, y, norm="Linf", eps=0.1, seed=5, batch_size=6)
    torch.rand(17)
    again = Short().run(model, x, y, norm="Linf", eps=0.1, seed=5, batch_size=6)
    other = Short().run(model, x, y, norm="Linf", eps=0.1, seed=6, batch_size=6)
    assert first.verdicts == again.verdicts
    assert torch.equal(first.x_adv, again.x_adv)
    assert not torch.equal(first.x_adv, other.x_adv)


def test_leaves_gradients_flags_random_state_logger_and_console_as_they_were(
    model: nn.Module, images: tuple[Tensor, Tensor], capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    x, y = held_out(images, 6)
    model = copy.deepcopy(model)
    model.zero_grad(set_to_none=True)  # upstream's own run, in other tests, leaves them behind
    parameters = list(model.parameters())
    parameters[0].grad = torch.full_like(parameters[0], 2.0)
    state = torch.random.get_rng_state()
    handlers = list(logging.getLogger("auto-attack").handlers)
    with caplog.at_level(logging.DEBUG):
        # By itself: the base class has not frozen the parameters before.
        ball, device = Ball(norm="Linf", eps=0.1), torch.device("cpu")
        verifier, examples = Verifier(model, ball=ball, batch_size=6, device=device), Examples.of(x, y)
        right = examples.take(verifier.clean(examples))
        with torch.random.fork_rng(devices=[]):
            list(Short().events(model, right, verifier, ball=ball, seed=0, batch_size=6, device=device))
    assert torch.equal(parameters[0].grad, torch.full_like(parameters[0], 2.0))
    assert all(parameter.grad is None for parameter in parameters[1:])
    assert all(parameter.requires_grad for parameter in parameters)
    assert torch.equal(torch.random.get_rng_state(), state)
    assert logging.getLogger("auto-attack").handlers == handlers
    assert caplog.text == ""
    assert capfd.readouterr() == ("", "")


def test_names_engine_and_version_of_the_package() -> None:
    registered = ATTACKS.build(ComponentSpec(method="autoattack", engine="reference"))
    assert registered.implementation == f"pyautoattack {pyautoattack.__version__}"


@pytest.mark.parametrize("version", ["standard", "plus", "rand"])
def test_the_attacks_of_a_version_are_upstreams(version: Any) -> None:
    assert Reference(version=version).attacks == pyautoattack.AutoAttack(nn.Identity(), version=version).attacks_to_run


# AutoAttack's doubts, each provoked by a real model.


class DropoutAlways(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.dropout(x, 0.3, training=True)


class GradientInside(nn.Module):
    """Moves its input along its own loss before classifying, as defences that purify inputs do."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, x: Tensor) -> Tensor:
        with torch.enable_grad():
            inner = x.detach().requires_grad_()
            (gradient,) = torch.autograd.grad(self.net(inner).logsumexp(1).sum(), inner)
        return self.net(x + 1e-3 * gradient.sign())


class Quantised(nn.Module):
    """Rounds its input to four levels: correct outputs, zero gradients everywhere."""

    def forward(self, x: Tensor) -> Tensor:
        return (x * 3).round() / 3


def codes(result: AttackResult) -> list[str]:
    return [warning.code for warning in result.warnings]


def test_a_sound_model_raises_no_doubt(model: nn.Module, images: tuple[Tensor, Tensor]) -> None:
    x, y = held_out(images, 8)
    assert Short().run(model, x, y, norm="Linf", eps=0.1).warnings == []


def test_a_random_model_is_called_randomized(images: tuple[Tensor, Tensor]) -> None:
    x, y = images[0][:1297], images[1][:1297]
    net = trained(x, y, front=DropoutAlways())
    result = Short().run(net, *held_out(images, 10), norm="Linf", eps=0.3)
    assert codes(result)[0] == "randomized"
    assert "version rand" in result.warnings[0].text
    assert "randomized" not in codes(Short(version="rand").run(net, *held_out(images, 10), norm="Linf", eps=0.3))


def test_a_model_that_differentiates_inside_is_called_dynamic_and_the_next_one_is_not(
    model: nn.Module, images: tuple[Tensor, Tensor]
) -> None:
    x, y = held_out(images, 6)
    assert codes(Short().run(GradientInside(model), x, y, norm="Linf", eps=0.2)) == ["dynamic"]
    assert codes(Short().run(model, x, y, norm="Linf", eps=0.2)) == []


def test_a_softmax_output_is_called_probabilities(model: nn.Module, images: tuple[Tensor, Tensor]) -> None:
    x, y = held_out(images, 6)
    with_softmax = nn.Sequential(model, nn.Softmax(1))
    assert "probabilities" in codes(Short().run(with_softmax, x, y, norm="Linf", eps=0.2))


def test_a_quantised_model_is_called_out_for_its_zero_gradients_and_for_square_beating_the_rest(
    images: tuple[Tensor, Tensor],
) -> None:
    net = trained(images[0][:1297], images[1][:1297], front=Quantised())
    result = Short().run(net, *held_out(images, 16), norm="Linf", eps=0.2, seed=0)
    assert codes(result) == ["zero-gradients", "square-better"]
    assert result.verdicts.count("square") > 0
    assert "%" in result.warnings[1].text


def test_fewer_than_ten_classes_limit_the_targets_and_are_said(images: tuple[Tensor, Tensor]) -> None:
    x, y = images[0][images[1] < 5], images[1][images[1] < 5]
    net = trained(x[:600], y[:600])
    limited = {}

    class Watched(ReferenceAutoAttack):
        def suite(self, *args: Any, **kwargs: Any) -> Any:
            limited["suite"] = shorten(super().suite(*args, **kwargs))
            return limited["suite"]

    class Observed(Reference):
        @property
        def _reference(self) -> ReferenceAutoAttack:
            return Watched(self.version)

    result = Observed().run(net, x[600:608], y[600:608], norm="Linf", eps=0.15)
    assert codes(result) == ["few-classes"]
    assert "all 4 others" in result.warnings[0].text
    assert limited["suite"].apgd_targeted.n_target_classes == limited["suite"].fab.n_target_classes == 4


@pytest.mark.parametrize(
    ("classes", "version", "needed"), [(3, "standard", 4), (2, "standard", 4), (3, "plus", 4), (2, "rand", 3)]
)
def test_too_few_classes_are_refused_with_their_number_and_what_to_use(
    images: tuple[Tensor, Tensor], classes: int, version: Any, needed: int
) -> None:
    x, y = images[0][images[1] < classes], images[1][images[1] < classes]
    net = trained(x[:200], y[:200])
    instead = "use attack='autoattack' version='custom' suite='apgd-ce,fab-t,square'"
    with pytest.raises(InputError, match=rf"at least {needed} classes .* has {classes}: {instead}"):
        Short(version=version).run(net, x[200:204], y[200:204], norm="Linf", eps=0.1)


@pytest.mark.parametrize("norm", ["L2", "L1"])
@pytest.mark.parametrize(
    ("shape", "instead"),
    [((14, 14), "engine='fast'"), ((32, 24), "engine='fast'"), ((16, 34), None), ((4, 9), "5x5 pixels")],
)
def test_images_on_which_upstreams_square_fails_are_refused_before_any_work(
    shape: tuple[int, int], instead: str | None, norm: Any
) -> None:
    asked: list[int] = []

    class Wide(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            asked.append(len(x))
            return x.flatten(1)[:, :5].clone()  # upstream's Square writes into the logits

    x = torch.rand(2, 1, *shape, generator=torch.Generator().manual_seed(0))
    y = x.flatten(1)[:, :5].argmax(1)
    attack = Short(version="custom", suite=("square",))
    if instead is None:
        assert len(attack.run(Wide(), x, y, norm=norm, eps=0.1).verdicts) == 2
        return
    with pytest.raises(InputError, match=rf"attack square in {norm}.* {shape[0]}x{shape[1]}") as refused:
        attack.run(Wide(), x, y, norm=norm, eps=0.1)
    assert instead in str(refused.value) and len(asked) == 1  # to see which are right
    suite = upstream.build(Wide(), norm=norm, eps=0.1, seed=0, version="standard", device=torch.device("cpu"))
    with pytest.raises((RuntimeError, ZeroDivisionError)):
        upstream.run_attack(suite, "square", x, y)


def test_three_classes_are_enough_for_the_untargeted_losses(images: tuple[Tensor, Tensor]) -> None:
    x, y = images[0][images[1] < 3], images[1][images[1] < 3]
    result = Short(version="rand").run(trained(x[:200], y[:200]), x[200:204], y[200:204], norm="Linf", eps=0.5)
    assert result.verdicts.count("apgd-ce") + result.verdicts.count("apgd-dlr") > 0


# Those that are known by a few words are said in ours: Hypothesis knows the words, too, as they stand in the code.
@given(st.lists(st.text(max_size=60).filter(lambda text: explain([text])[0].code == "upstream"), max_size=6))
def test_no_unknown_message_of_upstream_is_lost_or_said_twice(messages: list[str]) -> None:
    warnings = explain(messages)
    assert len(warnings) == len(set(warnings))
    for message in messages:
        assert any(" ".join(message.split()) in str(warning) for warning in warnings)


def test_classic_autoattacks_log_yields_its_warnings_and_nothing_else() -> None:
    heard = upstream.Messages()
    heard.log("apgd-ce - 1/1 - 3 out of 4 successfully perturbed")
    heard.log("Warning: it seems to be a dynamic defense!")
    heard.warning("there are 2 points with zero gradient!")
    assert [doubt.code for doubt in explain(heard.warnings)] == ["dynamic", "zero-gradients"]
