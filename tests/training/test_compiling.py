"""Whether a run is compiled, and the reason it is told."""

from __future__ import annotations

import copy
import re
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from training_samples import SETTINGS, TinyNet, assert_same, method_of, tiny_net

from sam_bench.attacks.autoattack.model_calls import ModelCalls
from sam_bench.errors import InputError
from sam_bench.training.compiling import choose_compile


class Calls(nn.Module):
    """Stands in for what `torch.compile` makes."""

    def __init__(self, made: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.made = made

    def forward(self, x: Tensor) -> Tensor:
        return self.made(x)


class Repeats(TinyNet):
    """Does its work twenty times over; a compiler that sees it does it once."""

    def forward(self, x: Tensor) -> Tensor:
        return [self.once(x) for _ in range(20)][-1]

    def once(self, x: Tensor) -> Tensor:
        return super().forward(x)


def chosen(
    device: str,
    asked: str = "auto",
    *,
    network: nn.Module | None = None,
    recipe: str = "at",
    examples: int = 10**9,
    sync_bn: bool = False,
) -> tuple[bool, str]:
    """For a run that is long enough wherever compiling works, unless there are fewer examples."""
    return choose_compile(
        asked,
        network or tiny_net(),
        method_of(recipe),
        shape=(1, 8, 8),
        examples=examples,
        device=torch.device(device),
        rows=16,
        sync_bn=sync_bn,
    )


NUMBERS = r"a pass takes [\d.e+]+ ms compiled and [\d.e+]+ ms not, compiling \d+ s, the run about [\d,]+ s"


@pytest.mark.parametrize("recipe", ["standard", "at"])
def test_a_long_run_is_compiled_where_that_was_measured_to_pay(recipe: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sam_bench.training.compiling.missing_for_compile", lambda device: None)
    monkeypatch.setattr(torch, "compile", lambda model, **_: Calls(model.once))
    network = Repeats()
    before, draws = copy.deepcopy(network.state_dict()), torch.get_rng_state()
    compiled, why = chosen("cpu", network=network, recipe=recipe)
    assert compiled and re.fullmatch(NUMBERS, why), why
    assert_same(network.state_dict(), before)
    assert torch.equal(torch.get_rng_state(), draws) and network.training
    assert all(each.requires_grad and each.grad is None for each in network.parameters())


def test_a_long_run_is_not_compiled_where_that_gains_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sam_bench.training.compiling.missing_for_compile", lambda device: None)
    monkeypatch.setattr(torch, "compile", lambda model, **_: Repeats())
    compiled, why = chosen("cpu")
    assert not compiled and re.fullmatch(NUMBERS, why), why


@pytest.mark.parametrize("pays", [True, False])
def test_the_seconds_of_the_run_are_those_of_its_passes(pays: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    network = Repeats()
    monkeypatch.setattr("sam_bench.training.compiling.missing_for_compile", lambda device: None)
    monkeypatch.setattr(torch, "compile", lambda model, **_: Calls(network.once if pays else network))
    compiled, why = chosen("cpu", network=network, recipe="standard")
    assert compiled is pays
    quick, plain, _, run = (float(each.replace(",", "")) for each in re.findall(r"[\d.,]+(?:e[+-]\d+)?(?= m?s)", why))
    steps = SETTINGS["epochs"] * 10**9 / 16
    assert run == pytest.approx(steps * (quick if pays else plain) / 1e3, rel=0.01)


def test_a_network_that_cannot_be_compiled_is_not_and_it_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(x: Tensor) -> Tensor:
        raise RuntimeError("no such instruction\nand more")

    monkeypatch.setattr("sam_bench.training.compiling.missing_for_compile", lambda device: None)
    monkeypatch.setattr(torch, "compile", lambda model, **_: Calls(refused))
    assert chosen("cpu") == (False, "it cannot be compiled: no such instruction")


def test_a_short_run_does_without_a_trial(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sam_bench.training.compiling.missing_for_compile", lambda device: None)
    monkeypatch.setattr(torch, "compile", None)
    compiled, why = chosen("cpu", examples=1000)
    assert not compiled and re.fullmatch(r"the run takes about \d+ s, too few to earn the compilation back", why)


def test_a_layer_that_torch_compile_cannot_trace_on_gpus_is_refused_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sam_bench.training.compiling.missing_for_compile", lambda device: None)
    reason = "with `sync_bn` on GPUs the graph breaks at every BatchNorm layer"
    assert chosen("cuda", sync_bn=True) == (False, reason)
    assert chosen("cuda", "off", sync_bn=True) == (False, "asked for")
    assert chosen("cpu", "on", sync_bn=True) == (True, "asked for")
    with pytest.raises(InputError, match=r"compile='on' cannot be had: with sync_bn on GPUs"):
        chosen("cuda", "on", sync_bn=True)


@pytest.mark.parametrize(("device", "missing"), [("cpu", r"C\+\+ compiler"), ("cuda", "Triton|C compiler")])
def test_a_machine_without_a_compiler_does_without_and_says_so(
    device: str, missing: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CC", raising=False)
    message = f"there is no ({missing}), which torch.compile needs"
    compiled, why = chosen(device)
    assert not compiled and re.fullmatch(message, why)
    with pytest.raises(InputError, match=f"compile='on' cannot be had: {message}; use auto or off"):
        chosen(device, "on")
    with pytest.raises(InputError, match=f"compile='on': {message}; leave it out"):
        ModelCalls(tiny_net(), least_rows=1, device=torch.device(device), compiled=True)
