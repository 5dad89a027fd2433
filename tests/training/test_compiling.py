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


def chosen(device: str, asked: str = "auto") -> tuple[bool, str]:
    """For a run that is long enough wherever compiling works."""
    network = torch.nn.Sequential(torch.nn.Conv2d(1, 512, 3, padding=1), torch.nn.Conv2d(512, 512, 3, padding=1))
    return choose_compile(
        asked, network, method_of("at"), shape=(1, 12, 12), examples=10**9, device=torch.device(device)
    )


def test_a_long_run_is_compiled_where_everything_is_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sam_bench.training.compiling.missing_for_compile", lambda device: None)
    for device in ("cpu", "cuda"):
        compiled, why = chosen(device)
        assert compiled and "floating-point operations" in why


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
