"""Input normalisation as the model's first layer, so that every model takes images in [0, 1]."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from sam_bench.errors import InputError, shortened


def check_normalisation(mean: Sequence[float], std: Sequence[float], in_channels: int | None = None) -> None:
    """Refuse statistics that cannot normalise anything.

    Args:
        mean: One number a channel, of inputs in [0, 1]; empty for none.
        std: As many numbers, each above 0.
        in_channels: How many there should be; unchecked when None.

    Raises:
        InputError: The lengths disagree, a number is not finite, or a standard deviation is not above 0.
    """
    if len(mean) != len(std):
        raise InputError(f"mean has {len(mean)} numbers and std {len(std)}: give one of each per channel, or neither")
    if in_channels is not None and mean and len(mean) != in_channels:
        raise InputError(f"mean and std have {len(mean)} numbers, but inputs have {in_channels} channels")
    for name, values in (("mean", mean), ("std", std)):
        if not all(math.isfinite(value) for value in values):
            raise InputError(f"{name} must be finite, got {shortened(str(list(values)))}")
    if any(value <= 0 for value in std):
        raise InputError(f"std must be above 0 in every channel, got {shortened(str(list(std)))}")


class NormalizedModel(nn.Module):
    """`net((x - mean) / std)` for images x in [0, 1].

    An attack's ball and box are meant in pixels; a model that normalises outside invites attacks on
    the wrong scale. Mean and std are buffers that are not saved: they belong to the Architecture, and
    the state dict holds the network alone, every key below `net.`.

    Args:
        net: The network, from [batch, C, H, W] normalised to [batch, classes] logits.
        mean: One number a channel; empty for no normalisation.
        std: One number a channel, each above 0; empty for no normalisation.

    Raises:
        InputError: `mean` and `std` do not fit together.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, net: nn.Module, mean: Sequence[float] = (), std: Sequence[float] = ()) -> None:
        super().__init__()
        check_normalisation(mean, std)
        self.net = net
        self.normalizes = len(mean) > 0
        for name, values in (("mean", mean), ("std", std)):
            buffer = torch.tensor(list(values), dtype=torch.float32).reshape(1, -1, 1, 1)
            self.register_buffer(name, buffer, persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """Logits [batch, classes] of images `x`, float [batch, C, H, W] in [0, 1].

        Raises:
            InputError: They have another rank, type or number of channels, which would be broadcast or cast silently.
        """
        channels = self.mean.shape[1] if self.normalizes else x.shape[1] if x.dim() == 4 else 0
        if x.dim() != 4 or x.shape[1] != channels or not x.is_floating_point():
            raise InputError(
                f"the model takes images float [batch, {channels or 'C'}, H, W] in [0, 1], "
                f"not {str(x.dtype).removeprefix('torch.')} {list(x.shape)}"
            )
        if self.normalizes:
            x = (x - self.mean) / self.std
        logits: Tensor = self.net(x)
        return logits
