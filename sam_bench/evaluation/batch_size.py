"""How many examples at a time: on a GPU the fewest that keep it busy, as far as its memory has room."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping

import torch
from torch import nn

from sam_bench.attacks import Attack
from sam_bench.attacks.verify import SMALLEST_BATCH, rows_that_fill_a_cpu
from sam_bench.device import out_of_memory
from sam_bench.modes import attacking
from sam_bench.perturb.inputs import input_gradient

USUAL = 128
"""Fills a CPU, and is what results that depend on the batch size are compared at."""

_SIZES = (128, 256, 512, 1024)
"""What is timed. Every pass is padded to the size, so that a large one is paid for with rows that do nothing."""

_NEARLY = 0.9  # of the most gradients a second is as good as the most
_SECONDS = 0.15  # that each size is timed for, after its first passes
_SHARE = 0.8  # of what is free: the attacks and the allocator need the rest
_PROBES = (16, 64), (4, 16)  # the second pair where 64 do not fit
_AHEAD = 8  # rows an example keeps busy: targets and restarts run side by side, Square asks further ahead
_IMAGES_KEPT = 32  # an attack remembers about so many images for each row of its batch


def choose_batch_size(
    module: nn.Module,
    attack: Attack,
    *,
    shape: tuple[int, ...],
    examples: int,
    device: torch.device,
    processes: int = 1,
) -> tuple[int, str]:
    """A batch size, and why.

    On a GPU a batch is padded to this size, so it is the smallest with nearly the most gradients a second. It is not
    larger than the examples have a use for. Those of the whole evaluation count: an example's numbers depend on the
    size, and must not on the shard it is in.

    Args:
        module: The model, on `device`.
        attack: What will run.
        shape: Of one image, (C, H, W).
        examples: How many the evaluation has, in all of its processes.
        device: Where it will run.
        processes: How many run side by side; with no GPU named, each is given one in turn.
    """
    if not attack.per_example:
        return USUAL, "its verdicts depend on it, and this is the usual one"
    if device.type != "cuda":
        filled = rows_that_fill_a_cpu(math.prod(shape))
        if filled > USUAL:
            return filled, "so many small images fill a pass"
        return USUAL, "more gains nothing on this device"
    try:
        probed = _probed(module, shape, device)
    except RuntimeError:  # what needs a gradient has been refused; Square does not
        return USUAL, "the model has no gradient to measure the memory of"
    if probed is None:
        return SMALLEST_BATCH, "the fewest there can be: a gradient of as many did not fit into the memory"
    torch.cuda.empty_cache()  # what this process keeps for later is no room for its workers
    free = torch.cuda.mem_get_info(device)[0] + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    sharing = processes if device.index is not None else math.ceil(processes / torch.cuda.device_count())
    room = fitting(*probed, free // sharing, image=4 * math.prod(shape))
    busy = max(SMALLEST_BATCH, _AHEAD << (examples - 1).bit_length())
    sizes = [size for size in _SIZES if size <= min(room, busy) and (size == _SIZES[0] or 2 * size <= examples)]
    if len(sizes) > 1:
        rates = gradients_per_second(module, sizes, shape, device)
        size = smallest_of_the_fastest(rates)
        return size, f"{rates[size]:,.0f} gradients a second, of at most {max(rates.values()):,.0f}"
    most = min(room, busy, _SIZES[0])
    return most, "the memory's room" if room == most else "so few examples keep no more rows busy"


def smallest_of_the_fastest(rates: Mapping[int, float]) -> int:
    """The smallest batch size whose gradients a second are within 10 % of the most; `rates` by size."""
    return min(size for size, rate in rates.items() if rate >= _NEARLY * max(rates.values()))


def gradients_per_second(
    module: nn.Module, sizes: list[int], shape: tuple[int, ...], device: torch.device
) -> dict[int, float]:
    """How many examples' gradients a GPU computes in a second, by batch size; without sizes that do not fit."""
    rates: dict[int, float] = {}
    for size in sizes:
        try:
            x, y = torch.zeros(size, *shape, device=device), torch.zeros(size, dtype=torch.int64, device=device)
            with attacking(module):
                for _ in range(2):  # the first passes of a shape choose its kernels
                    input_gradient(module, x, y)
                torch.cuda.synchronize(device)
                started, passes = time.perf_counter(), 0
                while (seconds := time.perf_counter() - started) < _SECONDS:
                    input_gradient(module, x, y)
                    torch.cuda.synchronize(device)
                    passes += 1
        except RuntimeError as error:
            if not out_of_memory(error):
                raise
            break
        rates[size] = passes * size / seconds
    return rates


def fitting(sizes: tuple[int, int], needs: tuple[int, int], free: int, *, image: int) -> int:
    """The largest power of two of examples that fits into 80 % of the memory, by what two sizes needed.

    Args:
        sizes: Two batch sizes, the smaller first.
        needs: What a gradient of each took, in bytes.
        free: Bytes there are.
        image: Bytes of one image.

    Returns:
        From 16, the fewest rows that a model is given, to 1024.
    """
    each = (needs[1] - needs[0]) / (sizes[1] - sizes[0])
    fixed = max(0.0, needs[0] - each * sizes[0])
    room = (_SHARE * free - fixed) / max(1.0, each + _IMAGES_KEPT * image)
    return min(_SIZES[-1], 1 << int(math.log2(max(room, SMALLEST_BATCH))))


def _probed(
    module: nn.Module, shape: tuple[int, ...], device: torch.device
) -> tuple[tuple[int, int], tuple[int, int]] | None:
    """Two batch sizes and what a gradient of each takes; None where not even the fewest rows fit."""
    _probe(module, SMALLEST_BATCH, shape, device)  # the first pass takes what libraries then keep: it would mislead
    for sizes in _PROBES:
        few, many = (_probe(module, size, shape, device) for size in sizes)
        if few is not None and many is not None:
            return sizes, (few, many)
    return None


def _probe(module: nn.Module, size: int, shape: tuple[int, ...], device: torch.device) -> int | None:
    """Bytes at the peak of a forward and backward pass of so many examples, without the weights; None: too many."""
    torch.cuda.reset_peak_memory_stats(device)
    before = torch.cuda.memory_allocated(device)
    try:
        x, y = torch.zeros(size, *shape, device=device), torch.zeros(size, dtype=torch.int64, device=device)
        with attacking(module):
            input_gradient(module, x, y)
    except RuntimeError as error:
        if not out_of_memory(error):
            raise
        return None
    return torch.cuda.max_memory_allocated(device) - before
