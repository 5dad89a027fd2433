"""Device and precision: what is chosen, why, and what is refused."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from sam_bench import device as rooms
from sam_bench.device import (
    choose_device,
    choose_precision,
    cpu_flags,
    device_name,
    missing_for_compile,
    true_float32,
)
from sam_bench.errors import InputError

CPU = torch.device("cpu")


def test_the_device_is_chosen_with_a_reason() -> None:
    device, why = choose_device("auto")
    assert device.type == ("cuda" if torch.cuda.is_available() else "cpu") and why
    assert choose_device("cpu") == (CPU, "asked for")


@pytest.mark.parametrize("name", ["gpu", "cuda:99", "cpu:x", "", "meta", "cuda:-2"])
def test_a_device_that_is_not_here_is_refused_with_what_would_be_right(name: str) -> None:
    with pytest.raises(
        InputError, match=rf"device='{name}' cannot be used here \(.+\); use auto, cpu or cuda"
    ) as caught:
        choose_device(name)
    assert "\n" not in str(caught.value)


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a CUDA device")
def test_cuda_is_refused_where_there_is_none() -> None:
    with pytest.raises(InputError, match="device='cuda' cannot be used here"):
        choose_device("cuda")


@pytest.mark.parametrize(
    ("asked", "team", "chosen", "current"),
    [
        ("cuda:1", 1, "cuda:1", ["cuda:1"]),
        ("cuda", 1, "cuda", []),
        ("auto", 1, "cuda", []),
        ("auto", 4, "cuda:1", ["cuda:1"]),
    ],
)
def test_a_gpu_chosen_by_its_number_becomes_the_current_one(
    asked: str, team: int, chosen: str, current: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Streams and allocations that name no device would otherwise be those of the first GPU."""
    became: list[str] = []
    make = torch.zeros
    monkeypatch.setattr(torch, "zeros", lambda *size, device: make(*size))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "set_device", lambda device: became.append(str(device)))
    monkeypatch.setenv("WORLD_SIZE", str(team))
    monkeypatch.setenv("LOCAL_RANK", "3" if team > 1 else "0")
    assert str(choose_device(asked)[0]) == chosen and became == current


@pytest.mark.parametrize("name", ["fp32", "bf16"])
def test_a_precision_asked_for_is_given(name: str) -> None:
    assert choose_precision(name, CPU) == (name, "asked for")


@pytest.mark.parametrize(
    ("flags", "gain", "expected"),
    [
        ({"amx_bf16", "avx2"}, 3.0, "bf16"),
        ({"avx512_bf16"}, 1.2, "bf16"),
        ({"avx512_bf16"}, 1.19, "fp32"),
        (set(), 2.0, "bf16"),  # ARM, whose flags have another name, or a system that tells none
        (set(), 0.1, "fp32"),
        ({"avx2"}, 3.0, "fp32"),
    ],
)
def test_a_cpu_multiplies_in_bfloat16_where_that_was_measured_to_pay(
    flags: set[str], gain: float, expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rooms, "cpu_flags", lambda: frozenset(flags))
    monkeypatch.setattr(rooms, "bf16_gain", lambda threads: gain)
    precision, why = choose_precision("auto", CPU)
    assert precision == expected
    if flags == {"avx2"}:
        assert why == "the CPU has no bfloat16 instructions"
    else:
        assert why == f"a convolution in bfloat16 is {gain:.2f} times as fast, measured now"


def test_the_gain_of_bfloat16_is_measured_and_draws_nothing() -> None:
    before = torch.get_rng_state()
    gain = rooms.bf16_gain(1)
    assert torch.equal(torch.get_rng_state(), before) and gain == rooms.bf16_gain(1)
    emulated = cpu_flags() and not any("bf16" in flag for flag in cpu_flags())
    assert 0.0 <= gain < (1.2 if emulated else 100.0)


def test_other_processes_do_not_change_the_gain_of_bfloat16(monkeypatch: pytest.MonkeyPatch) -> None:
    convolve = F.conv2d

    def waiting(*args: Any, **keywords: Any) -> torch.Tensor:
        if not torch.is_autocast_enabled("cpu"):
            time.sleep(0.2)  # as where another process has the core
        return convolve(*args, **keywords)

    rooms.bf16_gain.cache_clear()
    monkeypatch.setattr(F, "conv2d", waiting)
    assert rooms.bf16_gain(1) < 10
    rooms.bf16_gain.cache_clear()


@pytest.mark.parametrize("name", ["fp16", "float32", "BF16", ""])
def test_an_unknown_precision_is_refused(name: str) -> None:
    with pytest.raises(InputError, match=f"precision='{name}' .*auto, bf16.*fp32"):
        choose_precision(name, CPU)


@pytest.mark.parametrize(
    ("device", "programs", "triton", "cc", "missing"),
    [
        ("cpu", {"g++"}, False, None, None),
        ("cpu", {"clang++"}, False, "nothing", None),
        ("cpu", {"gcc", "clang"}, True, None, "C++ compiler"),
        ("cuda", {"gcc"}, True, None, None),
        ("cuda:1", {"clang"}, True, None, None),
        ("cuda", {"mycc"}, True, "mycc", None),
        ("cuda", {"gcc"}, True, "mycc", "C compiler 'mycc' (CC)"),
        ("cuda", {"g++"}, True, None, "C compiler"),
        ("cuda", {"gcc", "g++"}, False, None, "Triton"),
    ],
)
def test_what_torch_compile_needs_is_looked_for(
    device: str,
    programs: set[str],
    triton: bool,
    cc: str | None,
    missing: str | None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(rooms.shutil, "which", lambda name: name if name in programs else None)
    monkeypatch.setattr(rooms.importlib.util, "find_spec", lambda name: name if triton and name == "triton" else None)
    if cc is None:
        monkeypatch.delenv("CC", raising=False)
    else:
        monkeypatch.setenv("CC", cc)
    assert missing_for_compile(torch.device(device)) == missing


def test_a_device_is_named_as_a_person_would() -> None:
    name = device_name(CPU)
    assert name.endswith((", 1 thread", f", {torch.get_num_threads()} threads")) and len(name) > len(", 1 thread")


def _switches() -> list[object]:
    """What PyTorch says of float32, one by one; "mixed" where it refuses to say because the answers differ."""

    def told(read: Callable[[], object]) -> object:
        try:
            return read()
        except RuntimeError:
            return "mixed"

    cudnn, mkldnn, matmul = torch.backends.cudnn, torch.backends.mkldnn, torch.backends.cuda.matmul
    kinds = [cudnn.conv, cudnn.rnn, matmul] + [getattr(mkldnn, kind) for kind in ("conv", "rnn", "matmul")]
    old = [lambda: cudnn.allow_tf32, lambda: matmul.allow_tf32, torch.get_float32_matmul_precision]
    return [kind.fp32_precision for kind in kinds] + [told(read) for read in old]


def _old_way() -> None:
    torch.backends.cudnn.allow_tf32 = False
    torch.set_float32_matmul_precision("medium")


def _new_way() -> None:
    torch.backends.fp32_precision = "tf32"


def _mixed() -> None:
    torch.backends.cudnn.conv.fp32_precision = "ieee"
    torch.backends.cuda.matmul.fp32_precision = "tf32"


@pytest.fixture
def _as_it_was() -> Iterator[None]:
    cudnn, matmul = torch.backends.cudnn, torch.backends.cuda.matmul
    kinds = [cudnn.conv, cudnn.rnn, matmul] + [
        getattr(torch.backends.mkldnn, kind) for kind in ("conv", "rnn", "matmul")
    ]
    tf32, everywhere, before = cudnn.allow_tf32, torch.backends.fp32_precision, [kind.fp32_precision for kind in kinds]
    yield
    torch.backends.fp32_precision, cudnn.allow_tf32 = everywhere, tf32
    torch.set_float32_matmul_precision("highest")
    for kind, value in zip(kinds, before, strict=True):
        kind.fp32_precision = value


@pytest.mark.usefixtures("_as_it_was")
@pytest.mark.parametrize("wanted", [lambda: None, _old_way, _new_way, _mixed])
def test_float32_is_float32_in_the_block_and_whatever_was_wanted_after_it(wanted: Callable[[], None]) -> None:
    wanted()
    before = _switches()
    with pytest.raises(ValueError, match="inside"), true_float32():
        assert _switches() == [*["ieee"] * 6, False, False, "highest"]
        raise ValueError("inside")
    assert _switches() == before


def test_a_models_own_autocast_sees_weights_that_moved_in_the_block() -> None:
    layer, x = torch.nn.Linear(2, 2), torch.ones(1, 2)

    def answer() -> torch.Tensor:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            return layer(x)

    with true_float32():
        before = answer()
        with torch.no_grad():
            layer.bias += 1
        assert (answer() - before).mean().item() == pytest.approx(1, abs=0.05)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="only a GPU has TF32")
def test_a_convolution_on_a_gpu_is_exact_to_float32() -> None:
    torch.manual_seed(0)
    x, weight = torch.randn(8, 64, 16, 16), torch.randn(64, 64, 3, 3)
    with true_float32():
        found = torch.nn.functional.conv2d(x.cuda(), weight.cuda()).cpu().double()
    exact = torch.nn.functional.conv2d(x.double(), weight.double())
    assert (found - exact).abs().max() < 1e-5 * exact.abs().max()
