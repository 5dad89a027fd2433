"""How many examples at a time: what fits, and fewer where that was too many."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from evaluation_samples import CPU, Nearest, attacked, digits, problem_of
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from sam_bench.attacks import ATTACKS, Attack
from sam_bench.attacks.autoattack import AutoAttack
from sam_bench.attacks.gradient import PGDAttack
from sam_bench.errors import SamBenchError
from sam_bench.evaluation.batch_size import choose_batch_size, fitting, gradients_per_second
from sam_bench.records import ComponentSpec, Radius

SUITE = AutoAttack(version="custom", suite=("apgd-dlr",))


@given(
    fixed=st.integers(0, 10**10),
    each=st.integers(1, 10**9),
    free=st.integers(0, 2 * 10**11),
    image=st.sampled_from([4 * 64, 4 * 3072, 4 * 150528]),
)
def test_it_is_the_largest_power_of_two_that_fits_into_four_fifths_of_the_memory(
    fixed: int, each: int, free: int, image: int
) -> None:
    size = fitting((16, 64), (fixed + 16 * each, fixed + 64 * each), free, image=image)
    assert size in [2**power for power in range(4, 11)]

    def needs(examples: int) -> float:
        return fixed + examples * (each + 32 * image)

    assert size == 16 or needs(size) <= 0.8 * free * (1 + 1e-9)
    assert size == 1024 or needs(2 * size) > 0.8 * free * (1 - 1e-9)


def test_measurements_that_make_no_sense_still_give_a_size() -> None:
    assert fitting((16, 64), (10**9, 10**8), 10**10, image=3072) == 1024
    assert fitting((16, 64), (10**9, 10**8), 0, image=3072) == 16


@pytest.mark.parametrize(
    ("attack", "why"),
    [
        (PGDAttack(), "more gains nothing on this device"),
        (AutoAttack(), "more gains nothing on this device"),
        (AutoAttack(engine="reference"), "its verdicts depend on it, and this is the usual one"),
        (AutoAttack(rng="upstream"), "its verdicts depend on it, and this is the usual one"),
        (ATTACKS.build(ComponentSpec(method="torchattacks:PGD")), "its verdicts depend on it, and this is the usual"),
    ],
)
def test_without_a_gpu_and_where_verdicts_depend_on_it_it_is_the_usual_one(attack: Attack, why: str) -> None:
    size, said = choose_batch_size(Nearest(), attack, shape=(3, 32, 32), examples=60, device=CPU)
    assert size == 128 and said.startswith(why)


def test_a_cpu_takes_more_of_small_images() -> None:
    size, _ = choose_batch_size(Nearest(), AutoAttack(), shape=(1, 8, 8), examples=60, device=CPU)
    assert size == 512


class Memory:
    """The memory of a GPU that is not there: what `torch.cuda` tells of it, in MiB."""

    def __init__(self, total: int) -> None:
        self.total, self.kept, self.peak, self.seconds = total, 0, 0, 0.0

    def stand_in(self, monkeypatch: pytest.MonkeyPatch, *, gpus: int = 1) -> None:
        """Let tensors that are made on a GPU be made on the CPU, and `torch.cuda` tell of this memory."""
        zeros = torch.zeros
        monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
        monkeypatch.setattr(torch.cuda, "synchronize", lambda device: None)
        monkeypatch.setattr("sam_bench.evaluation.batch_size.time.perf_counter", lambda: self.seconds)
        monkeypatch.setattr(torch, "zeros", lambda *size, device=None, **given: zeros(*size, **given))
        told = {
            "mem_get_info": lambda: (self.total - self.kept, self.total),
            "memory_reserved": lambda: self.kept,
            "memory_allocated": lambda: self.kept,
            "max_memory_allocated": lambda: self.peak,
            "reset_peak_memory_stats": lambda: setattr(self, "peak", self.kept),
        }
        for name, tell in told.items():
            value = tell if name.startswith("reset") else partial(_in_bytes, tell)
            monkeypatch.setattr(torch.cuda, name, lambda device, value=value: value())


def _in_bytes(tell: Callable[[], Any]) -> Any:
    told = tell()
    return tuple(each << 20 for each in told) if isinstance(told, tuple) else told << 20


class Weighed(Nearest):
    """A gradient of it takes so many MiB an example, and the first one something that is kept.

    It takes as long as that of `full` examples, or longer where there are more: a GPU with so many cores.
    """

    def __init__(self, memory: Memory, *, each: int, kept: int = 0, full: int = 1) -> None:
        super().__init__()
        self.memory, self.each, self.kept, self.full = memory, each, kept, full

    def forward(self, x: Tensor) -> Tensor:
        if x.requires_grad:
            self.memory.kept = self.kept
            taken = self.kept + len(x) * self.each
            if taken > self.memory.total:
                raise torch.OutOfMemoryError("CUDA out of memory")
            self.memory.peak = max(self.memory.peak, taken)
            self.memory.seconds += 1e-4 * max(len(x), self.full)
        return super().forward(x)


def test_a_model_without_a_gradient_gets_the_usual_one(monkeypatch: pytest.MonkeyPatch) -> None:
    Memory(1000).stand_in(monkeypatch)
    model = Nearest()
    model.register_forward_hook(lambda *call: call[-1].detach())
    square = AutoAttack(version="custom", suite=("square",))
    size, said = choose_batch_size(model, square, shape=(1, 8, 8), examples=60, device=torch.device("cuda"))
    assert (size, said) == (128, "the model has no gradient to measure the memory of")


@pytest.mark.parametrize(
    ("total", "each", "kept", "expected"),
    [
        pytest.param(1024, 10, 0, 64, id="small"),
        pytest.param(1024, 10, 32, 64, id="small, and its first pass takes what is kept"),
        pytest.param(45_000, 1000, 0, 32, id="large: 64 do not fit"),
        pytest.param(10_000, 1000, 0, 16, id="larger: 16 do not fit"),
    ],
)
def test_on_a_gpu_it_is_what_fits_however_little_that_is(
    total: int, each: int, kept: int, expected: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    memory = Memory(total)
    memory.stand_in(monkeypatch)
    model = Weighed(memory, each=each, kept=kept)
    size, why = choose_batch_size(model, AutoAttack(), shape=(1, 8, 8), examples=10_000, device=torch.device("cuda"))
    assert size == expected
    assert why == (
        "the memory's room"
        if 16 * each < total
        else "the fewest there can be: a gradient of as many did not fit into the memory"
    )


@pytest.mark.parametrize(
    ("device", "processes", "sharing"),
    [("cuda", 1, 1), ("cuda", 4, 1), ("cuda", 6, 2), ("cuda", 8, 2), ("cuda:2", 4, 4)],
)
def test_processes_share_the_memory_only_with_those_on_the_same_gpu(
    device: str, processes: int, sharing: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    memory = Memory(128 * 40)
    memory.stand_in(monkeypatch, gpus=4)
    size, _ = choose_batch_size(
        Weighed(memory, each=30),
        AutoAttack(),
        shape=(1, 8, 8),
        examples=10_000,
        device=torch.device(device),
        processes=processes,
    )
    assert size == 128 // sharing


@pytest.mark.parametrize("processes", [1, 4])
@pytest.mark.parametrize(
    ("examples", "expected"),
    [(1, 16), (2, 16), (3, 32), (16, 128), (200, 128), (512, 256), (1023, 256), (1024, 512), (10_000, 1024)],
)
def test_few_examples_are_not_padded_to_all_that_the_gpu_could_do(
    examples: int, expected: int, processes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    memory = Memory(4096 * 10)
    memory.stand_in(monkeypatch)
    size, why = choose_batch_size(
        Weighed(memory, each=1, full=1024),
        AutoAttack(),
        shape=(1, 8, 8),
        examples=examples,
        device=torch.device("cuda"),
        processes=processes,
    )
    assert size == expected, "however many processes share the examples"
    assert ("so few examples" in why) == (examples < 512) and ("gradients a second" in why) == (examples >= 512)


@pytest.mark.parametrize(("full", "expected"), [(1, 128), (140, 128), (256, 256), (290, 512), (1024, 1024)])
def test_on_a_gpu_it_is_the_smallest_size_within_a_tenth_of_the_most_gradients_a_second(
    full: int, expected: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    memory = Memory(4096 * 10)
    memory.stand_in(monkeypatch)
    model = Weighed(memory, each=1, full=full)
    size, why = choose_batch_size(model, AutoAttack(), shape=(1, 8, 8), examples=10_000, device=torch.device("cuda"))
    assert size == expected and why == f"{1e4 * min(1, expected / full):,.0f} gradients a second, of at most 10,000"
    assert memory.seconds < 2.0


def test_a_size_that_does_not_fit_after_all_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    memory = Memory(4096 * 10)
    memory.stand_in(monkeypatch)
    model = Weighed(memory, each=1, full=1024)
    memory.total = 600
    assert list(gradients_per_second(model, [128, 512, 1024], (1, 8, 8), torch.device("cuda"))) == [128, 512]


class Cramped(Nearest):
    """Has memory for so many rows, as a GPU would have."""

    def __init__(self, rows: int, error: RuntimeError | None = None) -> None:
        super().__init__()
        self.rows, self.refused = rows, 0
        self.error = error or torch.OutOfMemoryError("CUDA out of memory")

    def forward(self, x: Tensor) -> Tensor:
        if len(x) > self.rows and x.requires_grad:  # what is not differentiated needs less
            self.refused += 1
            raise self.error
        return super().forward(x)


def verdicts(module: Nearest, attack: Attack, path: Path, **changes: Any) -> list[str]:
    return attacked(problem_of(module, digits(), attack, **changes), path).verdicts


@pytest.mark.parametrize("attack", [PGDAttack(steps=4, restarts=2), SUITE], ids=lambda attack: attack.method)
def test_out_of_memory_it_goes_on_with_half_as_many_and_finds_the_same(attack: Attack, tmp_path: Path) -> None:
    cramped = Cramped(rows=16)
    given: dict[str, Any] = {"batch_size": 64, "eps": Radius("40/255")}
    found = verdicts(cramped, attack, tmp_path / "cramped", **given)
    assert found == verdicts(Nearest(), attack, tmp_path / "roomy", **given)
    assert len(set(found)) > 2
    assert cramped.refused == 2, "at 64 and at 32"


def test_what_cublas_says_without_memory_is_out_of_memory_too(tmp_path: Path) -> None:
    said = "CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"
    cramped = Cramped(16, RuntimeError(said))
    given: dict[str, Any] = {"batch_size": 32, "eps": Radius("40/255")}
    found = verdicts(cramped, PGDAttack(steps=4), tmp_path / "cramped", **given)
    assert found == verdicts(Nearest(), PGDAttack(steps=4), tmp_path / "roomy", **given)
    assert cramped.refused == 1


def test_another_error_of_the_model_is_not_taken_for_it(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="shapes"):
        verdicts(Cramped(16, RuntimeError("shapes")), PGDAttack(steps=4), tmp_path / "run", batch_size=32)


def test_where_nothing_is_left_to_halve_it_is_said(tmp_path: Path) -> None:
    with pytest.raises(SamBenchError, match=r"^out of memory with 16 examples at a time; take a device"):
        verdicts(Cramped(rows=3), PGDAttack(), tmp_path, batch_size=64)


def test_a_size_that_decides_verdicts_is_not_changed(tmp_path: Path) -> None:
    attack = ATTACKS.build(ComponentSpec(method="torchattacks:PGD"))
    message = r"^out of memory with batch_size=64, on which the verdicts of torchattacks:PGD depend; give a smaller"
    with pytest.raises(SamBenchError, match=message):
        verdicts(Cramped(rows=16), attack, tmp_path, batch_size=64)
