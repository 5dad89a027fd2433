"""Device and precision: what is chosen, why, and what is refused."""

from __future__ import annotations

import pytest
import torch

from sam_bench import device as rooms
from sam_bench.device import choose_device, choose_precision, device_name, package_versions
from sam_bench.errors import InputError

CPU = torch.device("cpu")


def test_the_device_is_chosen_with_a_reason() -> None:
    device, why = choose_device("auto")
    assert device.type == ("cuda" if torch.cuda.is_available() else "cpu") and why
    assert choose_device("cpu") == (CPU, "asked for")


@pytest.mark.parametrize("name", ["gpu", "cuda:99", "cpu:x", "", "meta", "cuda:-2"])
def test_a_device_that_is_not_here_is_refused_with_what_would_be_right(name: str) -> None:
    with pytest.raises(
        InputError, match=rf"--device '{name}' cannot be used here \(.+\); use auto, cpu or cuda"
    ) as caught:
        choose_device(name)
    assert "\n" not in str(caught.value)


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a CUDA device")
def test_cuda_is_refused_where_there_is_none() -> None:
    with pytest.raises(InputError, match="--device 'cuda' cannot be used here"):
        choose_device("cuda")


@pytest.mark.parametrize("name", ["fp32", "bf16"])
def test_a_precision_asked_for_is_given(name: str) -> None:
    assert choose_precision(name, CPU) == (name, "asked for")


@pytest.mark.parametrize(("flags", "expected"), [({"amx_bf16", "avx2"}, "bf16"), ({"avx2"}, "fp32"), (set(), "fp32")])
def test_a_cpu_multiplies_in_bfloat16_only_where_it_has_a_unit_for_it(
    flags: set[str], expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rooms, "cpu_flags", lambda: frozenset(flags))
    precision, why = choose_precision("auto", CPU)
    assert precision == expected and why


@pytest.mark.parametrize("name", ["fp16", "float32", "BF16", ""])
def test_an_unknown_precision_is_refused(name: str) -> None:
    with pytest.raises(InputError, match=f"--precision '{name}' .*auto, bf16.*fp32"):
        choose_precision(name, CPU)


def test_a_device_is_named_as_a_person_would() -> None:
    name = device_name(CPU)
    assert name.endswith((", 1 thread", f", {torch.get_num_threads()} threads")) and len(name) > len(", 1 thread")


def test_the_versions_that_decide_numbers_are_there() -> None:
    versions = package_versions()
    assert {"python", "torch", "torchvision", "timm", "numpy", "robustbench"} <= set(versions)
    assert versions["torch"].split("+")[0] == torch.__version__.split("+")[0]
    assert {"pyautoattack", "autoattack"} & set(versions)
