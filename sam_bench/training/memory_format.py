"""In which order a batch's values lie in memory: channels last is faster, where it is safe."""

from __future__ import annotations

import torch
from torch import nn

_FEWEST_CHANNELS = 8


def memory_format_for(model: nn.Module) -> torch.memory_format:
    """Channels last, except for a network with a strided 1x1 convolution of fewer than eight channels.

    PyTorch 2.15 writes past the end of a buffer there: the gradient of such a convolution's weights, channels last, on
    a CPU with AVX2 and without AVX-512, corrupts the heap. Widths below eight are for tests; nothing is lost.
    """
    unsafe = any(isinstance(module, nn.Conv2d) and _overflows(module) for module in model.modules())
    return torch.contiguous_format if unsafe else torch.channels_last


def _overflows(module: nn.Conv2d) -> bool:
    channels = module.in_channels // module.groups
    return module.kernel_size == (1, 1) and max(module.stride) > 1 and channels < _FEWEST_CHANNELS
