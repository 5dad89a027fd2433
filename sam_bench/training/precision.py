"""Which precision a network trains in: where that is open, by what bfloat16 gains in a step of its own."""

from __future__ import annotations

from functools import partial

import torch
from torch import nn

from sam_bench.device import choose_precision, measured_gain
from sam_bench.modes import batch_norm_statistics_kept, training_mode
from sam_bench.records import Precision
from sam_bench.seeds import generator
from sam_bench.training.memory_format import memory_format_for

_ROWS, _PIXELS = 32, 32 * 32 * 32  # images of a pass, and what they may have together; fewer would hide a gain


def precision_for(
    asked: str, device: torch.device, network: nn.Module, shape: tuple[int, int, int]
) -> tuple[Precision, str]:
    """The precision of training's matrix work, and why; see `choose_precision`.

    Args:
        asked: "auto", "bf16" or "fp32".
        device: Where training runs.
        network: What is trained, on `device`.
        shape: Of an image, (C, H, W).
    """
    return choose_precision(asked, device, partial(network_gain, network, shape))


def network_gain(network: nn.Module, shape: tuple[int, int, int]) -> float:
    """How many times as fast as in float32 a CPU runs a network in bfloat16, forward and back; 0 where it cannot.

    A convolution does not tell: attention of few channels is slower in bfloat16 on CPUs that convolve twice as fast.
    The network stays as it was, but for its memory format, which is that of training.
    """
    layout = memory_format_for(network)
    network.to(memory_format=layout)
    rows = min(_ROWS, max(2, _PIXELS // (shape[1] * shape[2])))
    images = torch.rand(rows, *shape, generator=generator("precision")).contiguous(memory_format=layout)
    weights = [parameter for parameter in network.parameters() if parameter.requires_grad]
    with training_mode(network, True), batch_norm_statistics_kept(network), torch.random.fork_rng(devices=[]):
        return measured_gain(lambda: network(images), weights)
