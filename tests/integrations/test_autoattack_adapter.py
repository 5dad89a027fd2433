"""The classic AutoAttack interface over pyautoattack: same examples, resumable, nothing left behind."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyautoattack
import pytest
import torch
from pyautoattack import checks
from torch import Tensor, nn

from sam_bench.errors import InputError
from sam_bench.integrations.autoattack_adapter import AutoAttack
from sam_bench.integrations.state import EvaluationState
from sam_bench.integrations.upstream import clean_checks

Cut = Callable[[Any], Any]


@pytest.mark.parametrize(
    ("norm", "eps", "version", "bs"),
    [
        ("Linf", 0.08, "standard", 6),
        ("L2", 1.5, "plus", 10),
        pytest.param("L1", 12.0, "standard", 7, marks=pytest.mark.slow),
    ],
)
def test_finds_the_same_examples_as_pyautoattack_bit_for_bit(
    model: nn.Module, batch: tuple[Tensor, Tensor], shorten: Cut, norm: Any, eps: float, version: Any, bs: int
) -> None:
    x, y = batch[0][:10], batch[1][:10]
    ours = shorten(AutoAttack(model, norm=norm, eps=eps, seed=1, version=version, verbose=False, device="cpu"))
    theirs = shorten(pyautoattack.AutoAttack(model, norm=norm, eps=eps, seed=1, version=version))
    x_adv, y_adv = ours.run_standard_evaluation(x, y, bs=bs, return_labels=True)
    expected, expected_labels = theirs.run_standard_evaluation(x, y, batch_size=bs)
    assert torch.equal(x_adv, expected)
    assert torch.equal(y_adv, expected_labels)
    assert 0 < (y_adv == y).sum() < len(y)


def test_returns_labels_only_on_request_and_each_attack_by_itself(
    model: nn.Module, batch: tuple[Tensor, Tensor], shorten: Cut
) -> None:
    x, y = batch
    adversary = shorten(
        AutoAttack(model, eps=0.08, seed=0, version="custom", attacks_to_run=["apgd-ce", "square"], verbose=False)
    )
    assert torch.is_tensor(adversary.run_standard_evaluation(x, y, bs=12))
    alone = adversary.run_standard_evaluation_individual(x, y, bs=12, return_labels=True)
    assert list(alone) == adversary.attacks_to_run == ["apgd-ce", "square"]
    for x_adv, y_adv in alone.values():
        with torch.no_grad():
            assert torch.equal(model(x_adv).argmax(1), y_adv)
    with torch.no_grad():
        assert adversary.clean_accuracy(x, y, bs=5) == pytest.approx(float((model(x).argmax(1) == y).float().mean()))


def test_prints_and_logs_what_the_classic_package_does_and_is_silent_otherwise(
    model: nn.Module, batch: tuple[Tensor, Tensor], shorten: Cut, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    x, y = batch[0][:14], batch[1][:14]
    log = tmp_path / "log.txt"
    shorten(AutoAttack(model, eps=0.08, seed=0, log_path=str(log))).run_standard_evaluation(x, y, bs=12)
    printed = capfd.readouterr().out
    for line in (
        "setting parameters for standard version",
        "using standard version including apgd-ce, apgd-t, fab-t, square.",
        "initial accuracy: ",
        "apgd-ce - 1/2 - ",
        "robust accuracy after APGD-CE: ",
        "max Linf perturbation: 0.08000, nan in tensor: 0",
        "robust accuracy: ",
    ):
        assert line in printed
    assert log.read_text() == printed
    shorten(AutoAttack(model, eps=0.08, seed=0, verbose=False)).run_standard_evaluation(x, y, bs=12)
    assert capfd.readouterr() == ("", "")


def test_leaves_no_gradients_in_the_model(model: nn.Module, batch: tuple[Tensor, Tensor], shorten: Cut) -> None:
    x, y = batch[0][:6], batch[1][:6]
    reference = shorten(pyautoattack.AutoAttack(model, eps=0.05, seed=0))
    reference.run_standard_evaluation(x, y)
    assert any(parameter.grad is not None for parameter in model.parameters()), "upstream has stopped doing so"
    model.zero_grad(set_to_none=True)
    shorten(AutoAttack(model, eps=0.05, seed=0, verbose=False)).run_standard_evaluation(x, y)
    assert all(parameter.grad is None for parameter in model.parameters())


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"version": "standart"}, "Did you mean 'standard'"),
        ({"version": "custom", "attacks_to_run": ["apgd-c"]}, "Did you mean 'apgd-ce'"),
        ({"attacks_to_run": ["square"]}, "version='custom'"),
        ({"is_tf_model": True}, "TensorFlow"),
    ],
)
def test_refuses_what_it_cannot_do_before_any_work(model: nn.Module, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        AutoAttack(model, **settings)


class Interrupted(nn.Module):
    """The model, until it has been asked so often; then somebody presses Ctrl-C."""

    def __init__(self, net: nn.Module, calls: int) -> None:
        super().__init__()
        self.net, self.left = net, calls

    def forward(self, x: Tensor) -> Tensor:
        self.left -= 1
        if self.left < 0:
            raise KeyboardInterrupt
        return self.net(x)


@pytest.mark.parametrize("share", [0.005, 0.1, 0.4, 0.9])
def test_a_run_killed_anywhere_and_resumed_ends_like_one_that_was_not(
    model: nn.Module, batch: tuple[Tensor, Tensor], shorten: Cut, tmp_path: Path, share: float
) -> None:
    x, y = batch[0][:11], batch[1][:11]
    settings: dict[str, Any] = {"eps": 0.08, "seed": 0, "verbose": False}
    whole = tmp_path / "whole.json"
    counted = Interrupted(model, 1_000_000)
    shorten(AutoAttack(counted, **settings)).run_standard_evaluation(x, y, bs=6, state_path=whole)
    calls = int(share * (1_000_000 - counted.left))
    path = tmp_path / "killed.json"
    with pytest.raises(KeyboardInterrupt):
        shorten(AutoAttack(Interrupted(model, calls), **settings)).run_standard_evaluation(x, y, bs=6, state_path=path)
    shorten(AutoAttack(model, **settings)).run_standard_evaluation(x, y, bs=6, state_path=str(path))
    resumed, expected = EvaluationState.from_disk(path), EvaluationState.from_disk(whole)
    assert resumed.robust_flags is not None and expected.robust_flags is not None
    assert torch.equal(resumed.robust_flags, expected.robust_flags)
    assert resumed.run_attacks == expected.run_attacks == expected.attacks_to_run
    assert resumed.clean_accuracy == expected.clean_accuracy
    assert 0 < resumed.robust_accuracy < 1


def test_a_resumed_run_does_not_repeat_the_batches_that_were_done(
    model: nn.Module, batch: tuple[Tensor, Tensor], shorten: Cut, tmp_path: Path
) -> None:
    x, y = batch[0][:8], batch[1][:8]
    settings: dict[str, Any] = {"eps": 0.02, "version": "custom", "attacks_to_run": ["square"], "verbose": False}
    counted = Interrupted(model, 1_000_000)
    shorten(AutoAttack(counted, **settings)).run_standard_evaluation(x, y, bs=2)
    whole = 1_000_000 - counted.left
    path = tmp_path / "state.json"
    with pytest.raises(KeyboardInterrupt):
        killed = Interrupted(model, int(0.9 * whole))
        shorten(AutoAttack(killed, **settings)).run_standard_evaluation(x, y, bs=2, state_path=path)
    rest = Interrupted(model, 1_000_000)
    shorten(AutoAttack(rest, **settings)).run_standard_evaluation(x, y, bs=2, state_path=path)
    assert 1_000_000 - rest.left < whole / 2


def test_a_finished_run_resumed_attacks_nothing_again(
    model: nn.Module, batch: tuple[Tensor, Tensor], shorten: Cut, tmp_path: Path
) -> None:
    x, y = batch
    path = tmp_path / "state.json"
    shorten(AutoAttack(model, eps=0.08, seed=0, verbose=False)).run_standard_evaluation(x, y, state_path=path)
    calls = Interrupted(model, 10_000)
    again = shorten(AutoAttack(calls, eps=0.08, seed=0, verbose=False))
    assert torch.equal(again.run_standard_evaluation(x, y, state_path=path), x)
    assert 10_000 - calls.left <= 10  # clean logits, upstream's checks, and two passes that say whose state it is


def test_a_state_written_by_pyautoattack_is_read_and_finished(
    model: nn.Module, batch: tuple[Tensor, Tensor], shorten: Cut, tmp_path: Path
) -> None:
    x, y = batch
    path = tmp_path / "state.json"
    theirs = shorten(pyautoattack.AutoAttack(Interrupted(model, 100), eps=0.08, seed=0))
    with pytest.raises(KeyboardInterrupt):
        theirs.run_standard_evaluation(x, y, batch_size=6, state_path=path)
    begun = EvaluationState.from_disk(path)
    assert begun.attacks_to_run == {"apgd-ce", "apgd-t", "fab-t", "square"}
    ours = shorten(AutoAttack(model, eps=0.08, seed=0, verbose=False))
    with pytest.warns(UserWarning, match="does not say which model, images, norm and eps"):
        ours.run_standard_evaluation(x, y, bs=6, state_path=path)
    assert EvaluationState.from_disk(path).run_attacks == begun.attacks_to_run


def test_a_state_of_another_run_is_refused_by_name(
    model: nn.Module, batch: tuple[Tensor, Tensor], tmp_path: Path
) -> None:
    x, y = batch
    path = tmp_path / "state.json"
    state = EvaluationState({"square"}, path)
    state.robust_flags = torch.ones(3, dtype=torch.bool)
    one = AutoAttack(model, version="custom", attacks_to_run=["square"], verbose=False)
    with pytest.raises(InputError, match=r"state\.json belongs to a run on 3 examples, not on 24"):
        one.run_standard_evaluation(x, y, state_path=path)
    with pytest.raises(InputError, match=r"state\.json belongs to a run of square, not of apgd-ce"):
        AutoAttack(model, verbose=False).run_standard_evaluation(x, y, state_path=path)
    path.write_text('{"_attacks_to_run": ')
    with pytest.raises(InputError, match=r"state\.json is not an AutoAttack state: delete it"):
        one.run_standard_evaluation(x, y, state_path=path)


def test_clean_checks_forget_an_earlier_dynamic_model_and_give_the_tracer_back() -> None:
    def tracer(frame: Any, event: str, argument: Any) -> None:
        return None

    before = sys.gettrace()
    checks.funcs["grad"] = 5
    try:
        sys.settrace(tracer)
        with clean_checks():
            assert set(checks.funcs.values()) == {0}
            sys.settrace(None)
            checks.funcs["backward"] = 1
        assert sys.gettrace() is tracer
    finally:
        sys.settrace(before)
    assert set(checks.funcs.values()) == {0}
