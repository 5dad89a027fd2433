"""Which device and which precision, each with the reason, so that it can be said at the start."""

from __future__ import annotations

import importlib.util
import os
import platform
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import cache, partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from sam_bench.distributed import local_rank, team_size
from sam_bench.errors import InputError, first_line
from sam_bench.records import Precision

_PAYS = 1.2
"""So many times as fast as float32 has bfloat16 to be: its rounding is no use without a gain."""

_ROUNDS = 3  # of a probe, a pass in each type; the fastest of each counts


def out_of_memory(error: RuntimeError) -> bool:
    """Whether the device had no room, by what PyTorch says, or cuBLAS and cuDNN, which ask for memory themselves."""
    return isinstance(error, torch.OutOfMemoryError) or "STATUS_ALLOC_FAILED" in str(error)


def choose_device(name: str = "auto") -> tuple[torch.device, str]:
    """The device to run on, and why. Of several processes started by `torchrun`, each gets a GPU of its own.

    A GPU with a number also becomes the process's current one: whatever asks PyTorch for "cuda" without a number,
    or for the current stream, means the GPU that was chosen.

    Args:
        name: "auto", "cpu", "cuda", "cuda:1", "mps".

    Raises:
        InputError: PyTorch does not know the device or does not see it here.
    """
    if name == "auto":
        if torch.cuda.is_available() and team_size() > 1:
            device = torch.device("cuda", local_rank() % torch.cuda.device_count())
            torch.cuda.set_device(device)
            return device, "its place on this machine"
        if torch.cuda.is_available():
            return torch.device("cuda"), "CUDA is available"
        return torch.device("cpu"), "no CUDA device is visible"
    try:
        device = torch.device(name)
        torch.zeros(1, device=device).item()  # reading a value back tells a real device from `meta`
    except (RuntimeError, AssertionError) as error:
        raise InputError(
            f"cannot be used here ({first_line(error)})", field="device", value=name, hint="use auto, cpu or cuda"
        ) from error
    if device.type == "cuda" and device.index is not None:
        torch.cuda.set_device(device)
    return device, "asked for"


def gpu_of_worker(worker: int, *, device: str) -> dict[str, int]:
    """`gpu` for a worker, one to each in turn; nothing where there is none, or one was named.

    Args:
        worker: Its number, from 0.
        device: What was asked for, as for `choose_device`.
    """
    if device not in ("auto", "cuda") or not torch.cuda.is_available():
        return {}
    return {"gpu": worker % torch.cuda.device_count()}


def choose_precision(name: str, device: torch.device, gain: Callable[[], float] | None = None) -> tuple[Precision, str]:
    """The precision of training's matrix work, and why. Weights, BatchNorm and losses stay float32.

    Args:
        name: "auto", "bf16" or "fp32".
        device: Where training runs.
        gain: Measures how many times as fast as in float32 a CPU runs the network in bfloat16; without it a
            convolution is measured.
    """
    if name == "fp32":
        return "fp32", "asked for"
    if name == "bf16":
        return "bf16", "asked for"
    if name != "auto":
        raise InputError("is not one of auto, bf16, fp32", field="precision", value=name)
    if device.type == "cuda":
        if torch.cuda.is_bf16_supported(including_emulation=False):
            return "bf16", "the GPU multiplies bfloat16 natively"
        return "fp32", "the GPU has no native bfloat16"
    if device.type != "cpu":
        return "fp32", f"not tried on {device.type}"
    if (flags := cpu_flags()) and not any("bf16" in flag for flag in flags):
        return "fp32", "the CPU has no bfloat16 instructions"
    times, what = (bf16_gain(torch.get_num_threads()), "a convolution") if gain is None else (gain(), "the network")
    return "bf16" if times >= _PAYS else "fp32", f"{what} in bfloat16 is {times:.2f} times as fast, measured now"


@cache
def bf16_gain(threads: int) -> float:
    """How many times as fast as in float32 the CPU computes in bfloat16; 0 where it cannot.

    Measured, in a second or less: a 3x3 convolution of 64 channels, forward and backward. Which instructions a CPU
    has does not tell how fast they are. The processor's seconds count: those on the wall also hold what other
    processes do.

    Args:
        threads: That PyTorch uses now.
    """
    x, weight = torch.ones(4 * threads, 64, 16, 16), torch.ones(64, 64, 3, 3)
    x, weight = (each.contiguous(memory_format=torch.channels_last).requires_grad_() for each in (x, weight))
    return measured_gain(lambda: F.conv2d(x, weight, padding=1), (x, weight))


def measured_gain(forward: Callable[[], Tensor], leaves: Sequence[Tensor]) -> float:
    """How many times as fast as in float32 a forward and a backward pass are in bfloat16; 0 where they are refused.

    Args:
        forward: A pass.
        leaves: What it is differentiated by.
    """
    seconds: dict[bool, list[float]] = {False: [], True: []}
    try:
        for _ in range(_ROUNDS):
            for bf16, passes in seconds.items():
                started = time.process_time()
                with torch.enable_grad(), torch.autocast("cpu", dtype=torch.bfloat16, enabled=bf16):
                    found = forward()
                torch.autograd.grad(found, leaves, torch.ones_like(found), allow_unused=True)
                passes.append(time.process_time() - started)
    except RuntimeError:
        return 0.0
    return min(seconds[False]) / min(seconds[True])


def send(tensor: Tensor, device: torch.device) -> Tensor:
    """A tensor on a device, from the CPU without waiting for what that device is doing.

    A plain `to` does wait: a GPU would run dry at every batch.
    """
    return (tensor.pin_memory() if device.type == "cuda" and tensor.is_cpu else tensor).to(device, non_blocking=True)


@contextmanager
def true_float32() -> Iterator[None]:
    """Compute with float32 in float32 on every device, for the time of a block.

    PyTorch lets a GPU round the inputs of convolutions to TF32, with a mantissa of 10 bits, unless it is told
    otherwise, and can be told to do the same and worse to matrix products: enough to decide an example that
    lies at the decision boundary. A caller's `torch.autocast` is off in the block, the model's own is left alone.
    """
    switches = _float32_switches()
    before: list[tuple[Callable[[Any], None], Any]] = []
    for read, write, _ in switches:
        # One of the old switches cannot be read where the new ones differ; putting these back is enough then.
        with suppress(RuntimeError):
            before.append((write, read()))
    try:
        for _, write, exact in switches:
            write(exact)
        # Nor is a cast weight kept: a model's own autocast would see it also after the weights have moved.
        off = partial(torch.autocast, enabled=False, cache_enabled=False)
        with off("cpu"), off("cuda"):
            yield
    finally:
        for write, value in before:
            write(value)


def _float32_switches() -> list[tuple[Callable[[], Any], Callable[[Any], None], Any]]:
    """PyTorch's switches, the old ones first: how to read and to write each, and its value for exact float32."""

    def attribute(owner: Any, name: str, exact: Any) -> tuple[Callable[[], Any], Callable[[Any], None], Any]:
        return partial(getattr, owner, name), partial(setattr, owner, name), exact

    cudnn, mkldnn, matmul = torch.backends.cudnn, torch.backends.mkldnn, torch.backends.cuda.matmul
    switches = [
        attribute(cudnn, "allow_tf32", False),
        (torch.get_float32_matmul_precision, torch.set_float32_matmul_precision, "highest"),
    ]
    if hasattr(cudnn, "conv"):  # PyTorch 2.9 and later: one for every kind of operation
        kinds = [(cudnn, "conv"), (cudnn, "rnn"), (mkldnn, "conv"), (mkldnn, "rnn"), (mkldnn, "matmul")]
        each = [matmul, *(getattr(backend, kind) for backend, kind in kinds)]
        switches += [attribute(owner, "fp32_precision", "ieee") for owner in each]
    return switches


@contextmanager
def fastest_convolutions() -> Iterator[None]:
    """Have cuDNN try its algorithms on every new shape and keep the fastest, for the time of a block.

    For training, whose shapes repeat. Not for evaluations: which algorithm is the fastest, and with it the
    rounding, can differ from one run to the next.
    """
    with _cudnn(benchmark=True, deterministic=torch.backends.cudnn.deterministic):
        yield


@contextmanager
def repeatable_convolutions() -> Iterator[None]:
    """Have cuDNN compute the same numbers every time, for the time of a block.

    For searches and verdicts: its fastest algorithms add up in any order, which can decide an example at the
    boundary, and choosing them anew for every shape takes longer than a few passes gain.
    """
    with _cudnn(benchmark=False, deterministic=True):
        yield


@contextmanager
def _cudnn(*, benchmark: bool, deterministic: bool) -> Iterator[None]:
    cudnn = torch.backends.cudnn
    before = cudnn.benchmark, cudnn.deterministic
    cudnn.benchmark, cudnn.deterministic = benchmark, deterministic
    try:
        yield
    finally:
        cudnn.benchmark, cudnn.deterministic = before


def missing_for_compile(device: torch.device) -> str | None:
    """What `torch.compile` needs for a device and does not find, by its name; None where nothing is missing.

    For a CPU it writes C++. For a GPU it writes for Triton, which in turn compiles its launchers with the C compiler
    that CC names, or else with gcc or clang.
    """
    if device.type == "cpu":
        return None if any(map(shutil.which, ("g++", "clang++", "c++"))) else "C++ compiler"
    if device.type == "cuda":
        if importlib.util.find_spec("triton") is None:
            return "Triton"
        named = os.environ.get("CC")
        if not any(map(shutil.which, ("gcc", "clang") if named is None else (named,))):
            return "C compiler" if named is None else f"C compiler {named!r} (CC)"
    return None


def cpu_flags() -> frozenset[str]:
    """The CPU's feature flags as Linux names them; empty where they cannot be read."""
    return frozenset(_cpuinfo("flags"))


@cache
def _cpuinfo(field: str) -> list[str]:
    """The words that Linux says of the first core's field; none where it cannot be read."""
    with suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith(field):
                return line.split(":", 1)[1].split()
    return []


def device_name(device: torch.device) -> str:
    """A device as a card names it: model, and for a CPU the threads in use."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    if device.type == "cpu":
        threads = torch.get_num_threads()
        name = " ".join(_cpuinfo("model name")) or platform.processor() or platform.machine()
        return f"{name}, {threads} thread{'s' if threads > 1 else ''}"
    return str(device)
