"""Whether a run is compiled, and the reason it is told."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
from training_samples import method_of, tiny_net

from sam_bench.attacks.autoattack.model_calls import ModelCalls
from sam_bench.errors import InputError
from sam_bench.training.compiling import choose_compile


def chosen(
    device: str, asked: str = "auto", *, recipe: str = "at", examples: int = 10**9, sync_bn: bool = False
) -> tuple[bool, str]:
    """For a run that is long enough wherever compiling works, unless there are fewer examples."""
    network = torch.nn.Sequential(torch.nn.Conv2d(1, 512, 3, padding=1), torch.nn.Conv2d(512, 512, 3, padding=1))
    return choose_compile(
        asked,
        network,
        method_of(recipe),
        shape=(1, 12, 12),
        examples=examples,
        device=torch.device(device),
        sync_bn=sync_bn,
    )


def test_a_long_run_is_compiled_where_everything_is_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sam_bench.training.compiling.missing_for_compile", lambda device: None)
    for device in ("cpu", "cuda"):
        compiled, why = chosen(device)
        assert compiled and "floating-point operations" in why


@pytest.mark.parametrize("recipe", ["standard", "sam"])
def test_on_a_cpu_what_only_learns_is_not_compiled_without_being_asked(
    recipe: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sam_bench.training.compiling.missing_for_compile", lambda device: None)
    assert chosen("cpu", recipe=recipe) == (False, "on a CPU only the search of inputs gains from it everywhere")
    assert chosen("cpu", "on", recipe=recipe) == (True, "asked for")
    assert chosen("cuda", recipe=recipe)[0]


def test_a_gpu_compiles_from_two_minutes_of_work_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sam_bench.training.compiling.missing_for_compile", lambda device: None)
    # 0.69 GFLOP forward, 3 passes' work an image, 2 epochs: 4.1e9 FLOP an example.
    assert chosen("cuda", recipe="standard", examples=5_500_000)[0]
    short, why = chosen("cuda", recipe="standard", examples=4_000_000)
    assert not short and why == "the run is too short to earn the compilation back"


def test_a_layer_that_torch_compile_cannot_trace_on_gpus_is_refused_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sam_bench.training.compiling.missing_for_compile", lambda device: None)
    reason = "with `sync_bn` on GPUs the graph breaks at every BatchNorm layer"
    assert chosen("cuda", sync_bn=True) == (False, reason)
    assert chosen("cuda", "off", sync_bn=True) == (False, "asked for") and chosen("cpu", sync_bn=True)[0]
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
